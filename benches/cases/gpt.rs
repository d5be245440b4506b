//! The shape of a small GPT-2: causal pre-norm blocks, a final norm and a head that is the word embedding once more.

use candle_core::{Device::Cpu, Result, Tensor};
use layerwise::{
    models::{Batch, Hidden, Pass, Tapped},
    ops::{self, Activation, Attention, NormPlace},
};

use super::{Bench, Use, weights::Weights};

const WIDTH: usize = 256;
const DEPTH: usize = 8;
const HEADS: usize = 4;
const TOKENS: usize = 128;
const VOCABULARY: usize = 4096;
const NORM: (f64, NormPlace) = (1e-5, NormPlace::Before);

struct Gpt(Weights);

/// The model and `rows` samples; every position has a label.
pub(super) fn bench(rows: usize, purpose: Use) -> anyhow::Result<Bench> {
    let mut weights = Weights::new();
    weights.matrix("words", VOCABULARY, WIDTH)?;
    weights.matrix("positions", TOKENS, WIDTH)?;
    for layer in 1..=DEPTH {
        weights.block(layer, WIDTH)?;
    }
    weights.norm("norm", WIDTH)?;
    let params = weights.params();
    if purpose == Use::Serve {
        weights.pack()?;
    }
    let ids = |shift: usize| (0..rows * TOKENS).map(move |i| ((i + shift) * 7919 % VOCABULARY) as u32);
    let inputs = Tensor::from_iter(ids(0), &Cpu)?.reshape((rows, TOKENS))?;
    let labels = Tensor::from_iter(ids(1), &Cpu)?;
    Ok(Bench { model: Box::new(Gpt(weights)), params, batch: inputs.into(), labels })
}

impl Tapped for Gpt {
    fn depth(&self) -> usize {
        DEPTH
    }

    fn embed(&self, batch: &Batch, _pass: Pass) -> Result<Hidden> {
        let positions = Tensor::arange(0, batch.inputs.dim(1)? as u32, &Cpu)?;
        let words = self.0.rows("words", &batch.inputs)?;
        Ok(Hidden { xs: words.broadcast_add(&self.0.rows("positions", &positions)?)?, mask: None })
    }

    fn block(&self, layer: usize, hidden: &Hidden, _pass: Pass) -> Result<Hidden> {
        let attention = Attention { causal: true, ..Attention::full(HEADS) };
        self.0.run_block(layer, hidden, NORM, attention, Activation::GeluTanh, |_| None)
    }

    fn feature(&self, hidden: &Hidden) -> Result<Tensor> {
        hidden.xs.flatten(0, 1)
    }

    fn exit(&self, _layer: usize, feature: &Tensor, _pass: Pass) -> Result<Tensor> {
        let norm = self.0.get_norm("norm", NORM);
        let xs = ops::layer_norm(feature, norm.weight, norm.bias, norm.eps)?;
        ops::linear(&xs, self.0.tensor("words"), None)
    }
}
