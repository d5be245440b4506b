//! What do the layers of a checkpoint do? See the README beside this file.

mod hidden;
mod measures;
mod show;

use std::{num::NonZeroUsize, path::PathBuf, process::ExitCode};

use anyhow::Result;
use candle_core::{Device, Tensor};
use clap::Parser;
use layerwise::models::{Hidden, Tapped};
use layerwise_example_common::{
    CommonFlags, Preset, Results,
    checkpoint::{load_vit, model_name},
    flags::ModelFlag,
    input::Input,
    interrupt,
    layers::{self, Source},
    progress, run_main,
};
use serde_json::json;

use crate::{hidden::HiddenFile, measures::Named, show::Inspected};

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
    /// What to measure, separated by commas.
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_values = ["cos", "cka", "cka-debiased"])]
    measures: Vec<Named>,
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

fn inspect(flags: &Flags, device: Device) -> Result<()> {
    let folder = &flags.model.model;
    let (model, unexpected) = load_vit(folder, &device)?;
    if !unexpected.is_empty() {
        progress::line(&format!("{}: the model has no use for the tensors {unexpected:?}", folder.display()));
    }
    let smoke = (flags.common.preset == Preset::Smoke).then_some(64);
    let limit = flags.limit.map(NonZeroUsize::get).or(smoke);
    let input = Input::open(&flags.input, limit, folder, model.config())?;
    let out = flags.common.out_folder("inspect")?;
    let stop = interrupt::stop_flag()?;
    let settings = json!({ "preset": flags.common.preset, "model": folder, "input": flags.input,
        "limit": limit, "tokens": flags.tokens,
        "measures": flags.measures.iter().map(|named| named.key()).collect::<Vec<_>>(), "other": flags.other, "samples": input.samples(), "vit": model.config(),
        "preprocess": input.preprocess() });
    let mut results = Results::new("inspect", settings, flags.common.seed, &device);
    results.more.insert("unexpected_tensors".into(), json!(unexpected));

    let (samples, layers) = (input.samples(), model.depth() + 1);
    let (tokens, width) = (model.config().tokens(), model.config().hidden_size);
    let shape = if flags.tokens { vec![samples, tokens, width] } else { vec![samples, width] };
    let mut file = HiddenFile::create(&out, layers, &shape)?;
    let mut write = |layer, first, state: &Hidden, feature: &Tensor| {
        file.write(layer, first, if flags.tokens { &state.xs } else { feature })
    };
    let features = layers::features(&model, &input, (samples, BATCH), &device, stop, &mut write)?;
    file.finish()?;

    let other = match &flags.other {
        Some(folder) => {
            let (model, _) = load_vit(folder, &device)?;
            let input = Input::open(&flags.input, limit, folder, model.config())?;
            let mut ignore = |_, _, _: &_, _: &_| Ok(());
            let others = layers::features(&model, &input, (samples, BATCH), &device, stop, &mut ignore)?;
            Some((model_name(folder)?, measures::across(&features, &others, &flags.measures)?))
        }
        None => None,
    };
    let inspected = Inspected {
        name: model_name(folder)?,
        within: measures::within(&features, &flags.measures)?,
        scores: layers::scores(&model, &features, &input)?.map(|(scores, _)| scores),
        other,
    };
    show::show(&out, &mut results, &input, &inspected)
}
