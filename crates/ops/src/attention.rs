use candle_core::{Result, Tensor};

use crate::Dropout;

/// What [`attention`] may look at.
#[derive(Clone, Copy, Debug)]
pub struct Attention<'a> {
    /// Number of heads; divides the width.
    pub heads: usize,
    /// Position `i` sees positions `0..=i` only (of the last `queries` keys, when there are more keys than queries).
    pub causal: bool,
    /// `(batch, keys)`, u8 or u32: 1 where a key may be seen, 0 where it is padding.
    pub key_mask: Option<&'a Tensor>,
    /// Dropout of the attention probabilities.
    pub dropout: Option<Dropout>,
}

impl Attention<'_> {
    /// Every position sees every position.
    #[must_use]
    pub fn full(heads: usize) -> Self {
        Self { heads, causal: false, key_mask: None, dropout: None }
    }
}

/// Multi-head scaled dot-product attention: per head `softmax(q k^T / sqrt(dim)) v`.
///
/// `q` is `(batch, queries, heads * dim)`, `k` and `v` are `(batch, keys, heads * dim)`; the result has the shape of `q`.
///
/// # Errors
///
/// When the shapes do not fit.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, config: &Attention<'_>) -> Result<Tensor> {
    crate::plain::attention(q, k, v, config)
}
