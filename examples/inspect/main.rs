//! What do the layers of a checkpoint do? See the README beside this file.

mod hidden;
mod measures;
mod show;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, Result};
use candle_core::{Device, Tensor};
use clap::Parser;
use layerwise::models::{Hidden, Tapped, Vit};
use layerwise_example_common::{
    CommonFlags, Results,
    checkpoint::{load_vit, model_names},
    flags::{LimitFlag, ModelFlag},
    input::Input,
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
struct Checkpoint {
    name: String,
    model: Vit,
    unexpected: Vec<String>,
    input: Input,
}

fn inspect(flags: &Flags, device: Device) -> Result<()> {
    // Both, before anything takes time.
    let (checkpoint, other) = open(flags, &device)?;
    let Checkpoint { model, input, .. } = &checkpoint;
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
        "tokens": flags.tokens, "measures": keys, "model": flags.model.model, "vit": model.config(), "preprocess": input.preprocess(),
        "other": flags.other, "other_vit": other.as_ref().map(|other| other.model.config()),
        "other_preprocess": other.as_ref().map(|other| other.input.preprocess()) });
    let mut results = Results::new("inspect", settings, flags.common.seed, &device);
    results.more.insert("unexpected_tensors".into(), json!(checkpoint.unexpected));

    let (samples, layers) = (input.samples(), model.depth() + 1);
    let (tokens, width) = (model.config().tokens(), model.config().hidden_size);
    let shape = if flags.tokens { vec![samples, tokens, width] } else { vec![samples, width] };
    let mut file = HiddenFile::create(&out, layers, &shape)?;
    let mut write = |layer, first, state: &Hidden, feature: &Tensor| {
        file.write(layer, first, if flags.tokens { &state.xs } else { feature })
    };
    let size = (samples, BATCH);
    let features = layers::features_with(model, input, size, &device, stop, &mut write)?;
    file.finish()?;

    let other = match other {
        Some(Checkpoint { name, model, unexpected, input }) => {
            let others = layers::features(&model, &input, size, &device, stop)?;
            let across = measures::across(&features, &others, &measures)?;
            Some(Other { name, unexpected, across })
        }
        None => None,
    };
    let inspected = Inspected {
        within: measures::within(&features, &measures)?,
        scores: layers::scores(model, &features, input)?.map(|(scores, _)| scores),
        name: checkpoint.name,
        other,
    };
    show::show(&out, &mut results, &checkpoint.input, &inspected)
}

/// The checkpoints of `--model` and `--other`.
fn open(flags: &Flags, device: &Device) -> Result<(Checkpoint, Option<Checkpoint>)> {
    let folders: Vec<&Path> = std::iter::once(&*flags.model.model).chain(flags.other.as_deref()).collect();
    let embedded = flags.input == Path::new("digits") && !flags.input.exists();
    let samples = (!embedded).then_some(&*flags.input);
    let limit = flags.limit.of_checkpoint(flags.common.preset);
    let open = |folder: &Path, name: String| -> Result<Checkpoint> {
        let (model, unexpected) = load_vit(folder, device)?;
        let input = Input::open(samples, limit, folder, model.config())?;
        Ok(Checkpoint { name, model, unexpected, input })
    };
    let names = model_names(&folders)?;
    let mut both = folders.into_iter().zip(names).map(|(folder, name)| open(folder, name));
    let first = both.next().context("--model")??;
    Ok((first, both.next().transpose()?))
}
