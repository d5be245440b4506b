use candle_core::{Result, Tensor};

/// `x W^T + b` over the last dimension.
///
/// `xs` is `(.., inputs)`, `weight` `(outputs, inputs)`, `bias` `(outputs)`; the result is `(.., outputs)`.
///
/// # Errors
///
/// When the shapes do not fit.
pub fn linear(xs: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    crate::plain::linear(xs, weight, bias)
}
