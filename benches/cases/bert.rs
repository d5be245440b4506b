//! The shape of a small BERT: post-norm blocks behind embeddings of words and positions, a head on `[CLS]`.

use candle_core::{Device::Cpu, Result, Tensor, bail};
use layerwise::{
    models::{Batch, Hidden, Pass, Tapped},
    ops::{self, Activation, Attention, NormPlace},
};

use super::{Bench, Use, weights::Weights};

const WIDTH: usize = 384;
const DEPTH: usize = 12;
const HEADS: usize = 12;
const TOKENS: usize = 128;
const VOCABULARY: usize = 30_522;
const DROPOUT: f64 = 0.1;
const NORM: (f64, NormPlace) = (1e-12, NormPlace::After);

struct Bert(Weights);

/// The model and `rows` samples, of which sample `i` has `128 - 8 (i mod 8)` tokens.
pub(super) fn bench(rows: usize, purpose: Use) -> anyhow::Result<Bench> {
    let mut weights = Weights::new();
    for (name, rows) in [("words", VOCABULARY), ("positions", 512), ("types", 2)] {
        weights.matrix(name, rows, WIDTH)?;
    }
    weights.norm("norm", WIDTH)?;
    for layer in 1..=DEPTH {
        weights.block(layer, WIDTH)?;
    }
    weights.linear("head", WIDTH, 2)?;
    let params = weights.params();
    if purpose == Use::Serve {
        weights.pack()?;
    }
    let ids = (0..rows * TOKENS).map(|i| (i * 7919 % VOCABULARY) as u32);
    let mask = (0..rows * TOKENS).map(|i| u8::from(i % TOKENS < TOKENS - 8 * (i / TOKENS % 8)));
    let batch = Batch {
        inputs: Tensor::from_iter(ids, &Cpu)?.reshape((rows, TOKENS))?,
        mask: Some(Tensor::from_iter(mask, &Cpu)?.reshape((rows, TOKENS))?),
        token_types: Some(Tensor::zeros((rows, TOKENS), candle_core::DType::U32, &Cpu)?),
    };
    let labels = Tensor::from_iter((0..rows as u32).map(|i| i % 2), &Cpu)?;
    Ok(Bench { model: Box::new(Bert(weights)), params, batch, labels })
}

impl Tapped for Bert {
    fn depth(&self) -> usize {
        DEPTH
    }

    fn embed(&self, batch: &Batch, pass: Pass) -> Result<Hidden> {
        let Some(types) = &batch.token_types else { bail!("no token types") };
        let positions = Tensor::arange(0, batch.inputs.dim(1)? as u32, &Cpu)?;
        let xs = (self.0.rows("words", &batch.inputs)? + self.0.rows("types", types)?)?;
        let xs = xs.broadcast_add(&self.0.rows("positions", &positions)?)?;
        let norm = self.0.get_norm("norm", NORM);
        let xs = ops::layer_norm(&xs, norm.weight, norm.bias, norm.eps)?;
        Ok(Hidden { xs: pass.dropout(&xs, DROPOUT, 0, 0)?, mask: batch.mask.clone() })
    }

    fn block(&self, layer: usize, hidden: &Hidden, pass: Pass) -> Result<Hidden> {
        let attention = Attention {
            key_mask: hidden.mask.as_ref(),
            dropout: pass.dropout_at(DROPOUT, layer, 0),
            ..Attention::full(HEADS)
        };
        self.0.run_block(layer, hidden, NORM, attention, Activation::Gelu, |site| {
            pass.dropout_at(DROPOUT, layer, site)
        })
    }

    fn feature(&self, hidden: &Hidden) -> Result<Tensor> {
        hidden.xs.narrow(1, 0, 1)?.squeeze(1)?.contiguous()
    }

    fn exit(&self, _layer: usize, feature: &Tensor, _pass: Pass) -> Result<Tensor> {
        let head = self.0.affine("head");
        ops::linear(feature, head.weight, head.bias)
    }
}
