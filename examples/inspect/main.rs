//! What do the layers of a checkpoint do? See the README beside this file.

mod hidden;
mod input;
mod matrices;
mod show;

use std::{
    num::NonZeroUsize,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::atomic::Ordering,
};

use anyhow::{Result, ensure};
use candle_core::{D, DType, Device, Tensor};
use clap::Parser;
use layerwise::{
    exit::LayerScores,
    models::{Batch, Error as ModelError, Head, LoadOptions, Loaded, Pass, Tapped, Vit, tap},
    ops::cross_entropy,
};
use layerwise_example_common::{
    CommonFlags, Preset, Progress, Results, flags::ModelFlag, interrupt, progress, run::Interrupted, run_main,
};
use serde_json::json;

use crate::{hidden::HiddenFile, input::Input, matrices::Matrices};

layerwise_example_common::fast_allocator!();

/// Writes the hidden states of every layer of a ViT or DeiT checkpoint, and measures how alike its layers are.
#[derive(Parser)]
#[command(name = "inspect")]
struct Flags {
    #[command(flatten)]
    common: CommonFlags,
    #[command(flatten)]
    model: ModelFlag,
    /// A folder of PNG and JPEG files, a folder of MNIST's or CIFAR-10's files (their test part), or `digits` (the part that the
    /// quickstart holds out).
    #[arg(long, value_name = "DIR")]
    input: PathBuf,
    /// The first so many samples only [default: all; 64 with --preset smoke].
    #[arg(long, value_name = "N")]
    limit: Option<NonZeroUsize>,
    /// Write the states of all tokens, not only those of the token that the prediction reads.
    #[arg(long)]
    tokens: bool,
}

/// Samples that pass through the model at once.
const BATCH: usize = 16;

fn main() -> ExitCode {
    let flags = Flags::parse();
    run_main(&flags.common, |device| inspect(&flags, device))
}

fn inspect(flags: &Flags, device: Device) -> Result<()> {
    let folder = &flags.model.model;
    let (model, unexpected) = load(folder, &device)?;
    if !unexpected.is_empty() {
        progress::line(&format!("{}: the model has no use for the tensors {unexpected:?}", folder.display()));
    }
    let smoke = (flags.common.preset == Preset::Smoke).then_some(64);
    let limit = flags.limit.map(NonZeroUsize::get).or(smoke);
    let input = Input::open(&flags.input, limit, folder, model.config())?;
    let out = flags.common.out_folder("inspect")?;
    let stop = interrupt::stop_flag()?;
    let settings = json!({ "preset": flags.common.preset, "model": folder, "input": flags.input,
        "limit": limit, "tokens": flags.tokens, "samples": input.len(), "vit": model.config(),
        "preprocess": input.preprocess() });
    let mut results = Results::new("inspect", settings, flags.common.seed, &device);
    results.more.insert("unexpected_tensors".into(), json!(unexpected));

    let (samples, layers) = (input.len(), model.depth() + 1);
    let (tokens, width) = (model.config().tokens(), model.config().hidden_size);
    let shape = if flags.tokens { vec![samples, tokens, width] } else { vec![samples, width] };
    let mut file = HiddenFile::create(&out, layers, &shape)?;
    let mut features: Vec<Vec<Tensor>> = vec![Vec::new(); layers];
    let mut bar = Progress::new("hidden states", samples as u64);
    for start in (0..samples).step_by(BATCH) {
        if stop.load(Ordering::Relaxed) {
            return Err(Interrupted("stopped; nothing was written").into());
        }
        let end = samples.min(start + BATCH);
        let batch = Batch::from(input.batch(start..end, &device)?);
        for (layer, state) in tap::hidden_states(&model, &batch, Pass::EVAL)?.iter().enumerate() {
            let feature = model.feature(state)?;
            for (row, values) in feature.to_vec2::<f32>()?.iter().enumerate() {
                let finite = values.iter().all(|x| x.is_finite());
                ensure!(finite, "layer {layer}: the state of {} is not finite", input.name(start + row));
            }
            file.write(layer, start, if flags.tokens { &state.xs } else { &feature })?;
            features[layer].push(feature);
        }
        bar.set(end as u64, "");
    }
    file.finish()?;
    bar.finish("done");

    let features: Vec<Tensor> =
        features.iter().map(|parts| Tensor::cat(parts, 0)).collect::<candle_core::Result<_>>()?;
    let matrices = Matrices::measure(&features)?;
    let scores = match input.labels(&device)? {
        Some(labels) if model.config().num_labels == input.classes() => {
            Some(score(&model, &features, &labels)?)
        }
        _ => None,
    };
    let name = folder.canonicalize()?.file_name().unwrap_or_default().to_string_lossy().into_owned();
    progress::print(&show::table(&matrices, scores.as_ref()).to_string());
    show::write(&out, &mut results, &name, &input, &matrices, scores.as_ref())?;
    progress::print(&format!("\nhidden.safetensors, results and report.html are in {}\n", out.display()));
    Ok(())
}

/// The model, without a classifier where the checkpoint has none, and the tensors that it has no use for; a pooler is none.
fn load(folder: &Path, device: &Device) -> Result<(Vit, Vec<String>)> {
    let Loaded { model, mut unexpected, .. } = match Vit::load_with(folder, &LoadOptions::default(), device) {
        Err(ModelError::Tensors { missing, shapes, .. })
            if shapes.is_empty() && missing.iter().all(|name| name.starts_with("classifier.")) =>
        {
            let options = LoadOptions { head: Head::None, ..Default::default() };
            Vit::load_with(folder, &options, device)?
        }
        loaded => loaded?,
    };
    unexpected.retain(|name| !name.starts_with("vit.pooler."));
    Ok((model.frozen(), unexpected))
}

/// Accuracy and loss of the exit after each layer `1..=L`.
fn score(model: &Vit, features: &[Tensor], labels: &Tensor) -> Result<LayerScores> {
    let mut scores = LayerScores { samples: labels.elem_count(), ..Default::default() };
    for (layer, feature) in features.iter().enumerate().skip(1) {
        let logits = model.exit(layer, feature)?;
        let hits = logits.argmax(D::Minus1)?.eq(labels)?.to_dtype(DType::F64)?;
        scores.accuracy.push(hits.mean_all()?.to_scalar()?);
        let loss = cross_entropy(&logits, labels, None, &Default::default())?;
        scores.loss.push(f64::from(loss.to_scalar::<f32>()?));
    }
    Ok(scores)
}
