use std::sync::Arc;

use candle_core::{Result, Tensor, bail};

use crate::{
    gemm::{Mat, MatMut, Threads},
    host::{has_kernel, with_slices, with_values},
    linear::{linear, start},
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
    /// `x W^T + b` over the last dimension of `xs`; of a weight that is laid out, and nothing on a graph, by that layout.
    ///
    /// # Errors
    ///
    /// When the shapes do not fit.
    pub fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        let tracked = xs.track_op() || self.bias.is_some_and(Tensor::track_op);
        let Some(packed) = self.packed.filter(|_| has_kernel(xs) && !tracked) else {
            return linear(xs, self.weight, self.bias);
        };
        let (outputs, inputs) = self.weight.dims2()?;
        self.check("affine", "the map", (outputs, inputs))?;
        if xs.dims().last() != Some(&inputs) {
            bail!("affine: xs {:?}, weight {:?}", xs.dims(), self.weight.dims())
        }
        let (xs, bias) = (xs.contiguous()?, self.bias.map(Tensor::contiguous).transpose()?);
        let values: Vec<&Tensor> = [&xs].into_iter().chain(&bias).collect();
        let y = with_values(&values, |values| {
            let mut y = vec![0.; xs.elem_count() / inputs * outputs];
            let mut out = MatMut::rows(&mut y, outputs);
            let add = start(&mut out, values.get(1).copied());
            packed.0.product(out, add, Mat::rows(values[0], inputs), 1., Threads::All);
            Ok(y)
        })?;
        let mut dims = xs.dims().to_vec();
        if let Some(last) = dims.last_mut() {
            *last = outputs;
        }
        Tensor::from_vec(y, dims, xs.device())
    }

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
