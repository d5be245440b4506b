//! What the benches measure: the models and batches that `benches/peers/` has in PyTorch too.

#![allow(dead_code, reason = "each bench uses its part")]

mod bert;
mod gpt;

use std::num::NonZeroUsize;

use anyhow::Context;
use candle_core::{DType, Device::Cpu, Tensor};
use clap::{Args, Parser, ValueEnum};
use layerwise::{
    models::{Batch, Params, Tapped, Vit, VitConfig},
    ops::{self, init},
};
use layerwise_example_common::{in_pool, memory::status_mib};
use serde_json::{Value, json};

/// A model's shape, batch and number of tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Case {
    /// ViT, d = 192, 12 layers, 3 heads, 65 tokens.
    #[value(name = "vit_192")]
    Vit192,
    /// ViT-S, d = 384, 12 layers, 6 heads, 65 tokens.
    #[value(name = "vit_384_65")]
    Vit384Small,
    /// ViT-S, 197 tokens.
    #[value(name = "vit_384_197")]
    Vit384,
    /// BERT, d = 384, 12 layers, 12 heads, 128 tokens with padding, dropout 0.1 when training.
    #[value(name = "bert_384")]
    Bert384,
    /// GPT-2, d = 256, 8 layers, 4 heads, 128 tokens, a vocabulary of 4,096.
    #[value(name = "gpt_256")]
    Gpt256,
    /// The same, 256 tokens: what `f08_aligned_gpt` trains.
    #[value(name = "gpt_256_256")]
    Gpt256Long,
    /// The same with the vocabulary of GPT-2, 50,257.
    #[value(name = "gpt_256_50k")]
    Gpt256Wide,
}

/// What a model is loaded for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Use {
    Train,
    Serve,
}

/// A model with random weights and a batch for it.
pub(crate) struct Bench {
    pub(crate) model: Box<dyn Tapped>,
    pub(crate) params: Params,
    pub(crate) batch: Batch,
    pub(crate) labels: Tensor,
}

impl Case {
    pub(crate) fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }

    pub(crate) fn depth(self) -> usize {
        if matches!(self, Self::Gpt256 | Self::Gpt256Long | Self::Gpt256Wide) { 8 } else { 12 }
    }

    /// Samples of a training step.
    pub(crate) fn train_batch(self) -> usize {
        match self {
            Self::Vit192 => 32,
            Self::Vit384Small => 16,
            Self::Vit384 | Self::Bert384 | Self::Gpt256 | Self::Gpt256Long | Self::Gpt256Wide => 8,
        }
    }

    /// The model and `rows` samples.
    pub(crate) fn load(self, rows: usize, purpose: Use) -> anyhow::Result<Bench> {
        let (width, heads, image, patch) = match self {
            Self::Vit192 => (192, 3, 32, 4),
            Self::Vit384Small => (384, 6, 32, 4),
            Self::Vit384 => (384, 6, 224, 16),
            Self::Bert384 => return bert::bench(rows, purpose),
            Self::Gpt256 => return gpt::bench((rows, 128), 4096, purpose),
            Self::Gpt256Long => return gpt::bench((rows, 256), 4096, purpose),
            Self::Gpt256Wide => return gpt::bench((rows, 256), 50_257, purpose),
        };
        let (vit, batch, labels) = vit((width, heads), (image, patch), rows)?;
        let params = vit.params().clone();
        let model = if purpose == Use::Serve { vit.packed()? } else { vit };
        Ok(Bench { model: Box::new(model), params, batch, labels })
    }

    /// Arithmetic of the matrix products of one forward pass, in 10^9 operations; a training step has three times that.
    ///
    /// Per token and block `12 d^2` weights and two products with all tokens, 2 operations each; then the heads, and the
    /// patches of an image. `exits` is how many of them are computed.
    pub(crate) fn gflop(self, rows: usize, exits: usize) -> f64 {
        let (d, depth, tokens, patch, head) = match self {
            Self::Vit192 => (192., 12., 65., 48., 10. / 65.),
            Self::Vit384Small => (384., 12., 65., 48., 10. / 65.),
            Self::Vit384 => (384., 12., 197., 768., 10. / 197.),
            Self::Bert384 => (384., 12., 128., 0., 2. / 128.),
            Self::Gpt256 => (256., 8., 128., 0., 4096.),
            Self::Gpt256Long => (256., 8., 256., 0., 4096.),
            Self::Gpt256Wide => (256., 8., 256., 0., 50_257.),
        };
        let block = 12. * d * d + 2. * tokens * d;
        2. * (depth * block + patch * d + exits as f64 * head * d) * tokens * rows as f64 * 1e-9
    }
}

