use serde::{Deserialize, Serialize};

/// Floating-point operations of a model's parts for one sample: a multiplication and an addition of a matrix product are two. Norms,
/// activations and sums are not counted; they are a few in a thousand.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Flops {
    /// Before block 1.
    pub embed: f64,
    /// One block.
    pub block: f64,
    /// One exit: norm and head.
    pub exit: f64,
}

impl Flops {
    /// A transformer block on so many tokens: `2 t (4 d^2 + 2 d m) + 4 t^2 d`.
    #[must_use]
    pub fn transformer_block(tokens: usize, width: usize, intermediate: usize) -> f64 {
        let (t, d, m) = (tokens as f64, width as f64, intermediate as f64);
        2. * t * (4. * d * d + 2. * d * m) + 4. * t * t * d
    }
}
