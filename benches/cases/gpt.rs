//! GPT-2s without dropout.

use candle_core::Tensor;
use layerwise::{
    models::{Gpt2, Gpt2Config},
    ops::init,
};

use super::{Bench, Numbers, Use, device};

/// A model's shape.
#[derive(Clone, Copy)]
pub(super) struct Gpt {
    pub(super) width: usize,
    pub(super) layers: usize,
    pub(super) heads: usize,
    pub(super) tokens: usize,
    pub(super) vocabulary: usize,
}

/// What a laptop trains.
pub(super) const SMALL: Gpt = Gpt { width: 256, layers: 8, heads: 4, tokens: 128, vocabulary: 4096 };

impl Gpt {
    /// The model and `rows` samples; every position has a label.
    pub(super) fn bench(self, rows: usize, wanted: (Use, Numbers)) -> anyhow::Result<Bench> {
        let Self { width, layers, heads, tokens, vocabulary } = self;
        let config = Gpt2Config {
            vocab_size: vocabulary,
            n_positions: tokens,
            n_embd: width,
            n_layer: layers,
            n_head: heads,
            resid_pdrop: 0.,
            embd_pdrop: 0.,
            attn_pdrop: 0.,
            ..Default::default()
        };
        let device = device()?;
        let gpt2 = Gpt2::new(config, &mut init::rng(0), device)?;
        let ids = |shift: usize| (0..rows * tokens).map(move |i| ((i + shift) * 7919 % vocabulary) as u32);
        let inputs = Tensor::from_iter(ids(0), device)?.reshape((rows, tokens))?;
        let labels = Tensor::from_iter(ids(1), device)?;
        let (model, params) = ready!(gpt2, wanted);
        Ok(Bench { model, params, batch: inputs.into(), labels })
    }
}
