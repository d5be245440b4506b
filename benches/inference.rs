//! Logits of the last exit, no gradient: what a server computes.
//!
//! `benches/peers/` has the same models in PyTorch and ONNX Runtime. With `--json` (for `benches/peers/compare.py`) the bench
//! times one case itself and prints one line: `--json --case vit_384_197 --batch 8 --threads 2 --warmup 2 --rounds 5`.

mod cases;

use std::time::Duration;

use clap::Parser;
use criterion::{BenchmarkId, Criterion};
use layerwise::models::{Pass, tap};
use serde_json::json;

use crate::cases::{Bench, Case, Measured, Timing, Use, gemm_gflops, peak_rss_mib, run, timed};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Parser)]
struct Args {
    #[command(flatten)]
    timing: Timing,
    #[arg(long, value_enum, default_value = "vit_384_65")]
    case: Case,
    #[arg(long, default_value_t = 8)]
    batch: usize,
}

fn main() -> anyhow::Result<()> {
    run(|args: &Args| &args.timing, measure, bench)
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

fn measure(args: &Args) -> anyhow::Result<Measured> {
    let Bench { model, batch, .. } = args.case.load(args.batch, Use::Serve)?;
    let (seconds, _) = timed(&args.timing, || Ok(tap::forward(&*model, &batch, Pass::EVAL)?))?;
    let peak_rss_mib = peak_rss_mib()?;
    let more = json!({
        "case": args.case.name(),
        "mode": "infer",
        "batch": args.batch,
        "limit_s": args.case.gflop(args.batch, 1) / gemm_gflops()?,
    });
    Ok(Measured { seconds, peak_rss_mib, more })
}