/// A ViT of 12 layers with `rows` random images and their labels.
pub(crate) fn vit(
    (width, heads): (usize, usize),
    (image, patch): (usize, usize),
    rows: usize,
) -> anyhow::Result<(Vit, Batch, Tensor)> {
    let config = VitConfig {
        image_size: image,
        patch_size: patch,
        hidden_size: width,
        num_hidden_layers: 12,
        num_attention_heads: heads,
        intermediate_size: 4 * width,
        num_labels: 10,
        ..Default::default()
    };
    let mut rng = init::rng(0);
    let pixels = init::normal(&mut rng, (rows, 3, image, image), 1., &Cpu)?;
    let labels = Tensor::from_iter((0..rows as u32).map(|i| i % 10), &Cpu)?;
    Ok((Vit::new(config, &mut rng, &Cpu)?, pixels.into(), labels))
}

/// What matrix products reach here at their best, in 10^9 operations a second, by a square one of 1024: the limit of
/// everything that is made of them.
pub(crate) fn gemm_gflops() -> anyhow::Result<f64> {
    let xs = Tensor::ones((1024, 1024), DType::F32, &Cpu)?;
    let mut best = f64::INFINITY;
    for _ in 0..10 {
        let start = std::time::Instant::now();
        ops::linear(&xs, &xs, None)?;
        best = best.min(start.elapsed().as_secs_f64());
    }
    Ok(2. * 1024f64.powi(3) * 1e-9 / best)
}

/// The most memory this process has held, from Linux.
pub(crate) fn peak_rss_mib() -> anyhow::Result<f64> {
    status_mib("VmHWM").context("no VmHWM")
}

/// Flags of every bench.
#[derive(Args)]
pub(crate) struct Timing {
    /// Time one case and print a line of JSON, instead of running criterion.
    #[arg(long)]
    json: bool,
    #[arg(long, default_value = "2")]
    pub(crate) threads: NonZeroUsize,
    #[arg(long, default_value_t = 2)]
    pub(crate) warmup: usize,
    #[arg(long, default_value_t = 5)]
    pub(crate) rounds: usize,
    /// What `cargo bench` passes on.
    #[arg(long)]
    bench: bool,
}

/// A bench's `main`: with `--json` one line of what `line` measures and `more` says, otherwise `criterion`.
#[allow(clippy::print_stdout, reason = "the line is the result")]
pub(crate) fn run<A: Parser + Sync>(
    timing: fn(&A) -> &Timing,
    line: fn(&A) -> anyhow::Result<Measured>,
    criterion: fn() -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    if !std::env::args().any(|arg| arg == "--json") {
        return in_pool(None, criterion);
    }
    let args = A::parse();
    let threads = timing(&args).threads;
    in_pool(Some(threads), || {
        let base_rss_mib = peak_rss_mib()?;
        let Measured { seconds, peak_rss_mib, more } = line(&args)?;
        let mut line = json!({
            "engine": concat!("layerwise ", env!("CARGO_PKG_VERSION")),
            "threads": threads,
            "median_s": median(&seconds),
            "seconds": seconds,
            "base_rss_mib": base_rss_mib,
            "peak_rss_mib": peak_rss_mib,
        });
        if let (Some(line), Value::Object(more)) = (line.as_object_mut(), more) {
            line.extend(more);
        }
        println!("{line}");
        Ok(())
    })
}

/// What one run of a bench has measured.
pub(crate) struct Measured {
    pub(crate) seconds: Vec<f64>,
    /// Before anything else was computed to be told beside it.
    pub(crate) peak_rss_mib: f64,
    /// Further keys of the line.
    pub(crate) more: Value,
}

/// Times `f` after a warm-up: the seconds of each round, and what the last call gave.
pub(crate) fn timed<T>(
    timing: &Timing,
    mut f: impl FnMut() -> anyhow::Result<T>,
) -> anyhow::Result<(Vec<f64>, T)> {
    for _ in 0..timing.warmup {
        f()?;
    }
    let mut seconds = Vec::new();
    loop {
        let start = std::time::Instant::now();
        let last = f()?;
        seconds.push(start.elapsed().as_secs_f64());
        if seconds.len() >= timing.rounds {
            return Ok((seconds, last));
        }
    }
}

pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    if sorted.len() % 2 == 1 { sorted[middle] } else { (sorted[middle - 1] + sorted[middle]) / 2. }
}
