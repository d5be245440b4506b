//! All pairs of layers of a stack, by every measure.
//!
//! `benches/peers/` has `NumPy`, `PyTorch` and two packages of PyPI. With `--json` (for `benches/peers/compare.py`) the bench times
//! itself and prints one line: `--json --measure cka-debiased --form whole --layers 13 --samples 10000 --width 768 --threads 1`.
//! With `--plot DIR` it draws the cost of each measure against samples and width. Of the CPU: the layers are arrays.

mod cases;

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::Context;
use clap::{Parser, ValueEnum};
use criterion::{BenchmarkId, Criterion, Throughput};
use layerwise::similarity::{Measure, MomentAccumulator, Result, pairwise};
use layerwise_example_common::{
    in_pool,
    measures::NamedMeasure,
    plots::{self, Series},
};
use ndarray::{Array2, ArrayView2, Axis, s};
use rayon::prelude::*;
use serde_json::json;

use crate::cases::{Measured, Peak, Timing, peak_rss_mib, run, timed};

#[derive(Parser)]
struct Args {
    #[command(flatten)]
    timing: Timing,
    #[arg(long, default_value = "cka-debiased")]
    measure: NamedMeasure,
    #[arg(long, default_value = "whole")]
    form: Form,
    #[arg(long, default_value_t = 13)]
    layers: usize,
    #[arg(long, default_value_t = 10_000)]
    samples: usize,
    #[arg(long, default_value_t = 768)]
    width: usize,
}

/// How the samples come.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Form {
    /// In memory, f32, all at once.
    Whole,
    /// In batches of 256, of which one is in memory at a time.
    Stream,
}

/// Samples of a batch of the stream.
const BATCH: usize = 256;

/// What is varied, and the samples and widths of the layers.
const SIZES: [(&str, [[usize; 2]; 5]); 2] = [
    ("samples", [[256, 256], [512, 256], [1024, 256], [2048, 256], [4096, 256]]),
    ("width", [[1024, 64], [1024, 128], [1024, 256], [1024, 512], [1024, 1024]]),
];

/// Layers of the plotted stacks.
const LAYERS: usize = 4;

fn main() -> anyhow::Result<()> {
    let mut words = std::env::args().skip_while(|word| word != "--plot");
    match (words.next(), words.next()) {
        (Some(_), folder) => {
            in_pool(None, || plot(folder.as_deref().context("--plot needs a folder")?.as_ref()))
        }
        _ => run(|args: &Args| &args.timing, measure, bench),
    }
}

/// Draws the median of three runs of each measure against samples and width.
fn plot(folder: &Path) -> anyhow::Result<()> {
    let mut panels = Vec::new();
    for (what, sizes) in SIZES {
        let mut series = Vec::new();
        for &name in NamedMeasure::value_variants() {
            let mut points = Vec::new();
            for [samples, width] in sizes {
                let stack = stack(LAYERS, samples, width);
                let mut seconds: Vec<f64> = Vec::new();
                for _ in 0..3 {
                    let start = Instant::now();
                    pairwise(&stack, name.measure())?;
                    seconds.push(start.elapsed().as_secs_f64());
                }
                seconds.sort_by(f64::total_cmp);
                let varied = if what == "samples" { samples } else { width };
                points.push(((varied as f64).log2(), seconds[1].log10()));
            }
            series.push(Series { name: name.title().into(), points });
        }
        let (fixed, title) =
            if what == "samples" { ("width 256", "Samples") } else { ("1,024 samples", "Width") };
        let axis = format!("log2 of {what} ({fixed}, 4 layers)");
        panels.push(plots::lines(title, &axis, "log10 of seconds", &series, None));
    }
    std::fs::create_dir_all(folder)?;
    plots::write(&folder.join("similarity_cost"), panels, 2)?;
    Ok(())
}

/// Cost against the number of samples and against width.
fn bench() -> anyhow::Result<()> {
    let mut criterion = Criterion::default().configure_from_args().sample_size(10);
    for (what, sizes) in SIZES {
        for &name in NamedMeasure::value_variants() {
            let mut group = criterion.benchmark_group(format!("similarity/{}/{what}", name.key()));
            group.warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(2));
            for [samples, width] in sizes {
                let varied = if what == "samples" { samples } else { width };
                let stack = stack(LAYERS, samples, width);
                group.throughput(Throughput::Elements((LAYERS * samples * width) as u64));
                group.bench_function(BenchmarkId::from_parameter(varied), |bencher| {
                    bencher.iter(|| pairwise(&stack, name.measure()).expect("a good stack"));
                });
            }
            group.finish();
        }
    }
    let [samples, width] = SIZES[0].1[2];
    let stack = stack(LAYERS, samples, width);
    criterion.bench_function("similarity/stream", |bencher| {
        bencher.iter(|| stream(&stack, samples, NamedMeasure::CkaDebiased.measure()).expect("a good stack"));
    });
    criterion.final_summary();
    Ok(())
}

