use candle_core::{Result, Tensor};

/// Layer norm over the last dimension: `(x - mean) / sqrt(var + eps) * weight + bias`.
///
/// `xs` is `(.., d)`, `weight` and `bias` are `(d)`.
///
/// # Errors
///
/// When the shapes do not fit.
pub fn layer_norm(xs: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    crate::plain::layer_norm(xs, weight, bias, eps)
}
