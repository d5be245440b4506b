use candle_core::{Error, Result, Tensor, bail};
use layerwise_ops::{Activation, Attention, FeedForward, NormPlace, SelfAttention};

use crate::{
    Hidden, Next, Pass,
    layers::{LayerNorm, Linear},
};

/// A transformer block: `a = h + out(attention(norm(h)))`, then `a + down(act(up(norm(a))))`; or, where norms stand last,
/// `a = norm(h + out(attention(h)))`, then `norm(a + down(act(up(a))))`.
///
/// ViT's with the norms first, BERT's with the norms last; GPT-2's with the norms first, `causal` and the tanh GELU.
#[derive(Clone, Debug)]
pub struct Block {
    pub(crate) attention_norm: LayerNorm,
    pub(crate) query: Linear,
    pub(crate) key: Linear,
    pub(crate) value: Linear,
    pub(crate) attention_output: Linear,
    pub(crate) feed_norm: LayerNorm,
    pub(crate) up: Linear,
    pub(crate) down: Linear,
    pub(crate) settings: BlockSettings,
}

/// What a [`Block`] does besides its weights.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BlockSettings {
    pub(crate) norms: NormPlace,
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
        let BlockSettings { norms, heads, causal, activation, hidden_dropout, attention_dropout } =
            self.settings;
        let attention = Attention {
            heads,
            causal,
            key_mask: hidden.mask.as_ref(),
            dropout: pass.dropout_at(attention_dropout, layer, 0),
        };
        let attend = SelfAttention {
            norm: self.attention_norm.norm(norms),
            query: self.query.affine(),
            key: self.key.affine(),
            value: self.value.affine(),
            output: self.attention_output.affine(),
            attention,
            dropout: pass.dropout_at(hidden_dropout, layer, 1),
        };
        let feed = FeedForward {
            norm: self.feed_norm.norm(norms),
            up: self.up.affine(),
            down: self.down.affine(),
            activation,
            dropout: pass.dropout_at(hidden_dropout, layer, 2),
        };
        let xs = layerwise_ops::self_attention(&hidden.xs, &attend)?;
        Ok(Hidden { xs: layerwise_ops::feed_forward(&xs, &feed)?, mask: hidden.mask.clone() })
    }

    /// The next tokens of some texts, text after text, `(all new tokens, width)` to the same. Of causal blocks whose norms stand first.
    pub(crate) fn next(&self, layer: usize, xs: &Tensor, texts: &mut [Next<'_>]) -> Result<Tensor> {
        let BlockSettings { norms, heads, causal, activation, .. } = self.settings;
        let (rows, _) = xs.dims2()?;
        let counts: Vec<usize> = texts.iter().map(|text| text.count).collect();
        if counts.iter().sum::<usize>() != rows {
            bail!("block {layer}: {rows} states for {counts:?} new tokens")
        }
        texts.iter().try_for_each(|text| text.cache.check(layer, text.from, text.count))?;
        let xs = xs.detach();
        let normed = self.attention_norm.forward(&xs)?.detach();
        let [queries, keys, values] = [&self.query, &self.key, &self.value]
            .map(|map| Ok::<_, Error>(map.affine().forward(&normed)?.detach()));
        let (queries, keys, values) = (queries?, keys?, values?);
        let attention = Attention { causal, ..Attention::full(heads) };
        let (mut seen, mut first) = (Vec::with_capacity(texts.len()), 0);
        for Next { cache, count, .. } in texts {
            let of = |xs: &Tensor| xs.narrow(0, first, *count);
            let [keys, values] = cache.push(layer, &of(&keys)?, &of(&values)?)?;
            seen.push(
                layerwise_ops::attention(&of(&queries)?.unsqueeze(0)?, &keys, &values, &attention)?
                    .squeeze(0)?,
            );
            first += *count;
        }
        let seen = if seen.len() == 1 { seen.swap_remove(0) } else { Tensor::cat(&seen, 0)? };
        let xs = (xs + self.attention_output.affine().forward(&seen)?.detach())?;
        let feed = FeedForward {
            norm: self.feed_norm.norm(norms),
            up: self.up.affine(),
            down: self.down.affine(),
            activation,
            dropout: None,
        };
        Ok(layerwise_ops::feed_forward(&xs, &feed)?.detach())
    }

    /// The same storage, recording no graph.
    pub(crate) fn detached(&self) -> Self {
        Self {
            attention_norm: self.attention_norm.detached(),
            query: self.query.detached(),
            key: self.key.detached(),
            value: self.value.detached(),
            attention_output: self.attention_output.detached(),
            feed_norm: self.feed_norm.detached(),
            up: self.up.detached(),
            down: self.down.detached(),
            settings: self.settings,
        }
    }

    /// Lays the weights out for products, as they are now.
    pub(crate) fn pack(&mut self) -> Result<()> {
        let Self { query, key, value, attention_output, up, down, .. } = self;
        [query, key, value, attention_output, up, down].into_iter().try_for_each(Linear::pack)
    }
}
