//! One AdamW step of 20 parameters of 1000 times 1000.
//!
//! `benches/peers/` has PyTorch's fused one. With `--json` (for `benches/peers/compare.py`) the bench times itself and prints
//! one line: `--json --threads 2 --warmup 2 --rounds 5`.

mod cases;

use std::{num::NonZeroUsize, time::Duration};

use candle_core::{DType, Device::Cpu, Var};
use clap::Parser;
use criterion::Criterion;
use layerwise::{
    models::Params,
    ops::init,
    train::{AdamW, Gradients, StepScale},
};
use layerwise_example_common::in_pool;
use serde_json::json;

use crate::cases::{median, peak_rss_mib, timed};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Parser)]
struct Args {
    /// Time the step and print a line of JSON, instead of running criterion.
    #[arg(long)]
    json: bool,
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
    let mut criterion = Criterion::default().configure_from_args().sample_size(20);
    let mut group = criterion.benchmark_group("adamw");
    group.measurement_time(Duration::from_secs(5));
    let mut step = step()?;
    group.bench_function("20M", |bencher| bencher.iter(|| step().expect("a step")));
    group.finish();
    criterion.final_summary();
    Ok(())
}

fn step() -> anyhow::Result<impl FnMut() -> anyhow::Result<()>> {
    let mut rng = init::rng(0);
    let (mut params, mut gradients) = (Params::default(), Gradients::new());
    for i in 0..20 {
        let name = format!("{i}");
        params.insert(name.clone(), Var::zeros((1000, 1000), DType::F32, &Cpu)?);
        gradients.insert(name, init::normal(&mut rng, (1000, 1000), 1., &Cpu)?);
    }
    let mut optimiser = AdamW::new(&params, Default::default())?;
    Ok(move || Ok(optimiser.step(&params, &gradients, StepScale::default())?))
}

#[allow(clippy::print_stdout, reason = "the line is the result")]
fn print_json(args: &Args) -> anyhow::Result<()> {
    let base_rss_mib = peak_rss_mib()?;
    let (seconds, ()) = timed(args.warmup, args.rounds, step()?)?;
    let line = json!({
        "engine": concat!("layerwise ", env!("CARGO_PKG_VERSION")),
        "case": "adamw",
        "mode": "train",
        "threads": args.threads,
        "median_s": median(&seconds),
        "seconds": seconds,
        "base_rss_mib": base_rss_mib,
        "peak_rss_mib": peak_rss_mib()?,
    });
    println!("{line}");
    Ok(())
}
