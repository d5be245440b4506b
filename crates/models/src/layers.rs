use candle_core::{Result, Tensor};
use layerwise_ops::{Affine, Norm, NormPlace, Packed};

/// `x W^T + b`.
#[derive(Clone, Debug)]
pub(crate) struct Linear {
    pub(crate) weight: Tensor,
    pub(crate) bias: Option<Tensor>,
    /// The weight laid out for products, of a model that only answers.
    packed: Option<Packed>,
}

impl Linear {
    pub(crate) fn new(weight: Tensor, bias: Option<Tensor>) -> Self {
        Self { weight, bias, packed: None }
    }

    /// As the operations take it.
    pub(crate) fn affine(&self) -> Affine<'_> {
        Affine { weight: &self.weight, bias: self.bias.as_ref(), packed: self.packed.as_ref() }
    }

    pub(crate) fn is_packed(&self) -> bool {
        self.packed.is_some()
    }

    /// Lays the weight out for products, as it is now.
    pub(crate) fn pack(&mut self) -> Result<()> {
        self.packed = Packed::new(&self.weight)?;
        Ok(())
    }

    pub(crate) fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        self.affine().forward(xs)
    }

    /// The same storage, recording no graph.
    pub(crate) fn detached(&self) -> Self {
        let Self { weight, bias, packed } = self;
        Self { weight: weight.detach(), bias: bias.as_ref().map(Tensor::detach), packed: packed.clone() }
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
    /// As the operations take it.
    pub(crate) fn norm(&self, place: NormPlace) -> Norm<'_> {
        Norm { weight: &self.weight, bias: &self.bias, eps: self.eps, place }
    }

    pub(crate) fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        layerwise_ops::layer_norm(xs, &self.weight, &self.bias, self.eps)
    }

    /// The same storage, recording no graph.
    pub(crate) fn detached(&self) -> Self {
        Self { weight: self.weight.detach(), bias: self.bias.detach(), eps: self.eps }
    }
}
