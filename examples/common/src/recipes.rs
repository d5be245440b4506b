//! Small vision transformers, and how they are trained.

use layerwise_models::VitConfig;
use layerwise_train::{AdamWConfig, Schedule, TrainConfig};

use crate::Preset;

/// A 12-layer ViT of width 48 for images of 8x8 pixels, in patches of 2x2.
#[must_use]
pub fn digits_vit() -> VitConfig {
    VitConfig {
        image_size: 8,
        patch_size: 2,
        num_channels: 1,
        hidden_size: 48,
        num_hidden_layers: 12,
        num_attention_heads: 3,
        intermediate_size: 192,
        num_labels: 10,
        ..Default::default()
    }
}

/// A 12-layer ViT for images of 32x32 pixels; with [`Preset::Paper`] as wide as the paper's DeiT-S, which has larger images.
#[must_use]
pub fn cifar10_vit(preset: Preset) -> VitConfig {
    let (patch_size, hidden_size, num_attention_heads) = match preset {
        Preset::Smoke => (8, 24, 2),
        Preset::Small => (4, 48, 3),
        Preset::Paper => (4, 384, 6),
    };
    VitConfig {
        image_size: 32,
        patch_size,
        hidden_size,
        num_attention_heads,
        intermediate_size: 4 * hidden_size,
        num_labels: 10,
        ..Default::default()
    }
}

/// Edge of the images that a checkpoint is fine-tuned on: few patches where time is short.
#[must_use]
pub fn fine_tuned_size(preset: Preset, made: &VitConfig) -> usize {
    match preset {
        Preset::Smoke => 2 * made.patch_size,
        Preset::Small => 4 * made.patch_size,
        Preset::Paper => made.image_size,
    }
}

/// How a pretrained model is fine-tuned; the objective is the caller's.
#[must_use]
pub fn fine_tuning_recipe(preset: Preset) -> TrainConfig {
    let (epochs, batch_size) = match preset {
        Preset::Smoke => (1, 48),
        Preset::Small => (2, 32),
        Preset::Paper => (20, 128),
    };
    TrainConfig {
        epochs,
        batch_size,
        optimiser: AdamWConfig { lr: 3e-5, ..Default::default() },
        schedule: Schedule::WarmupCosine { warmup: 0.1, floor: 0. },
        checkpoint_every: 200,
        ..Default::default()
    }
}

/// How the vision transformers of the experiments are trained from random weights; the objective is the caller's.
#[must_use]
pub fn cifar10_recipe(preset: Preset) -> TrainConfig {
    let one_cycle = |epochs, batch_size| TrainConfig {
        epochs,
        batch_size,
        optimiser: AdamWConfig { lr: 2e-3, ..Default::default() },
        schedule: Schedule::OneCycle,
        checkpoint_every: 200,
        ..Default::default()
    };
    match preset {
        Preset::Smoke => one_cycle(1, 48),
        Preset::Small => one_cycle(8, 64),
        // The paper's, but for the learning rate, which it gives as 0.1.
        Preset::Paper => TrainConfig {
            optimiser: AdamWConfig { lr: 5e-4, ..Default::default() },
            evaluate_every: 10,
            ..Default::default()
        },
    }
}
