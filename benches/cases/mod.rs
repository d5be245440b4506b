//! What the benches measure: the model and batch that `benches/peers/` has in PyTorch too.

use candle_core::{Device::Cpu, Result, Tensor};
use layerwise::{
    models::{Batch, Vit, VitConfig},
    ops::init,
};

/// A ViT of d = 192, 12 layers, 3 heads, 65 tokens, with `rows` random images and their labels.
pub(crate) fn vit(rows: usize) -> Result<(Vit, Batch, Tensor)> {
    let config = VitConfig {
        image_size: 32,
        patch_size: 4,
        hidden_size: 192,
        num_hidden_layers: 12,
        num_attention_heads: 3,
        intermediate_size: 768,
        num_labels: 10,
        ..Default::default()
    };
    let mut rng = init::rng(0);
    let pixels = init::normal(&mut rng, (rows, 3, 32, 32), 1., &Cpu)?;
    let labels = Tensor::from_iter((0..rows as u32).map(|i| i % 10), &Cpu)?;
    let vit = Vit::new(config, &mut rng, &Cpu).map_err(candle_core::Error::wrap)?;
    Ok((vit, pixels.into(), labels))
}
