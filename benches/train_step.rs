//! One training step: forward, backward and AdamW, with the standard and the aligned objective.
//!
//! `benches/peers/` has the same steps in PyTorch. With `--json` (for `benches/peers/compare.py`) the bench times one case
//! itself and prints one line: `--json --case vit_192 --objective aligned --threads 2 --warmup 2 --rounds 5`.

mod cases;

use std::{num::NonZeroUsize, time::Duration};

use clap::{Parser, ValueEnum};
use criterion::{BenchmarkId, Criterion};
use layerwise::{
    models::Pass,
    ops::backward,
    train::{self, AdamW, StepScale, loss, take_gradients},
};
use layerwise_example_common::in_pool;
use serde_json::json;

use crate::cases::{Bench, Case, Use, gemm_gflops, median, peak_rss_mib, timed};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Objective {
    Standard,
    Aligned,
}

#[derive(Parser)]
struct Args {
    /// Time one case and print a line of JSON, instead of running criterion.
    #[arg(long)]
    json: bool,
    #[arg(long, value_enum, default_value = "vit_192")]
    case: Case,
    #[arg(long, value_enum, default_value = "aligned")]
    objective: Objective,
    /// Samples of a step; the case's own by default.
    #[arg(long)]
    batch: Option<usize>,
    #[arg(long, default_value = "2")]
    threads: NonZeroUsize,
    #[arg(long, default_value_t = 2)]
    warmup: usize,
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// What `cargo bench` passes on.
    #[arg(long)]
    bench: bool,
}

fn main() -> anyhow::Result<()> {
    if std::env::args().any(|arg| arg == "--json") {
        let args = Args::parse();
        return in_pool(Some(args.threads), || print_json(&args));
    }
    in_pool(None, bench)
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
    let weights = objective.turn(model.depth(), 0, 0)?;
    let mut optimiser = AdamW::new(&params, Default::default())?;
    let mut seed = 0;
    Ok(move || {
        seed += 1;
        let total = loss(&*model, &batch, &labels, &weights, 0., Pass::train(seed))?.total;
        let value = total.to_scalar::<f32>()?;
        optimiser.step(&params, &take_gradients(backward(&total)?, &params), StepScale::default())?;
        Ok(value)
    })
}

#[allow(clippy::print_stdout, reason = "the line is the result")]
fn print_json(args: &Args) -> anyhow::Result<()> {
    let base_rss_mib = peak_rss_mib()?;
    let batch = args.batch.unwrap_or(args.case.train_batch());
    let mut step = step(args.case, args.objective, batch)?;
    let (seconds, loss) = timed(args.warmup, args.rounds, &mut step)?;
    let exits = if args.objective == Objective::Aligned { args.case.depth() } else { 1 };
    let peak_rss_mib = peak_rss_mib()?;
    let line = json!({
        "engine": concat!("layerwise ", env!("CARGO_PKG_VERSION")),
        "case": args.case.name(),
        "mode": "train",
        "objective": format!("{:?}", args.objective).to_lowercase(),
        "batch": batch,
        "threads": args.threads,
        "median_s": median(&seconds),
        "seconds": seconds,
        "base_rss_mib": base_rss_mib,
        "peak_rss_mib": peak_rss_mib,
        "limit_s": 3. * args.case.gflop(batch, exits) / gemm_gflops()?,
        "loss": loss,
    });
    println!("{line}");
    Ok(())
}
