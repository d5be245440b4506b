//! What do the layers of a checkpoint do? See the README beside this file.

mod hidden;
mod measures;
mod show;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, Result, ensure};
use candle_core::{Device, Tensor};
use clap::Parser;
use layerwise::models::{Hidden, Pass};
use layerwise_example_common::{
    CommonFlags, Results,
    checkpoint::{Checkpoint, model_names},
    flags::{LimitFlag, ModelFlag},
    interrupt,
    layers::{self, Source},
    measures::NamedMeasure,
    run_main,
};
use serde_json::json;

use crate::{
    hidden::HiddenFile,
    show::{Inspected, Other},
};

layerwise_example_common::fast_allocator!();

/// Writes the hidden states of every layer of a ViT, DeiT or BERT checkpoint, and measures how alike its layers are.
#[derive(Parser)]
#[command(name = "inspect")]
struct Flags {
    #[command(flatten)]
    common: CommonFlags,
    #[command(flatten)]
    model: ModelFlag,
    /// For a ViT a folder of PNG and JPEG files, a folder of MNIST's or CIFAR-10's files (their test part), or `digits` (the part that the
    /// quickstart holds out); for a BERT a text file, one line a sample, a tab between the texts of a pair, or a folder of GLUE with the
    /// name of its task.
    #[arg(long, value_name = "DIR")]
    input: PathBuf,
    #[command(flatten)]
    limit: LimitFlag,
    /// Write the states of all tokens, not only those of the token that the prediction reads.
    #[arg(long)]
    tokens: bool,
    /// What to measure, separated by commas.
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_values = ["cos", "cka", "cka-debiased"])]
    measures: Vec<NamedMeasure>,
    /// A second checkpoint, whose layers are compared with the first one's on the same input.
    #[arg(long, value_name = "DIR")]
    other: Option<PathBuf>,
}

/// Samples that pass through the model at once.
const BATCH: usize = 16;

fn main() -> ExitCode {
    let flags = Flags::parse();
    run_main(&flags.common, |device| inspect(&flags, device))
}

/// A model, and samples as it takes them.
struct Opened {
    name: String,
    model: Checkpoint,
    unexpected: Vec<String>,
    input: Box<dyn Source>,
}

fn inspect(flags: &Flags, device: Device) -> Result<()> {
    // Both, before anything takes time.
    let (checkpoint, other) = open(flags, &device)?;
    let Opened { model, input, .. } = &checkpoint;
    let out = flags.common.out_folder("inspect")?;
    let stop = interrupt::stop_flag()?;
    let mut measures: Vec<NamedMeasure> = Vec::new();
    for named in &flags.measures {
        if !measures.contains(named) {
            measures.push(*named);
        }
    }
    let keys: Vec<_> = measures.iter().map(|named| named.key()).collect();
    let settings = json!({ "preset": flags.common.preset, "input": flags.input, "samples": input.samples(), "limit": flags.limit.of_checkpoint(flags.common.preset),
        "tokens": flags.tokens, "measures": keys, "model": flags.model.model, "model_config": model.config(), "preprocess": input.settings(),
        "other": flags.other, "other_config": other.as_ref().map(|other| other.model.config()),
        "other_preprocess": other.as_ref().map(|other| other.input.settings()) });
    let mut results = Results::new("inspect", settings, flags.common.seed, &device);
    results.more.insert("unexpected_tensors".into(), json!(checkpoint.unexpected));

    let (samples, layers) = (input.samples(), model.tapped().depth() + 1);
    let first = model.tapped().embed(&input.batch(0..1, &device)?, Pass::EVAL)?;
    let (_, tokens, width) = first.xs.dims3()?;
    let shape = if flags.tokens { vec![samples, tokens, width] } else { vec![samples, width] };
    let mut file = HiddenFile::create(&out, layers, &shape)?;
    let mut write = |layer, first, state: &Hidden, feature: &Tensor| {
        file.write(layer, first, &if flags.tokens { all_tokens(state)? } else { feature.clone() })
    };
    let size = (samples, BATCH);
    let features = layers::features_with(model.tapped(), &**input, size, &device, stop, &mut write)?;
    file.finish()?;

    let other = match other {
        Some(Opened { name, model, unexpected, input }) => {
            let others = layers::features(model.tapped(), &*input, size, &device, stop)?;
            let across = measures::across(&features, &others, &measures)?;
            Some(Other { name, unexpected, across })
        }
        None => None,
    };
    let inspected = Inspected {
        within: measures::within(&features, &measures)?,
        scores: layers::scores((model.tapped(), model.labels().len()), &features, &**input)?
            .map(|(scores, _)| scores),
        name: checkpoint.name,
        other,
    };
    show::show(&out, &mut results, &*checkpoint.input, &inspected)
}

/// The states of all tokens; those of padding are 0.
fn all_tokens(state: &Hidden) -> Result<Tensor> {
    match &state.mask {
        Some(mask) => Ok(state.xs.broadcast_mul(&mask.to_dtype(state.xs.dtype())?.unsqueeze(2)?)?),
        None => Ok(state.xs.clone()),
    }
}

/// The checkpoints of `--model` and `--other`.
fn open(flags: &Flags, device: &Device) -> Result<(Opened, Option<Opened>)> {
    let folders: Vec<&Path> = std::iter::once(&*flags.model.model).chain(flags.other.as_deref()).collect();
    let embedded = flags.input == Path::new("digits") && !flags.input.exists();
    let samples = (!embedded).then_some(&*flags.input);
    let limit = flags.limit.of_checkpoint(flags.common.preset);
    let open = |folder: &Path, name: String| -> Result<Opened> {
        let (model, unexpected) = Checkpoint::open(folder, device)?;
        let input = model.samples(folder, samples, limit, flags.tokens)?;
        Ok(Opened { name, model, unexpected, input })
    };
    let names = model_names(&folders)?;
    let mut both = folders.into_iter().zip(names).map(|(folder, name)| open(folder, name));
    let first = both.next().context("--model")??;
    let other = both.next().transpose()?;
    if let Some(other) = &other {
        ensure!(
            first.model.takes() == other.model.takes(),
            "{}: takes {}, and {} takes {}: nothing to compare on",
            other.name,
            other.model.takes(),
            first.name,
            first.model.takes()
        );
    }
    Ok((first, other))
}
