//! Logits of the last exit, no gradient: what a server computes.
//!
//! `benches/peers/` has the same models in PyTorch and ONNX Runtime. With `--json` (for `benches/peers/compare.py`) the bench
//! times one case itself and prints one line: `--json --case vit_384_197 --batch 8 --threads 2 --warmup 2 --rounds 5`.

mod cases;

use std::{num::NonZeroUsize, time::Duration};

use clap::Parser;
use criterion::{BenchmarkId, Criterion};
use layerwise::models::{Pass, tap};
use layerwise_example_common::in_pool;
use serde_json::json;

use crate::cases::{Case, Use, gemm_gflops, median, peak_rss_mib, timed};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Parser)]
struct Args {
    /// Time one case and print a line of JSON, instead of running criterion.
    #[arg(long)]
    json: bool,
    #[arg(long, value_enum, default_value = "vit_384_65")]
    case: Case,
    #[arg(long, default_value_t = 8)]
    batch: usize,
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
    let mut group = criterion.benchmark_group("inference");
    group.measurement_time(Duration::from_secs(8));
    for case in [Case::Vit384Small, Case::Vit384, Case::Bert384] {
        for rows in [1, 8, 64] {
            let bench = case.load(rows, Use::Serve)?;
            group.bench_function(BenchmarkId::new(case.name(), rows), |bencher| {
                bencher.iter(|| tap::forward(&*bench.model, &bench.batch, Pass::EVAL).expect("logits"));
            });
        }
    }
    group.finish();
    criterion.final_summary();
    Ok(())
}

#[allow(clippy::print_stdout, reason = "the line is the result")]
fn print_json(args: &Args) -> anyhow::Result<()> {
    let base_rss_mib = peak_rss_mib()?;
    let bench = args.case.load(args.batch, Use::Serve)?;
    let logits = || Ok(tap::forward(&*bench.model, &bench.batch, Pass::EVAL)?);
    let (seconds, _) = timed(args.warmup, args.rounds, logits)?;
    let peak_rss_mib = peak_rss_mib()?;
    let line = json!({
        "engine": concat!("layerwise ", env!("CARGO_PKG_VERSION")),
        "case": args.case.name(),
        "mode": "infer",
        "batch": args.batch,
        "threads": args.threads,
        "median_s": median(&seconds),
        "seconds": seconds,
        "base_rss_mib": base_rss_mib,
        "peak_rss_mib": peak_rss_mib,
        "limit_s": args.case.gflop(args.batch, 1) / gemm_gflops()?,
    });
    println!("{line}");
    Ok(())
}
