//! A small GPT-2.

use candle_core::{Device::Cpu, Tensor};
use layerwise::{
    models::{Gpt2, Gpt2Config},
    ops::init,
};

use super::{Bench, Use};

/// The model and `rows` samples of so many tokens; every position has a label.
pub(super) fn bench(
    (rows, tokens): (usize, usize),
    vocabulary: usize,
    purpose: Use,
) -> anyhow::Result<Bench> {
    let config = Gpt2Config {
        vocab_size: vocabulary,
        n_positions: tokens,
        n_embd: 256,
        n_layer: 8,
        n_head: 4,
        resid_pdrop: 0.,
        embd_pdrop: 0.,
        attn_pdrop: 0.,
        ..Default::default()
    };
    let gpt2 = Gpt2::new(config, &mut init::rng(0), &Cpu)?;
    let params = gpt2.params().clone();
    let ids = |shift: usize| (0..rows * tokens).map(move |i| ((i + shift) * 7919 % vocabulary) as u32);
    let inputs = Tensor::from_iter(ids(0), &Cpu)?.reshape((rows, tokens))?;
    let labels = Tensor::from_iter(ids(1), &Cpu)?;
    let model = if purpose == Use::Serve { gpt2.packed()? } else { gpt2 };
    Ok(Bench { model: Box::new(model), params, batch: inputs.into(), labels })
}
