use std::sync::Arc;

use candle_core::{Result, Tensor, bail};

use crate::{
    gemm::{Mat, Threads},
    host::{has_kernel, with_slices},
    panels::Panels,
};

/// A linear map `x W^T + b`.
#[derive(Clone, Copy, Debug)]
pub struct Affine<'a> {
    /// `(outputs, inputs)`.
    pub weight: &'a Tensor,
    /// `(outputs)`.
    pub bias: Option<&'a Tensor>,
    /// The weight once more, laid out for products; only of a weight that is not on a graph.
    pub packed: Option<&'a Packed>,
}

/// A layer norm `(x - mean) / sqrt(var + eps) * weight + bias` of one half of a transformer block.
#[derive(Clone, Copy, Debug)]
pub struct Norm<'a> {
    /// `(width)`.
    pub weight: &'a Tensor,
    /// `(width)`.
    pub bias: &'a Tensor,
    /// Added to the variance.
    pub eps: f64,
    /// Where it stands.
    pub place: NormPlace,
}

/// Where the norms of a transformer block stand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NormPlace {
    /// `x + f(norm(x))`: pre-norm, as in ViT and GPT-2.
    #[default]
    Before,
    /// `norm(x + f(x))`: post-norm, as in BERT.
    After,
}

/// A weight laid out for matrix products once, instead of at every one of them: for models that answer more than they learn.
///
/// It is a copy: what happens to the weight later is not seen.
#[derive(Clone)]
pub struct Packed(pub(crate) Arc<Panels>);

impl Packed {
    /// Lays out a `weight` `(outputs, inputs)`; nothing where there is no kernel for it, which is f32 on the CPU.
    ///
    /// # Errors
    ///
    /// When the weight is no matrix.
    pub fn new(weight: &Tensor) -> Result<Option<Self>> {
        let (outputs, inputs) = weight.dims2()?;
        if !has_kernel(weight) {
            return Ok(None);
        }
        let weight = weight.contiguous()?;
        let panels = with_slices([&weight], |[values]| {
            Ok(Panels::new(Mat::rows(values, inputs), outputs, inputs, Threads::All))
        })?;
        Ok(Some(Self(Arc::new(panels))))
    }
}

impl std::fmt::Debug for Packed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Packed").finish_non_exhaustive()
    }
}

impl Affine<'_> {
    pub(crate) fn check(&self, operation: &str, name: &str, (outputs, inputs): (usize, usize)) -> Result<()> {
        let bias = self.bias.map(Tensor::dims);
        if self.weight.dims() != [outputs, inputs] || bias.is_some_and(|bias| bias != [outputs]) {
            bail!(
                "{operation}: {name} has weight {:?} and bias {bias:?}, expected {outputs} times {inputs}",
                self.weight.dims()
            )
        }
        if self.packed.is_some() && self.weight.track_op() {
            bail!("{operation}: {name} is packed and on a graph; a layout does not follow what it learns")
        }
        match self.packed.map(|packed| packed.0.shape()) {
            Some(shape) if shape != (outputs, inputs) => {
                bail!("{operation}: {name} is packed as {shape:?}, expected {:?}", (outputs, inputs))
            }
            _ => Ok(()),
        }
    }

    pub(crate) fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        [self.weight].into_iter().chain(self.bias)
    }
}

impl Norm<'_> {
    pub(crate) fn check(&self, operation: &str, width: usize) -> Result<()> {
        let dims = [self.weight.dims(), self.bias.dims()];
        if dims != [[width], [width]] {
            bail!("{operation}: the norm has weight and bias {dims:?}, expected {width}")
        }
        Ok(())
    }

    pub(crate) fn tensors(&self) -> [&Tensor; 2] {
        [self.weight, self.bias]
    }
}
