//! Figure 1's setting: a pretrained ViT, fine-tuned standard and aligned. See the README beside this file.

use std::process::ExitCode;

use anyhow::{Result, ensure};
use candle_core::Device;
use clap::Parser;
use layerwise_example_common::{
    Preset, Results, hub,
    layerwise::{Layerwise, show},
    run_main,
    vision::{TrainFlags, Vision},
};

layerwise_example_common::fast_allocator!();

const NAME: &str = "finetune_vit";

/// Fine-tunes a ViT or DeiT folder of Hugging Face's on CIFAR-10, with the loss of the last layer and aligned.
#[derive(Parser)]
#[command(name = NAME)]
struct Flags {
    #[command(flatten)]
    train: TrainFlags,
}

fn main() -> ExitCode {
    let flags = Flags::parse().train;
    run_main(&flags.common, |device| finetune(&flags.clone().fetched(hub!())?, &device))
}

fn finetune(flags: &TrainFlags, device: &Device) -> Result<()> {
    ensure!(
        flags.pretrained.is_some() || flags.common.preset == Preset::Smoke,
        "--pretrained DIR: expected a ViT or DeiT folder of Hugging Face's; only --preset smoke does without"
    );
    let vision = Vision::training(flags, device)?;
    let out = flags.common.out_folder(NAME)?;
    let mut results = Results::new(NAME, vision.settings(), flags.common.seed, device);
    let models = vision.standard_and_aligned()?.into_iter().map(Layerwise::of).collect::<Result<Vec<_>>>()?;
    show(&mut results, &out, "A pretrained ViT, fine-tuned standard and aligned", &[&vision.about()], &models)
}