fn measure(args: &Args) -> anyhow::Result<Measured> {
    let Args { layers, samples, width, .. } = *args;
    let held = if args.form == Form::Stream { BATCH } else { samples };
    let stack = stack(layers, held, width);
    let data_rss_mib = peak_rss_mib()?;
    let measure = args.measure.measure();
    let (seconds, matrix) = timed(&args.timing, || match args.form {
        Form::Whole => Ok(pairwise(&stack, measure)?),
        Form::Stream => Ok(stream(&stack, samples, measure)?),
    })?;
    let peak = Peak::now()?;
    // X^T X of all layers side by side: each entry of the upper triangle is two operations a sample.
    let width = (layers * width) as f64;
    let gflop = width * (width + 1.) * samples as f64 * 1e-9;
    let threads = args.timing.threads.get() as f64;
    let more = json!({
        "case": format!("{layers}x{samples}x{}", args.width), "measure": args.measure.key(),
        "data_rss_mib": data_rss_mib, "gflop": gflop, "limit_s": gflop / (gemm_f64_gflops() * threads),
        "first_last": matrix[[0, layers - 1]],
    });
    Ok(Measured { seconds, peak, more })
}

/// All samples, the batch over and over.
fn stream(stack: &[Array2<f32>], samples: usize, measure: Measure) -> Result<Array2<f64>> {
    let widths: Vec<usize> = stack.iter().map(|layer| layer.ncols()).collect();
    let mut moments = MomentAccumulator::new(&widths)?;
    for start in (0..samples).step_by(BATCH) {
        let rows = BATCH.min(samples - start);
        let batch: Vec<ArrayView2<'_, f32>> = stack.iter().map(|layer| layer.slice(s![..rows, ..])).collect();
        moments.push(&batch)?;
    }
    moments.pairwise(measure)
}

/// Layers that drift apart, as those of a residual network: each is the one before and something of its own.
fn stack(layers: usize, samples: usize, width: usize) -> Vec<Array2<f32>> {
    let mut stack = vec![noise(0, samples, width)];
    for layer in 1..layers {
        let mut next = noise(layer, samples, width);
        next.scaled_add(1., &stack[layer - 1]);
        stack.push(next);
    }
    stack
}

/// Numbers in (-1, 1) that are the same in every run and language: a hash of where they stand.
fn noise(layer: usize, samples: usize, width: usize) -> Array2<f32> {
    let mut xs = Array2::zeros((samples, width));
    xs.axis_iter_mut(Axis(0)).collect::<Vec<_>>().into_par_iter().enumerate().for_each(|(i, mut row)| {
        for (j, x) in row.iter_mut().enumerate() {
            let mut hash = ((layer * samples + i) * width + j) as u32;
            for factor in [0x85eb_ca6b, 0xc2b2_ae35] {
                hash = (hash ^ hash >> 16).wrapping_mul(factor);
            }
            *x = (hash >> 8) as f32 / (1 << 23) as f32 - 1.;
        }
    });
    xs
}

/// What products of f64 reach here at their best on one thread, in 10^9 operations a second, by a square one of 2048.
fn gemm_f64_gflops() -> f64 {
    const N: usize = 2048;
    let (a, b) = (vec![1.; N * N], vec![1.; N * N]);
    let mut c = vec![0.; N * N];
    let mut best = f64::INFINITY;
    for _ in 0..8 {
        let start = Instant::now();
        let n = N as isize;
        #[allow(unsafe_code, reason = "the crate has no other interface")]
        // SAFETY: three contiguous square matrices of N rows, of which `c` is borrowed exclusively.
        unsafe {
            let none = gemm::Parallelism::None;
            let (c, a, b) = (c.as_mut_ptr(), a.as_ptr(), b.as_ptr());
            gemm::gemm(N, N, N, c, 1, n, false, a, 1, n, b, 1, n, 0., 1., false, false, false, none);
        }
        best = best.min(start.elapsed().as_secs_f64());
    }
    assert_eq!(c[N], N as f64);
    2. * (N as f64).powi(3) * 1e-9 / best
}
