use candle_core::{Result, Tensor};

/// `x W^T + b`.
#[derive(Clone, Debug)]
pub(crate) struct Linear {
    pub(crate) weight: Tensor,
    pub(crate) bias: Option<Tensor>,
}

impl Linear {
    pub(crate) fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        layerwise_ops::linear(xs, &self.weight, self.bias.as_ref())
    }

    /// The same storage, recording no graph.
    pub(crate) fn detached(&self) -> Self {
        Self { weight: self.weight.detach(), bias: self.bias.as_ref().map(Tensor::detach) }
    }
}

/// Layer norm with its weight, bias and epsilon.
#[derive(Clone, Debug)]
pub(crate) struct LayerNorm {
    pub(crate) weight: Tensor,
    pub(crate) bias: Tensor,
    pub(crate) eps: f64,
}

impl LayerNorm {
    pub(crate) fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        layerwise_ops::layer_norm(xs, &self.weight, &self.bias, self.eps)
    }

    /// The same storage, recording no graph.
    pub(crate) fn detached(&self) -> Self {
        Self { weight: self.weight.detach(), bias: self.bias.detach(), eps: self.eps }
    }
}
