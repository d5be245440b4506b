use candle_core::{Result, Tensor};
use layerwise_ops::Attention;

use crate::{
    Activation, Hidden, Pass,
    layers::{LayerNorm, Linear},
};

/// A pre-norm transformer block: `a = h + out(attention(norm(h)))`, then `a + down(act(up(norm(a))))`.
///
/// ViT's as it stands; GPT-2's with `causal` and the tanh GELU.
#[derive(Clone, Debug)]
pub(crate) struct Block {
    pub(crate) norm_before: LayerNorm,
    pub(crate) query: Linear,
    pub(crate) key: Linear,
    pub(crate) value: Linear,
    pub(crate) attention_output: Linear,
    pub(crate) norm_after: LayerNorm,
    pub(crate) up: Linear,
    pub(crate) down: Linear,
    pub(crate) settings: BlockSettings,
}

/// What a [`Block`] does besides its weights.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BlockSettings {
    pub(crate) heads: usize,
    pub(crate) causal: bool,
    pub(crate) activation: Activation,
    /// Dropout of both updates to the residual stream.
    pub(crate) hidden_dropout: f64,
    /// Dropout of the attention probabilities.
    pub(crate) attention_dropout: f64,
}

impl Block {
    /// `(rows, tokens, width)` to the same; `layer` keeps the dropout masks of different blocks apart.
    pub(crate) fn forward(&self, layer: usize, hidden: &Hidden, pass: Pass) -> Result<Hidden> {
        let p = self.settings.hidden_dropout;
        let update =
            self.attend(layer, &self.norm_before.forward(&hidden.xs)?, hidden.mask.as_ref(), pass)?;
        let xs = (&hidden.xs + pass.dropout(&update, p, layer, 1)?)?;
        let update = self.up.forward(&self.norm_after.forward(&xs)?)?;
        let update = self.down.forward(&self.settings.activation.forward(&update)?)?;
        let xs = (&xs + pass.dropout(&update, p, layer, 2)?)?;
        Ok(Hidden { xs, mask: hidden.mask.clone() })
    }

    /// The same storage, recording no graph.
    pub(crate) fn detached(&self) -> Self {
        Self {
            norm_before: self.norm_before.detached(),
            query: self.query.detached(),
            key: self.key.detached(),
            value: self.value.detached(),
            attention_output: self.attention_output.detached(),
            norm_after: self.norm_after.detached(),
            up: self.up.detached(),
            down: self.down.detached(),
            settings: self.settings,
        }
    }

    fn attend(&self, layer: usize, xs: &Tensor, mask: Option<&Tensor>, pass: Pass) -> Result<Tensor> {
        let BlockSettings { heads, causal, attention_dropout, .. } = self.settings;
        let dropout = pass.dropout_at(attention_dropout, layer, 0);
        let config = Attention { heads, causal, key_mask: mask, dropout };
        let (q, k, v) = (self.query.forward(xs)?, self.key.forward(xs)?, self.value.forward(xs)?);
        self.attention_output.forward(&layerwise_ops::attention(&q, &k, &v, &config)?)
    }
}
