//! The aligned loss over a large vocabulary, forward and backward: fused, as our operations on whole logits, and as stock candle computes it.
//!
//! ```sh
//! cargo bench --bench multi_exit_loss
//! cargo bench --bench multi_exit_loss -- --json --form fused --width 768 --exits 12 --tokens 2048
//! ```
//!
//! `benches/peers/loss_case.py` is the same in PyTorch. With `--json` one form is measured, and the memory of the process beside what inputs and gradients
//! take; the limit is that of the three matrix products at the speed of a square one.

mod cases;

use anyhow::{Context, Result};
use candle_core::{Tensor, Var, backprop::GradStore};
use clap::{Parser, ValueEnum};
use criterion::BenchmarkId;
use layerwise::ops::{self, MultiExit, init, multi_exit_linear_cross_entropy};
use layerwise_example_common::memory::status_mib;
use serde_json::json;

use self::cases::{Measured, Numbers, Peak, Timing, device, finished, gemm_gflops, timed};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Form {
    /// `multi_exit_linear_cross_entropy`.
    Fused,
    /// The same, no gradient.
    Forward,
    /// `linear` and `cross_entropy` of each exit.
    Logits,
    /// candle's own operations.
    Stock,
}

#[derive(Parser)]
struct Flags {
    #[command(flatten)]
    timing: Timing,
    #[arg(long, value_enum, default_value = "fused")]
    form: Form,
    #[arg(long, default_value_t = 384)]
    width: usize,
    #[arg(long, default_value_t = 50_257)]
    vocabulary: usize,
    #[arg(long, default_value_t = 6)]
    exits: usize,
    #[arg(long, default_value_t = 1024)]
    tokens: usize,
    /// Rows whose logits are in memory at once.
    #[arg(long)]
    chunk: Option<usize>,
    #[arg(long, value_enum, default_value_t)]
    dtype: Numbers,
}

fn main() -> Result<()> {
    cases::run::<Flags>(|flags| &flags.timing, line, bench)
}

struct Inputs {
    features: Vec<Var>,
    weight: Var,
    targets: Tensor,
    config: MultiExit,
}

impl Inputs {
    fn new(flags: &Flags) -> Result<Self> {
        let Flags { width, vocabulary, exits, tokens, chunk, dtype, .. } = *flags;
        dtype.choose();
        let (mut rng, device) = (init::rng(0), device()?);
        let mut normal = |shape, std| {
            Var::from_tensor(&init::normal(&mut rng, shape, std, device)?.to_dtype(dtype.dtype())?)
        };
        let depth = exits as f64;
        let config = MultiExit {
            exit_weights: (1..=exits).map(|l| 2. * l as f64 / (depth * (depth + 1.))).collect(),
            ..Default::default()
        };
        Ok(Self {
            features: (0..exits).map(|_| normal((tokens, width), 1.)).collect::<Result<_, _>>()?,
            weight: normal((vocabulary, width), 0.02)?,
            targets: Tensor::from_iter((0..tokens).map(|i| (i * 7919 % vocabulary) as u32), device)?,
            config: MultiExit { chunk: chunk.unwrap_or(config.chunk), ..config },
        })
    }

    fn step(&self, form: Form) -> Result<Option<GradStore>> {
        let Self { features, weight, targets, config } = self;
        let each = |loss: &dyn Fn(&Tensor) -> candle_core::Result<Tensor>| -> Result<Tensor> {
            let terms = features.iter().zip(&config.exit_weights).map(|(xs, weight)| loss(xs)? * *weight);
            let terms = terms.collect::<candle_core::Result<Vec<_>>>()?;
            terms.into_iter().map(Ok).reduce(|a, b| a? + b?).context("no exits")?.map_err(Into::into)
        };
        let loss = match form {
            Form::Forward => {
                let features: Vec<Tensor> = features.iter().map(|xs| xs.as_tensor().detach()).collect();
                multi_exit_linear_cross_entropy(&features, &weight.detach(), None, targets, None, config)?;
                return Ok(None);
            }
            Form::Fused => {
                let features: Vec<Tensor> = features.iter().map(|xs| xs.as_tensor().clone()).collect();
                multi_exit_linear_cross_entropy(&features, weight, None, targets, None, config)?.total
            }
            Form::Logits => each(&|xs| {
                ops::cross_entropy(&ops::linear(xs, weight, None)?, targets, None, &Default::default())
            })?,
            Form::Stock => each(&|xs| candle_nn::loss::cross_entropy(&xs.matmul(&weight.t()?)?, targets))?,
        };
        Ok(Some(match form {
            Form::Stock => loss.backward()?,
            _ => ops::backward(&loss)?,
        }))
    }
}

fn line(flags: &Flags) -> Result<Measured> {
    let base_rss_mib = status_mib("VmRSS").context("no VmRSS")?;
    let inputs = Inputs::new(flags)?;
    let (seconds, _) = timed(&flags.timing, || inputs.step(flags.form))?;
    let peak = Peak::now()?;
    let Flags { width, vocabulary, exits, tokens, dtype, .. } = *flags;
    let products = if flags.form == Form::Forward { 2. } else { 6. };
    let gflop = products * (exits * tokens * width) as f64 * vocabulary as f64 * 1e-9;
    let inputs_mib =
        ((vocabulary + exits * tokens) * width * dtype.dtype().size_in_bytes()) as f64 / f64::from(1 << 20);
    // Gradients are as large.
    let both = if flags.form == Form::Forward { 1. } else { 2. };
    let more = json!({ "form": format!("{:?}", flags.form).to_lowercase(), "width": width, "vocabulary": vocabulary, "exits": exits,
        "tokens": tokens, "dtype": dtype, "limit_s": gflop / gemm_gflops(dtype)?, "inputs_mib": inputs_mib,
        "extra_mib": peak.device_mib.unwrap_or(peak.rss_mib - base_rss_mib) - both * inputs_mib });
    Ok(Measured { seconds, peak, more })
}

fn bench() -> Result<()> {
    let mut criterion = cases::criterion(10, (3, 5));
    let mut group = criterion.benchmark_group("multi_exit_loss");
    // Of GPT-2 small on a GPU.
    let [exits, tokens, width, vocabulary] =
        if device()?.is_cuda() { [12, 2048, 768, 50_257] } else { [8, 512, 256, 4096] };
    for &dtype in Numbers::here()? {
        let flags =
            Flags { exits, tokens, width, vocabulary, dtype, ..Flags::parse_from(["multi_exit_loss"]) };
        let inputs = Inputs::new(&flags)?;
        for form in [Form::Fused, Form::Forward, Form::Logits, Form::Stock] {
            let size = format!("{exits}x{tokens}x{width}x{vocabulary}{}", dtype.in_name());
            group.bench_function(BenchmarkId::new(format!("{form:?}").to_lowercase(), size), |bencher| {
                bencher.iter(|| finished(|| inputs.step(form)).expect("a loss"));
            });
        }
    }
    group.finish();
    criterion.final_summary();
    Ok(())
}
