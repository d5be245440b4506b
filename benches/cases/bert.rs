//! A small BERT on padded samples.

use candle_core::{DType, Tensor};
use layerwise::{
    models::{Batch, Bert, BertConfig},
    ops::init,
};

use super::{Bench, Numbers, Use, device};

const TOKENS: usize = 128;

/// The model and `rows` samples, of which sample `i` has `128 - 8 (i mod 8)` tokens.
pub(super) fn bench(rows: usize, wanted: (Use, Numbers)) -> anyhow::Result<Bench> {
    let config = BertConfig {
        hidden_size: 384,
        num_hidden_layers: 12,
        num_attention_heads: 12,
        intermediate_size: 1536,
        ..Default::default()
    };
    let vocabulary = config.vocab_size;
    let device = device()?;
    let bert = Bert::new(config, &mut init::rng(0), device)?;
    let ids = (0..rows * TOKENS).map(|i| (i * 7919 % vocabulary) as u32);
    let mask = (0..rows * TOKENS).map(|i| u8::from(i % TOKENS < TOKENS - 8 * (i / TOKENS % 8)));
    let batch = Batch {
        inputs: Tensor::from_iter(ids, device)?.reshape((rows, TOKENS))?,
        mask: Some(Tensor::from_iter(mask, device)?.reshape((rows, TOKENS))?),
        token_types: Some(Tensor::zeros((rows, TOKENS), DType::U32, device)?),
    };
    let labels = Tensor::from_iter((0..rows as u32).map(|i| i % 2), device)?;
    let (model, params) = ready!(bert, wanted);
    Ok(Bench { model, params, batch, labels })
}
