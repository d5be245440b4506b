use candle_core::{Result, Tensor};

/// `x/2 (1 + erf(x / sqrt 2))`, elementwise: `gelu` of Hugging Face configs.
///
/// # Errors
///
/// On integer tensors.
pub fn gelu(xs: &Tensor) -> Result<Tensor> {
    crate::plain::gelu(xs)
}

/// `x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))`, elementwise: `gelu_new` of Hugging Face configs.
///
/// # Errors
///
/// On integer tensors.
pub fn gelu_tanh(xs: &Tensor) -> Result<Tensor> {
    crate::plain::gelu_tanh(xs)
}
