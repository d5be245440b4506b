use candle_core::{Result, Tensor};

/// How [`cross_entropy`] sums up its rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reduction {
    /// `sum(w_i ce_i) / sum(w_i)` over the rows that are not ignored; without weights, their mean.
    #[default]
    Mean,
    /// `sum(w_i ce_i)`.
    Sum,
    /// One value a row, `w_i ce_i`.
    None,
}

/// Options of [`cross_entropy`]; the default is plain mean cross-entropy.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct CrossEntropy {
    /// Rows with this target count nothing.
    pub ignore_index: Option<u32>,
    /// In `[0, 1)`: the target distribution is `(1 - e)` on the label plus `e / classes` everywhere.
    pub label_smoothing: f64,
    /// Mean, sum, or one value a row.
    pub reduction: Reduction,
}

/// Cross-entropy of `logits` `(n, classes)` against `targets` `(n)`, u32, with optional row `weights` `(n)`.
///
/// # Errors
///
/// When shapes differ or a target is neither below `classes` nor the ignored index.
pub fn cross_entropy(
    logits: &Tensor,
    targets: &Tensor,
    weights: Option<&Tensor>,
    config: &CrossEntropy,
) -> Result<Tensor> {
    crate::plain::cross_entropy(logits, targets, weights, config)
}
