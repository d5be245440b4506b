//! One training step of a small ViT: forward, backward and AdamW, with the standard and the aligned objective.
//!
//! `benches/peers/train_step.py` is the same step in PyTorch. With `--json` (for `benches/peers/compare.py`) the bench
//! times one objective itself and prints one line: `--json --objective aligned --threads 2 --warmup 2 --rounds 5`.

mod cases;

use std::time::{Duration, Instant};

use anyhow::Context;
use clap::{Parser, ValueEnum};
use criterion::Criterion;
use layerwise::{
    models::{Pass, Tapped},
    train::{self, AdamW, loss, take_gradients},
};
use serde_json::json;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const BATCH: usize = 32;

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Objective {
    Standard,
    Aligned,
}

#[derive(Parser)]
struct Args {
    /// Time one objective and print a line of JSON, instead of running criterion.
    #[arg(long)]
    json: bool,
    #[arg(long, value_enum, default_value = "standard")]
    objective: Objective,
    /// Recorded only: the thread pools read `RAYON_NUM_THREADS` and `CANDLE_NUM_THREADS`.
    #[arg(long, default_value_t = 2)]
    threads: usize,
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
        return print_json(&Args::parse());
    }
    let mut criterion = Criterion::default().configure_from_args().sample_size(10);
    let mut group = criterion.benchmark_group("train_step");
    group.measurement_time(Duration::from_secs(15));
    for (name, objective) in [("standard", Objective::Standard), ("aligned", Objective::Aligned)] {
        let mut step = step(objective)?;
        group.bench_function(name, |bencher| bencher.iter(|| step().expect("a step")));
    }
    group.finish();
    criterion.final_summary();
    Ok(())
}

/// The step of one objective: a closure that trains once and returns the loss.
fn step(objective: Objective) -> anyhow::Result<impl FnMut() -> anyhow::Result<f32>> {
    let (vit, batch, labels) = cases::vit(BATCH)?;
    let objective = match objective {
        Objective::Standard => train::Objective::Standard,
        Objective::Aligned => train::Objective::Aligned { weights: Default::default() },
    };
    let weights = objective.turn(vit.depth(), 0, 0)?;
    let mut optimiser = AdamW::new(vit.params(), Default::default())?;
    Ok(move || {
        let total = loss(&vit, &batch, &labels, &weights, 0., Pass::EVAL)?.total;
        let value = total.to_scalar::<f32>()?;
        optimiser.step(vit.params(), &take_gradients(total.backward()?, vit.params()), 1.)?;
        Ok(value)
    })
}

#[allow(clippy::print_stdout, reason = "the line is the result")]
fn print_json(args: &Args) -> anyhow::Result<()> {
    let base_rss_mib = peak_rss_mib()?;
    let mut step = step(args.objective)?;
    let mut loss = 0.;
    for _ in 0..args.warmup {
        loss = step()?;
    }
    let mut seconds = Vec::new();
    for _ in 0..args.rounds {
        let start = Instant::now();
        loss = step()?;
        seconds.push(start.elapsed().as_secs_f64());
    }
    let line = json!({
        "engine": concat!("layerwise ", env!("CARGO_PKG_VERSION")),
        "objective": format!("{:?}", args.objective).to_lowercase(),
        "threads": args.threads,
        "median_s": median(&seconds),
        "seconds": seconds,
        "base_rss_mib": base_rss_mib,
        "peak_rss_mib": peak_rss_mib()?,
        "loss": loss,
    });
    println!("{line}");
    Ok(())
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    if sorted.len() % 2 == 1 { sorted[middle] } else { (sorted[middle - 1] + sorted[middle]) / 2. }
}

/// The most memory this process has held, from Linux.
fn peak_rss_mib() -> anyhow::Result<f64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<f64>()? / 1024.)
}
