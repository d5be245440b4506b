//! One training step: forward, backward and AdamW, with the standard and the aligned objective.
//!
//! `benches/peers/` has the same steps in PyTorch. With `--json` (for `benches/peers/compare.py`) the bench times one case
//! itself and prints one line: `--json --case vit_192 --objective aligned --threads 2 --warmup 2 --rounds 5`.

mod cases;

use clap::{Parser, ValueEnum};
use criterion::BenchmarkId;
use layerwise::{
    models::Pass,
    ops::backward,
    train::{self, AdamW, Moment, StepScale, loss, take_gradients},
};
use serde_json::json;

use crate::cases::{
    Bench, Case, Measured, Numbers, Peak, Timing, Use, criterion, finished, gemm_gflops, run, timed,
};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Objective {
    Standard,
    Aligned,
}

#[derive(Parser)]
struct Args {
    #[command(flatten)]
    timing: Timing,
    #[arg(long, value_enum, default_value = "vit_192")]
    case: Case,
    #[arg(long, value_enum, default_value = "aligned")]
    objective: Objective,
    /// Samples of a step; the case's own by default.
    #[arg(long)]
    batch: Option<usize>,
    #[arg(long, value_enum, default_value_t)]
    dtype: Numbers,
}

fn main() -> anyhow::Result<()> {
    run(|args: &Args| &args.timing, measure, bench)
}

fn bench() -> anyhow::Result<()> {
    let mut criterion = criterion(10, (3, 15));
    let mut group = criterion.benchmark_group("train_step");
    for case in Case::trained()? {
        for &numbers in Numbers::here()? {
            for (name, objective) in [("standard", Objective::Standard), ("aligned", Objective::Aligned)] {
                let mut step = step((case, numbers), objective, case.train_batch()?)?;
                let id = BenchmarkId::new(name, case.name() + numbers.in_name());
                group.bench_function(id, |bencher| bencher.iter(|| finished(&mut step).expect("a step")));
            }
        }
    }
    group.finish();
    criterion.final_summary();
    Ok(())
}

/// The step of one case: a closure that trains once and returns the loss.
fn step(
    (case, numbers): (Case, Numbers),
    objective: Objective,
    rows: usize,
) -> anyhow::Result<impl FnMut() -> anyhow::Result<f32>> {
    let Bench { model, params, batch, labels } = case.load(rows, Use::Train, numbers)?;
    let objective = match objective {
        Objective::Standard => train::Objective::Standard,
        Objective::Aligned => train::Objective::Aligned { weights: Default::default() },
    };
    let terms = objective.turn(model.depth(), Moment::default())?;
    let mut optimiser = AdamW::new(&params, Default::default())?;
    let mut seed = 0;
    Ok(move || {
        seed += 1;
        let total = loss(&*model, &batch, &labels, &terms, 0., Pass::train(seed))?.total;
        let value = total.to_scalar::<f32>()?;
        optimiser.step(&params, &take_gradients(backward(&total)?, &params), StepScale::default())?;
        Ok(value)
    })
}

fn measure(args: &Args) -> anyhow::Result<Measured> {
    let batch = args.batch.map_or_else(|| args.case.train_batch(), Ok)?;
    let (seconds, loss) = timed(&args.timing, step((args.case, args.dtype), args.objective, batch)?)?;
    let peak = Peak::now()?;
    let exits = if args.objective == Objective::Aligned { args.case.depth() } else { 1 };
    let more = json!({
        "case": args.case.name(),
        "mode": "train",
        "objective": format!("{:?}", args.objective).to_lowercase(),
        "batch": batch,
        "dtype": args.dtype,
        "limit_s": 3. * args.case.gflop(batch, exits) / gemm_gflops(args.dtype)?,
        "loss": loss,
    });
    Ok(Measured { seconds, peak, more })
}
