use candle_core::Device;
use layerwise_models::{Vit, VitConfig};
use layerwise_ops::init;

/// A ViT of three blocks on images `(3, 8, 8)` of five classes: 5 tokens, width 12.
#[must_use]
pub fn tiny_vit_config() -> VitConfig {
    VitConfig {
        image_size: 8,
        patch_size: 4,
        hidden_size: 12,
        num_hidden_layers: 3,
        num_attention_heads: 3,
        intermediate_size: 20,
        num_labels: 5,
        // Wide enough that untrained exits differ.
        initializer_range: 0.5,
        ..VitConfig::default()
    }
}

/// A model of that shape, or of a change of it, with random weights from `seed`.
///
/// # Panics
///
/// When the shape does not fit itself.
#[must_use]
pub fn tiny_vit(config: VitConfig, seed: u64) -> Vit {
    Vit::new(config, &mut init::rng(seed), &Device::Cpu).expect("a valid configuration")
}
