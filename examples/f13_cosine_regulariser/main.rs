//! Figure 13 of the paper: is a cosine regulariser enough? See the README beside this file.

use std::process::ExitCode;

use anyhow::Result;
use candle_core::Device;
use clap::Parser;
use layerwise::train::{LayerWeights, Objective};
use layerwise_example_common::{
    Results, hub,
    layerwise::{Layerwise, show},
    run_main,
    vision::{Plan, TrainFlags, Vision},
};

layerwise_example_common::fast_allocator!();

const NAME: &str = "f13_cosine_regulariser";

/// Trains with the last layer's loss, with a term for each layer's cosine to the last one beside it, and aligned.
#[derive(Parser)]
#[command(name = NAME)]
struct Flags {
    #[command(flatten)]
    train: TrainFlags,
    /// Weights of the regulariser.
    #[arg(long, value_name = "NUMBERS", value_delimiter = ',', default_value = "0.1,1,10")]
    betas: Vec<f64>,
}

fn main() -> ExitCode {
    let flags = Flags::parse();
    run_main(&flags.train.common, |device| f13(&flags, &device))
}

fn f13(flags: &Flags, device: &Device) -> Result<()> {
    let train = flags.train.clone().fetched(hub!())?;
    let vision = Vision::training(&train, device)?;
    let common = &train.common;
    let out = common.out_folder(NAME)?;
    let mut results = Results::new(NAME, vision.settings(), common.seed, device);
    let regularised = flags.betas.iter().map(|&beta| {
        let objective = Objective::CosineRegularised { beta, weights: LayerWeights::Linear };
        Plan::new(format!("CE-reg {beta}"), objective, common.seed)
    });
    let plans: Vec<Plan> = [Plan::standard(common.seed)]
        .into_iter()
        .chain(regularised)
        .chain([Plan::aligned(common.seed)])
        .collect();
    let models = vision.study(&plans)?.into_iter().map(Layerwise::of).collect::<Result<Vec<_>>>()?;
    let regulariser = "CE-reg adds beta sum_l lambda_l (1 - cos(h^l, h^L)) to the last layer's cross-entropy: it makes layers alike, but tells \
        none of them what the classifier wants.";
    let title = "A cosine regulariser beside the last layer's loss";
    show(&mut results, &out, title, &[&vision.about(), regulariser], &models)
}
