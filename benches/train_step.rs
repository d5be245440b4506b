//! One training step of a small ViT: forward, backward and AdamW, with the standard and the aligned objective.
//!
//! `benches/peers/train_step.py` is the same step in PyTorch. With `--json` (for `benches/peers/compare.py`) the bench
//! times one objective itself and prints one line: `--json --objective aligned --threads 2 --warmup 2 --rounds 5`.

use std::time::{Duration, Instant};

use anyhow::Context;
use candle_core::{DType, Device::Cpu, Tensor, Var};
use clap::{Parser, ValueEnum};
use criterion::Criterion;
use layerwise::{
    models::{Batch, Pass, Tapped, Vit, VitConfig, tap},
    ops::{self, init},
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
    let config = VitConfig {
        image_size: 32,
        patch_size: 4,
        hidden_size: 192,
        num_hidden_layers: 12,
        num_attention_heads: 3,
        intermediate_size: 768,
        num_labels: 10,
        ..Default::default()
    };
    let mut rng = init::rng(0);
    let batch = Batch::from(init::normal(&mut rng, (BATCH, 3, 32, 32), 1., &Cpu)?);
    let labels = Tensor::from_iter((0..BATCH as u32).map(|i| i % 10), &Cpu)?;
    let vit = Vit::new(config, &mut rng, &Cpu)?;
    let depth = vit.depth();
    let weights: Vec<f64> = match objective {
        Objective::Standard => (1..=depth).map(|l| if l == depth { 1. } else { 0. }).collect(),
        Objective::Aligned => (1..=depth).map(|l| 2. * l as f64 / (depth * (depth + 1)) as f64).collect(),
    };
    let zeros = |var: &Var| Var::zeros(var.shape(), DType::F32, &Cpu);
    let moments = vit.params().iter().map(|(_, var)| Ok([zeros(var)?, zeros(var)?]));
    let moments: Vec<[Var; 2]> = moments.collect::<candle_core::Result<_>>()?;
    let mut t = 0;
    Ok(move || {
        t += 1;
        let features = tap::features(&vit, &batch, Pass::EVAL)?;
        let mut total: Option<Tensor> = None;
        for (i, w) in weights.iter().enumerate().filter(|(_, w)| **w > 0.) {
            let logits = vit.exit(i + 1, &features[i + 1])?;
            let ce = (ops::cross_entropy(&logits, &labels, None, &Default::default())? * *w)?;
            total = Some(match total {
                None => ce,
                Some(t) => (t + ce)?,
            });
        }
        drop(features);
        let total = total.unwrap();
        let loss = total.to_scalar::<f32>()?;
        let mut grads = total.backward()?;
        for ((_, var), [m, v]) in vit.params().iter().zip(&moments) {
            let g = grads.remove(var).context("no gradient")?.detach();
            ops::adamw_step(
                var,
                &g,
                m,
                v,
                ops::AdamWStep { lr: 1e-3, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 1e-4, step: t },
            )?;
        }
        Ok(loss)
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
