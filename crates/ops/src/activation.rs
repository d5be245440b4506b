use candle_core::{Result, Tensor};

use crate::{Affine, simd};

/// The nonlinearity of [`feed_forward`](crate::feed_forward).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Activation {
    /// `x/2 (1 + erf(x / sqrt 2))`.
    #[default]
    Gelu,
    /// `x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))`.
    GeluTanh,
    /// `max(x, 0)`; its derivative at 0 is 0 in a sublayer, as PyTorch's, and 1 in candle's own operation.
    Relu,
    /// `x / (1 + exp(-x))`.
    Silu,
}

impl Activation {
    /// The activation of `xs`, elementwise.
    ///
    /// # Errors
    ///
    /// On integer tensors.
    pub fn forward(self, xs: &Tensor) -> Result<Tensor> {
        #[cfg(feature = "cuda")]
        if crate::cuda::has_kernel([xs]) {
            return crate::cuda::activation(self, xs, None);
        }
        match self {
            Self::Gelu => crate::gelu(xs),
            Self::GeluTanh => crate::gelu_tanh(xs),
            Self::Relu => xs.relu(),
            Self::Silu => xs.silu(),
        }
    }

    /// Of a linear map; on CUDA the bias is added in the same pass.
    pub(crate) fn of_linear(self, xs: &Tensor, map: &Affine<'_>) -> Result<Tensor> {
        #[cfg(feature = "cuda")]
        if let Some(bias) = map.bias.filter(|bias| {
            map.weight.dims().first().copied() == Some(bias.elem_count())
                && crate::cuda::has_kernel([xs, map.weight, bias])
        }) {
            return crate::cuda::activation(self, &crate::linear(xs, map.weight, None)?, Some(bias));
        }
        self.forward(&crate::linear(xs, map.weight, map.bias)?)
    }

    pub(crate) fn rows(self, x: &[f32], y: &mut [f32]) {
        match self {
            Self::Gelu => simd::gelu(x, y),
            Self::GeluTanh => simd::gelu_tanh(x, y),
            Self::Relu => simd::relu(x, y),
            Self::Silu => simd::silu(x, y),
        }
    }

    /// Values into `y`, and in place of `x` the derivatives.
    pub(crate) fn values_and_slopes(self, x: &mut [f32], y: &mut [f32]) {
        match self {
            Self::Gelu => simd::gelu_and_slope(x, y),
            Self::GeluTanh => simd::gelu_tanh_and_slope(x, y),
            Self::Relu => simd::relu_and_slope(x, y),
            Self::Silu => simd::silu_and_slope(x, y),
        }
    }
}
