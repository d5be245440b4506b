//! One training step of a small ViT: forward, backward and AdamW, with the standard and the aligned objective.
//!
//! `benches/peers/train_step.py` is the same step in PyTorch. With `--json` (for `benches/peers/compare.py`) the bench
//! times one objective itself and prints one line: `--json --objective aligned --threads 2 --warmup 2 --rounds 5`.

mod cases;

use std::{
    num::NonZeroUsize,
    time::{Duration, Instant},
};

use anyhow::Context;
use candle_core::{DType, Device::Cpu, Tensor};
use clap::{Parser, ValueEnum};
use criterion::Criterion;
use layerwise::{
    models::{Pass, Tapped},
    ops,
    train::{self, AdamW, loss, take_gradients},
};
use layerwise_example_common::in_pool;
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
        "limit_s": STEP_GFLOP / gemm_gflops()?,
        "loss": loss,
    });
    println!("{line}");
    Ok(())
}

/// Arithmetic of the matrix products of a step, forward and twice that backward: per token and block 12 d^2 weights and two
/// products with 65 tokens, 2 operations each.
const STEP_GFLOP: f64 = 3. * 2. * (12. * 192. * 192. + 2. * 65. * 192.) * 12. * (65 * BATCH) as f64 * 1e-9;

/// What matrix products reach here at their best, by a square one of 1024: the step's limit.
fn gemm_gflops() -> anyhow::Result<f64> {
    let xs = Tensor::ones((1024, 1024), DType::F32, &Cpu)?;
    let mut best = f64::INFINITY;
    for _ in 0..10 {
        let start = Instant::now();
        ops::linear(&xs, &xs, None)?;
        best = best.min(start.elapsed().as_secs_f64());
    }
    Ok(2. * 1024f64.powi(3) * 1e-9 / best)
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
