use candle_core::{DType, Tensor};
use layerwise_ops::embedding;

use super::BertConfig;
use crate::{
    Batch, Hidden, Pass, Result,
    builder::{Builder, Init},
    ids::{self, fits, within},
    layers::LayerNorm,
    transformer::Embed,
};

/// Ids to tokens: a learned row for each word, for its position and for its segment, added up and normed.
#[derive(Clone, Debug)]
pub struct Embeddings {
    /// `(vocabulary, width)`.
    words: Tensor,
    /// `(most tokens, width)`.
    positions: Tensor,
    /// `(segments, width)`.
    types: Tensor,
    norm: LayerNorm,
    dropout: f64,
}

impl Embeddings {
    pub(crate) fn new(b: &mut Builder<'_>, config: &BertConfig) -> Result<Self> {
        let normal = Init::TruncNormal(config.initializer_range);
        let width = config.hidden_size;
        let mut table = |name: &str, rows: usize| {
            b.tensor(&format!("bert.embeddings.{name}_embeddings.weight"), (rows, width), normal)
        };
        Ok(Self {
            words: table("word", config.vocab_size)?,
            positions: table("position", config.max_position_embeddings)?,
            types: table("token_type", config.type_vocab_size)?,
            norm: b.layer_norm("bert.embeddings.LayerNorm", width, config.layer_norm_eps)?,
            dropout: config.hidden_dropout_prob,
        })
    }
}

impl Embed<BertConfig> for Embeddings {
    fn forward(&self, batch: &Batch, config: &BertConfig, pass: Pass) -> Result<Hidden> {
        let (rows, tokens) = ids::checked(batch, config.max_position_embeddings, config.vocab_size)?;
        let types = match &batch.token_types {
            Some(types) => {
                fits(types, DType::U32, (rows, tokens))?;
                within("token_types", types, config.type_vocab_size)?;
                embedding(types, &self.types)?
            }
            None => self.types.narrow(0, 0, 1)?.unsqueeze(0)?,
        };
        let xs = embedding(&batch.inputs, &self.words)?.broadcast_add(&types)?;
        let xs = xs.broadcast_add(&self.positions.narrow(0, 0, tokens)?)?;
        let xs = self.norm.forward(&xs)?;
        Ok(Hidden { xs: pass.dropout(&xs, self.dropout, 0, 0)?, mask: batch.mask.clone() })
    }

    fn detached(&self) -> Self {
        Self {
            words: self.words.detach(),
            positions: self.positions.detach(),
            types: self.types.detach(),
            norm: self.norm.detached(),
            dropout: self.dropout,
        }
    }
}
