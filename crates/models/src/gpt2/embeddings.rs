use candle_core::{Device, Tensor};
use layerwise_ops::embedding;

use super::{Gpt2Config, POSITIONS, WORDS};
use crate::{
    Batch, Error, Hidden, Pass, Result,
    builder::{Builder, Init},
    ids,
    transformer::Embed,
};

/// Ids to tokens: a learned row for each word and for its position, added up.
#[derive(Clone, Debug)]
pub struct Embeddings {
    /// `(vocabulary, width)`; the head, too.
    pub(super) words: Tensor,
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

impl Embeddings {
    pub(crate) fn device(&self) -> &Device {
        self.words.device()
    }

    /// Of the next tokens of some texts, text after text, each with the place of its first: `(all tokens, width)`, no graph.
    pub(crate) fn next(&self, texts: &[(&[u32], usize)], config: &Gpt2Config) -> Result<Tensor> {
        let longest = config.n_positions;
        let (mut ids, mut places) = (Vec::new(), Vec::new());
        for (text, from) in texts {
            if text.is_empty() || from.saturating_add(text.len()) > longest {
                let found = format!("{} tokens from place {from}", text.len());
                return Err(Error::Inputs {
                    found,
                    expected: format!("at least one, before place {longest}"),
                });
            }
            ids.extend_from_slice(text);
            places.extend((*from..from + text.len()).map(|place| place as u32));
        }
        if ids.is_empty() {
            return Err(Error::Inputs { found: "no text".into(), expected: "texts".into() });
        }
        let (ids, places) = (Tensor::new(ids, self.device())?, Tensor::new(places, self.device())?);
        ids::within("inputs", &ids, config.vocab_size)?;
        let rows = embedding(&ids, &self.words.detach())? + embedding(&places, &self.positions.detach())?;
        Ok(rows?.detach())
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
