//! What the benches measure: the models and batches that `benches/peers/` has in PyTorch too.

#![allow(dead_code, reason = "each bench uses its part")]

/// A model for its purpose and its parameters, of these numbers; in 16 bits they know their f32 masters.
macro_rules! ready {
    ($model:expr, $wanted:expr) => {{
        let (model, (purpose, numbers)) = ($model, $wanted);
        let model = match numbers.dtype() {
            candle_core::DType::F32 => model,
            dtype => model.mixed(dtype)?,
        };
        let params = model.params().clone();
        let model = if purpose == $crate::cases::Use::Serve { model.packed()? } else { model };
        (Box::new(model), params)
    }};
}

mod bert;
mod device;
pub(crate) mod drawn;
mod gpt;

use std::{num::NonZeroUsize, time::Duration};

use anyhow::{Context, ensure};
use candle_core::Tensor;
use clap::{Args, Parser, ValueEnum};
use criterion::Criterion;
use layerwise::{
    models::{Batch, Params, Tapped, Vit, VitConfig},
    ops::{self, init},
};
use layerwise_example_common::{flags::DeviceFlag, in_pool, memory::status_mib};
use serde_json::{Value, json};

pub(crate) use self::device::{Numbers, Peak, device, finished};
use self::gpt::{Gpt, SMALL};

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
    /// GPT-2 small: d = 768, 12 layers, 12 heads, 256 tokens, 50,257 words. For a GPU.
    #[value(name = "gpt_768")]
    Gpt768,
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
    /// What is trained to be measured on this device: all but the largest, or those that fill a GPU.
    pub(crate) fn trained() -> anyhow::Result<Vec<Self>> {
        let large = [Self::Vit384, Self::Bert384, Self::Gpt768];
        Ok(if device()?.is_cuda() {
            large.to_vec()
        } else {
            Self::value_variants().iter().copied().filter(|case| *case != Self::Gpt768).collect()
        })
    }

    pub(crate) fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }

    pub(crate) fn depth(self) -> usize {
        if matches!(self, Self::Gpt256 | Self::Gpt256Long | Self::Gpt256Wide) { 8 } else { 12 }
    }

    /// Samples of a training step on this device.
    pub(crate) fn train_batch(self) -> anyhow::Result<usize> {
        Ok(match (self, device()?.is_cuda()) {
            (Self::Vit384, true) => 256,
            (Self::Bert384, true) => 64,
            (Self::Vit192, _) => 32,
            (Self::Vit384Small, _) => 16,
            _ => 8,
        })
    }

    /// The model, with parameters of these numbers, and `rows` samples.
    pub(crate) fn load(self, rows: usize, purpose: Use, numbers: Numbers) -> anyhow::Result<Bench> {
        ensure!(Numbers::here()?.contains(&numbers), "{numbers:?}: expected {:?} here", Numbers::here()?);
        numbers.choose();
        let wanted = (purpose, numbers);
        let (width, heads, image, patch) = match self {
            Self::Vit192 => (192, 3, 32, 4),
            Self::Vit384Small => (384, 6, 32, 4),
            Self::Vit384 => (384, 6, 224, 16),
            Self::Bert384 => return bert::bench(rows, wanted),
            Self::Gpt256 => return SMALL.bench(rows, wanted),
            Self::Gpt256Long => return Gpt { tokens: 256, ..SMALL }.bench(rows, wanted),
            Self::Gpt256Wide => {
                return Gpt { tokens: 256, vocabulary: 50_257, ..SMALL }.bench(rows, wanted);
            }
            Self::Gpt768 => {
                let gpt = Gpt { width: 768, layers: 12, heads: 12, tokens: 256, vocabulary: 50_257 };
                return gpt.bench(rows, wanted);
            }
        };
        let (vit, batch, labels) = vit((width, heads), (image, patch), rows)?;
        let (model, params) = ready!(vit, wanted);
        Ok(Bench { model, params, batch, labels })
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
            Self::Gpt768 => (768., 12., 256., 0., 50_257.),
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
    let (mut rng, device) = (init::rng(0), device()?);
    let pixels = init::normal(&mut rng, (rows, 3, image, image), 1., device)?;
    let labels = Tensor::from_iter((0..rows as u32).map(|i| i % 10), device)?;
    Ok((Vit::new(config, &mut rng, device)?, pixels.into(), labels))
}

/// What matrix products reach here at their best, in 10^9 operations a second, by a square one of 1024 (on a GPU 8192): the
/// limit of everything that is made of them.
pub(crate) fn gemm_gflops(numbers: Numbers) -> anyhow::Result<f64> {
    numbers.choose();
    let n = if device()?.is_cuda() { 8192 } else { 1024 };
    let xs = Tensor::ones((n, n), numbers.dtype(), device()?)?;
    let mut best = f64::INFINITY;
    for _ in 0..10 {
        let start = std::time::Instant::now();
        finished(|| Ok(ops::linear(&xs, &xs, None)?))?;
        best = best.min(start.elapsed().as_secs_f64());
    }
    Ok(2. * (n as f64).powi(3) * 1e-9 / best)
}

/// Criterion with so many samples, and seconds to warm up and to measure a case, where its flags say nothing else.
pub(crate) fn criterion(samples: usize, (warm_up, measured): (u64, u64)) -> Criterion {
    let criterion = Criterion::default().sample_size(samples).warm_up_time(Duration::from_secs(warm_up));
    criterion.measurement_time(Duration::from_secs(measured)).configure_from_args()
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
        let Measured { seconds, peak, more } = line(&args)?;
        let mut line = json!({
            "engine": concat!("layerwise ", env!("CARGO_PKG_VERSION")),
            "threads": threads,
            "median_s": median(&seconds),
            "seconds": seconds,
            "base_rss_mib": base_rss_mib,
            "peak_rss_mib": peak.rss_mib,
            "device": DeviceFlag::from_env()?.to_string(),
            "peak_device_mib": peak.device_mib,
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
    pub(crate) peak: Peak,
    /// Further keys of the line.
    pub(crate) more: Value,
}

/// Times `f` after a warm-up: the seconds of each round, and what the last call gave.
pub(crate) fn timed<T>(
    timing: &Timing,
    mut f: impl FnMut() -> anyhow::Result<T>,
) -> anyhow::Result<(Vec<f64>, T)> {
    for _ in 0..timing.warmup {
        finished(&mut f)?;
    }
    let mut seconds = Vec::new();
    loop {
        let start = std::time::Instant::now();
        let last = finished(&mut f)?;
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
