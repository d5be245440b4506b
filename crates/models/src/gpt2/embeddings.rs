use candle_core::Tensor;
use layerwise_ops::embedding;

use super::{Gpt2Config, POSITIONS, WORDS};
use crate::{
    Batch, Hidden, Pass, Result,
    builder::{Builder, Init},
    ids,
    transformer::Embed,
};

/// Ids to tokens: a learned row for each word and for its position, added up.
#[derive(Clone, Debug)]
pub struct Embeddings {
    /// `(vocabulary, width)`; the head, too.
    words: Tensor,
    /// `(most tokens, width)`.
    positions: Tensor,
    dropout: f64,
}

impl Embeddings {
    pub(crate) fn new(b: &mut Builder<'_>, config: &Gpt2Config) -> Result<Self> {
        let normal = Init::TruncNormal(config.initializer_range);
        Ok(Self {
            words: b.tensor(WORDS, (config.vocab_size, config.n_embd), normal)?,
            positions: b.tensor(POSITIONS, (config.n_positions, config.n_embd), normal)?,
            dropout: config.embd_pdrop,
        })
    }
}

impl Embed<Gpt2Config> for Embeddings {
    fn forward(&self, batch: &Batch, config: &Gpt2Config, pass: Pass) -> Result<Hidden> {
        let (_, tokens) = ids::checked(batch, config.n_positions, config.vocab_size)?;
        let xs = embedding(&batch.inputs, &self.words)?;
        let xs = xs.broadcast_add(&self.positions.narrow(0, 0, tokens)?)?;
        Ok(Hidden { xs: pass.dropout(&xs, self.dropout, 0, 0)?, mask: batch.mask.clone() })
    }

    fn detached(&self) -> Self {
        Self { words: self.words.detach(), positions: self.positions.detach(), dropout: self.dropout }
    }
}
