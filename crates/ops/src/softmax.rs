use candle_core::{Result, Tensor};

/// Softmax over the last dimension.
///
/// # Errors
///
/// When `xs` is a scalar.
pub fn softmax(xs: &Tensor) -> Result<Tensor> {
    crate::plain::softmax(xs)
}
