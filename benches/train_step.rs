//! One training step: forward, backward and AdamW, with the standard and the aligned objective.
//!
//! `benches/peers/` has the same steps in PyTorch. With `--json` (for `benches/peers/compare.py`) the bench times one case
//! itself and prints one line: `--json --case vit_192 --objective aligned --threads 2 --warmup 2 --rounds 5`.

mod cases;

use std::time::Duration;

use clap::{Parser, ValueEnum};
use criterion::{BenchmarkId, Criterion};
use layerwise::{
    models::Pass,
    ops::backward,
    train::{self, AdamW, Moment, StepScale, loss, take_gradients},
};
use serde_json::json;

use crate::cases::{Bench, Case, Measured, Timing, Use, gemm_gflops, peak_rss_mib, run, timed};

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
}

fn main() -> anyhow::Result<()> {
    run(|args: &Args| &args.timing, measure, bench)
}

fn bench() -> anyhow::Result<()> {
    let mut criterion = Criterion::default().configure_from_args().sample_size(10);
    let mut group = criterion.benchmark_group("train_step");
    group.measurement_time(Duration::from_secs(15));
    for case in Case::value_variants() {
        for (name, objective) in [("standard", Objective::Standard), ("aligned", Objective::Aligned)] {
            let mut step = step(*case, objective, case.train_batch())?;
            group.bench_function(BenchmarkId::new(name, case.name()), |bencher| {
                bencher.iter(|| step().expect("a step"));
            });
        }
    }
    group.finish();
    criterion.final_summary();
    Ok(())
}

/// The step of one case: a closure that trains once and returns the loss.
fn step(
    case: Case,
    objective: Objective,
    rows: usize,
) -> anyhow::Result<impl FnMut() -> anyhow::Result<f32>> {
    let Bench { model, params, batch, labels } = case.load(rows, Use::Train)?;
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
    let batch = args.batch.unwrap_or(args.case.train_batch());
    let (seconds, loss) = timed(&args.timing, step(args.case, args.objective, batch)?)?;
    let peak_rss_mib = peak_rss_mib()?;
    let exits = if args.objective == Objective::Aligned { args.case.depth() } else { 1 };
    let more = json!({
        "case": args.case.name(),
        "mode": "train",
        "objective": format!("{:?}", args.objective).to_lowercase(),
        "batch": batch,
        "limit_s": 3. * args.case.gflop(batch, exits) / gemm_gflops()?,
        "loss": loss,
    });
    Ok(Measured { seconds, peak_rss_mib, more })
}
