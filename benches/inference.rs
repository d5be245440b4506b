//! Logits of the last exit, no gradient: what a server computes.
//!
//! `benches/peers/` has the same models in PyTorch and ONNX Runtime. With `--json` (for `benches/peers/compare.py`) the bench
//! times one case itself and prints one line: `--json --case vit_384_197 --batch 8 --threads 2 --warmup 2 --rounds 5`.

mod cases;

use candle_core::Tensor;
use clap::Parser;
use criterion::BenchmarkId;
use layerwise::{
    exit::{Compaction, Engine, histogram, layer_ratio},
    models::{Pass, tap},
};
use serde_json::json;

use crate::cases::{
    Bench, Case, Measured, Numbers, Peak, Timing, Use, criterion, device, drawn::Drawn, finished,
    gemm_gflops, run, timed,
};

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
    #[arg(long, value_enum, default_value_t)]
    dtype: Numbers,
    /// Samples leave after layers that are drawn, each as likely; heads are computed and read after every layer.
    #[arg(long)]
    exits: bool,
    /// They are taken out of the batch a block later: a GPU is not waited for.
    #[arg(long, requires = "exits")]
    late: bool,
}

fn main() -> anyhow::Result<()> {
    run(|args: &Args| &args.timing, measure, bench)
}

fn bench() -> anyhow::Result<()> {
    let mut criterion = criterion(10, (3, 8));
    let mut group = criterion.benchmark_group("inference");
    let batches: &[usize] = if device()?.is_cuda() { &[1, 64, 256, 1024] } else { &[1, 8, 64] };
    for case in [Case::Vit384Small, Case::Vit384, Case::Bert384] {
        for &numbers in Numbers::here()? {
            for &rows in batches {
                let bench = case.load(rows, Use::Serve, numbers)?;
                let id = BenchmarkId::new(case.name() + numbers.in_name(), rows);
                group.bench_function(id, |bencher| {
                    bencher.iter(|| finished(|| full(&bench)).expect("logits"));
                });
            }
        }
    }
    group.finish();
    criterion.final_summary();
    Ok(())
}

fn full(Bench { model, batch, .. }: &Bench) -> anyhow::Result<Tensor> {
    Ok(tap::forward(&**model, batch, Pass::EVAL)?)
}

fn measure(args: &Args) -> anyhow::Result<Measured> {
    let bench = args.case.load(args.batch, Use::Serve, args.dtype)?;
    let depth = args.case.depth();
    let drawn = Drawn::new(vec![1.; depth]);
    let compaction = if args.late { Compaction::Late } else { Compaction::Always };
    let engine = Engine { policy: &drawn, compaction };
    let mut layers = None;
    let (seconds, _) = timed(&args.timing, || match args.exits {
        true => {
            let exited = engine.run(&*bench.model, &bench.batch)?;
            layers = Some(exited.layer);
            Ok(exited.logits)
        }
        false => full(&bench),
    })?;
    let peak = Peak::now()?;
    let more = json!({
        "case": args.case.name(),
        "mode": if args.exits { "exits" } else { "infer" },
        "batch": args.batch,
        "dtype": args.dtype,
        "layer_ratio": layers.map(|layers| layer_ratio(&histogram(&layers, depth))),
        "limit_s": (!args.exits).then_some(args.case.gflop(args.batch, 1) / gemm_gflops(args.dtype)?),
    });
    Ok(Measured { seconds, peak, more })
}
