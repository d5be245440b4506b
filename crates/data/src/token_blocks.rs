use std::collections::HashMap;

use candle_core::{Device, Tensor};

use crate::{Error, Result};

/// A corpus as ids, in blocks of one length, each to be told by what comes before.
///
/// ```
/// use candle_core::Device::Cpu;
/// use layerwise_data::TokenBlocks;
///
/// let blocks = TokenBlocks::new((0..8).collect(), 3)?; // 7 is only told, never read
/// assert_eq!(blocks.len(), 2);
/// let (inputs, next) = blocks.batch(&[1, 0], &Cpu)?;
/// assert_eq!(inputs.to_vec2::<u32>()?, [[3, 4, 5], [0, 1, 2]]);
/// assert_eq!(next.to_vec1::<u32>()?, [4, 5, 6, 1, 2, 3]);
/// # Ok::<(), layerwise_data::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenBlocks {
    ids: Vec<u32>,
    tokens: usize,
}

impl TokenBlocks {
    /// Blocks of `tokens`; what is left at the end is not used.
    ///
    /// # Errors
    ///
    /// [`Error::Setting`] for blocks of no tokens; [`Error::Empty`] for a corpus that is shorter than a block and its next token.
    pub fn new(ids: Vec<u32>, tokens: usize) -> Result<Self> {
        if tokens == 0 {
            let (value, expected) = ("0".to_owned(), "1 at least".to_owned());
            return Err(Error::Setting { field: "tokens", value, expected });
        }
        if ids.len() <= tokens {
            return Err(Error::Empty { what: format!("{} tokens in blocks of {tokens}", ids.len()) });
        }
        Ok(Self { ids, tokens })
    }

    /// Number of blocks, at least 1.
    #[must_use]
    #[allow(clippy::len_without_is_empty, reason = "there is always one")]
    pub fn len(&self) -> usize {
        (self.ids.len() - 1) / self.tokens
    }

    /// All ids.
    #[must_use]
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// Tokens of a block.
    #[must_use]
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Some blocks `(blocks, tokens)`, and the next token of each of their tokens `(blocks x tokens)`; u32 both.
    ///
    /// # Errors
    ///
    /// [`Error::Index`] for a block that is not there; [`Error::Empty`] for none.
    pub fn batch(&self, blocks: &[usize], device: &Device) -> Result<(Tensor, Tensor)> {
        let len = self.len();
        if let Some(&index) = blocks.iter().find(|block| **block >= len) {
            return Err(Error::Index { index, len });
        }
        if blocks.is_empty() {
            return Err(Error::Empty { what: "blocks of a batch".into() });
        }
        let of = |later: usize| {
            let block = |&block: &usize| &self.ids[block * self.tokens + later..][..self.tokens];
            blocks.iter().flat_map(block).copied().collect::<Vec<u32>>()
        };
        let inputs = Tensor::from_vec(of(0), (blocks.len(), self.tokens), device)?;
        Ok((inputs, Tensor::new(of(1), device)?))
    }
}

/// The ids that a text has most often, `most` of them at most, in order.
///
/// ```
/// assert_eq!(layerwise_data::most_frequent(&[7, 3, 9, 3, 7, 3, 5], 2), [3, 7]);
/// ```
#[must_use]
pub fn most_frequent(ids: &[u32], most: usize) -> Vec<u32> {
    let mut counts: HashMap<u32, usize> = HashMap::new();
    ids.iter().for_each(|id| *counts.entry(*id).or_default() += 1);
    let mut counts: Vec<(u32, usize)> = counts.into_iter().collect();
    counts.sort_unstable_by_key(|&(id, count)| (std::cmp::Reverse(count), id));
    let mut ids: Vec<u32> = counts.into_iter().take(most).map(|(id, _)| id).collect();
    ids.sort_unstable();
    ids
}
