//! Products of a few rows with weights that do not fit the second-level cache: what a text that is written one token at a time consists of.
//!
//! With `--json` the bench times itself and prints one line, beside candle's product and what reading the weights takes:
//! `--json --threads 1 --number 8`. Of the CPU: weights are packed nowhere else.

mod cases;

use anyhow::Context;
use candle_core::{Device::Cpu, Tensor};
use clap::Parser;
use criterion::Throughput;
use layerwise::ops::{Affine, PackedExit, init};
use serde_json::json;

use crate::cases::{Measured, Numbers, Peak, Timing, criterion, gemm_gflops, median, run, timed};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Parser)]
struct Args {
    #[command(flatten)]
    timing: Timing,
    /// Rows.
    #[arg(long, default_value_t = 8)]
    number: usize,
}

/// 32 weights of a megabyte.
const WEIGHTS: usize = 32;
const OUTPUTS: usize = 1024;
const INPUTS: usize = 256;

fn main() -> anyhow::Result<()> {
    run(|args: &Args| &args.timing, measure, bench)
}

fn weights() -> anyhow::Result<Vec<Tensor>> {
    let mut rng = init::rng(0);
    (0..WEIGHTS).map(|_| Ok(init::normal(&mut rng, (OUTPUTS, INPUTS), 1., &Cpu)?)).collect()
}

fn packed(weights: &[Tensor]) -> anyhow::Result<Vec<PackedExit>> {
    let of = |weight| PackedExit::new(None, &Affine { weight, bias: None, packed: None });
    weights.iter().map(of).collect::<candle_core::Result<Option<Vec<_>>>>()?.context("no kernel here")
}

fn all(xs: &Tensor, packed: &[PackedExit]) -> anyhow::Result<()> {
    packed.iter().try_for_each(|weight| Ok(weight.forward(xs).map(|_| ())?))
}

fn bench() -> anyhow::Result<()> {
    let packed = packed(&weights()?)?;
    let mut criterion = criterion(20, (3, 2));
    let mut group = criterion.benchmark_group("few_rows");
    group.throughput(Throughput::Bytes((4 * WEIGHTS * OUTPUTS * INPUTS) as u64));
    for rows in [1, 4, 8, 12, 16, 24, 96] {
        let xs = init::normal(&mut init::rng(1), (rows, INPUTS), 1., &Cpu)?;
        group.bench_function(format!("{rows}"), |bencher| {
            bencher.iter(|| all(&xs, &packed).expect("products"))
        });
    }
    group.finish();
    criterion.final_summary();
    Ok(())
}

fn measure(args: &Args) -> anyhow::Result<Measured> {
    let weights = weights()?;
    let packed = packed(&weights)?;
    let xs = init::normal(&mut init::rng(1), (args.number, INPUTS), 1., &Cpu)?;
    let (seconds, ()) = timed(&args.timing, || all(&xs, &packed))?;
    let peak = Peak::now()?;
    let transposed = weights.iter().map(Tensor::t).collect::<candle_core::Result<Vec<_>>>()?;
    let candle = || transposed.iter().try_for_each(|weight| Ok(xs.matmul(weight).map(|_| ())?));
    let (candle, ()) = timed(&args.timing, candle)?;
    // As fast as the weights are read: a row asks for no arithmetic to speak of.
    let one = xs.narrow(0, 0, 1)?;
    let (memory, ()) = timed(&args.timing, || all(&one, &packed))?;
    let arithmetic = 2e-9 * (args.number * WEIGHTS * OUTPUTS * INPUTS) as f64 / gemm_gflops(Numbers::F32)?;
    let more = json!({ "case": "few_rows", "rows": args.number, "candle_s": median(&candle), "one_row_s": median(&memory),
        "arithmetic_s": arithmetic });
    Ok(Measured { seconds, peak, more })
}
