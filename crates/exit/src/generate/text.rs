use candle_core::Tensor;
use layerwise_models::{Decoder, KvCache, Next};
use layerwise_ops::init::ChaCha8Rng;

use super::sampling::{Drawn, Sampling};
use crate::{Error, Result};

/// Pieces of waiting states that are put together, so that there are never many.
const TOGETHER: usize = 64;

/// A text that is being written.
#[derive(Debug)]
pub(super) struct Text {
    /// Its number among all texts.
    pub(super) number: usize,
    /// Prompt and what was said.
    pub(super) ids: Vec<u32>,
    /// The last so many of them were not embedded yet.
    pub(super) unread: usize,
    /// Tokens that may yet be said.
    pub(super) left: usize,
    pub(super) cache: KvCache,
    /// For each block, states of tokens that have left before it, in their order: it reads them when a later token comes by.
    pub(super) waiting: Vec<Vec<Tensor>>,
    pub(super) sampling: Sampling,
    /// The id that ends it.
    pub(super) end: Option<u32>,
    pub(super) seed: u64,
    pub(super) rng: ChaCha8Rng,
}

impl Text {
    /// Ids that no block has seen, and the place of the first.
    pub(super) fn next(&self) -> (&[u32], usize) {
        let from = self.ids.len() - self.unread;
        (&self.ids[from..], from)
    }

    /// What a policy knows the next token by: seed and place, whatever other texts there are.
    pub(super) fn policy_key(&self) -> u64 {
        self.seed.rotate_left(32) ^ self.ids.len() as u64
    }

    /// What is drawn from the logits of the exit after `layer`.
    pub(super) fn drawn(&self, layer: usize, logits: &[f32]) -> Result<Drawn> {
        self.sampling.of(logits).ok_or(Error::NotFinite { layer, row: self.number })
    }

    /// Says a token; whether the text goes on.
    pub(super) fn say(&mut self, id: u32) -> bool {
        self.ids.push(id);
        self.left -= 1;
        // The last id is read before another can be said.
        self.left > 0 && Some(id) != self.end && self.ids.len() <= self.cache.longest()
    }

    /// Has states, the last rows of the text, wait for block `layer`.
    pub(super) fn wait(&mut self, layer: usize, rows: Tensor) -> Result<()> {
        let waiting = &mut self.waiting[layer - 1];
        waiting.push(rows);
        if waiting.len() == TOGETHER {
            *waiting = vec![Tensor::cat(waiting, 0)?];
        }
        Ok(())
    }
}

/// States of several texts, text after text.
#[derive(Clone, Debug)]
pub(super) struct Rows {
    /// `(all rows, width)`.
    pub(super) xs: Tensor,
    /// Rows of each text, at least 1.
    pub(super) counts: Vec<usize>,
}

impl Rows {
    /// `h^0` of what texts have not read.
    pub(super) fn embed<M: Decoder + ?Sized>(model: &M, texts: &[&mut Text]) -> Result<Self> {
        let parts: Vec<(&[u32], usize)> = texts.iter().map(|text| text.next()).collect();
        let counts = parts.iter().map(|(ids, _)| ids.len()).collect();
        Ok(Self { xs: model.embed_next(&parts)?, counts })
    }

    /// Of texts that each have some.
    pub(super) fn joined(parts: &[Tensor]) -> Result<Self> {
        let counts = parts.iter().map(|part| part.dim(0)).collect::<candle_core::Result<_>>()?;
        Ok(Self { xs: joined(parts)?, counts })
    }

    /// Behind those that wait for this block, which wait no more.
    pub(super) fn with_waiting(self, layer: usize, texts: &mut [&mut Text]) -> Result<Self> {
        if texts.iter().all(|text| text.waiting[layer - 1].is_empty()) {
            return Ok(self);
        }
        let mut parts = Vec::with_capacity(texts.len());
        for (text, part) in texts.iter_mut().zip(self.parts()?) {
            let mut all = std::mem::take(&mut text.waiting[layer - 1]);
            all.push(part);
            parts.push(joined(&all)?);
        }
        Self::joined(&parts)
    }

    /// The rows of each text.
    pub(super) fn parts(&self) -> Result<Vec<Tensor>> {
        if let [_] = self.counts.as_slice() {
            return Ok(vec![self.xs.clone()]);
        }
        let mut first = 0;
        let part = |&count: &usize| {
            first += count;
            self.xs.narrow(0, first - count, count)
        };
        Ok(self.counts.iter().map(part).collect::<candle_core::Result<_>>()?)
    }

    /// Through a block.
    pub(super) fn block<M: Decoder + ?Sized>(
        self,
        model: &M,
        layer: usize,
        texts: &mut [&mut Text],
    ) -> Result<Self> {
        let mut nexts: Vec<Next<'_>> = Vec::with_capacity(texts.len());
        for (text, &count) in texts.iter_mut().zip(&self.counts) {
            let from = text.cache.len(layer);
            nexts.push(Next { cache: &mut text.cache, from, count });
        }
        Ok(Self { xs: model.block_next(layer, &self.xs, &mut nexts)?, counts: self.counts })
    }

    /// The last rows of each text, so many of each.
    pub(super) fn last(&self, counts: &[usize]) -> Result<Tensor> {
        if self.counts == counts {
            return Ok(self.xs.clone());
        }
        let mut end = 0;
        let mut rows = Vec::with_capacity(counts.iter().sum());
        for (all, count) in self.counts.iter().zip(counts) {
            end += all;
            rows.extend(((end - count) as u32)..end as u32);
        }
        Ok(self.xs.contiguous()?.index_select(&Tensor::new(rows, self.xs.device())?, 0)?)
    }
}

/// Rows of all parts, one after the other.
pub(super) fn joined(parts: &[Tensor]) -> Result<Tensor> {
    match parts {
        [one] => Ok(one.clone()),
        parts => Ok(Tensor::cat(parts, 0)?),
    }
}

/// The texts at these places, which are in order.
pub(super) fn some_of<'a>(texts: &'a mut [&mut Text], places: &[usize]) -> Vec<&'a mut Text> {
    let mut places = places.iter().copied().peekable();
    let all = texts.iter_mut().enumerate();
    all.filter(|(at, _)| places.next_if_eq(at).is_some()).map(|(_, text)| &mut **text).collect()
}
