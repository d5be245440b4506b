//! The same measures on candle tensors, `(n, d)`, of any device and float type.
//!
//! Tensors are read back to the host and measured there in f64, so results equal those of the `ndarray` functions.

use candle_core::{DType, Tensor};
use ndarray::{Array1, Array2, ArrayView2};

use crate::{Centring, Error, Estimator, Measure, Result};

/// [`cos`](crate::cos()) of two tensors `(n, d)`.
///
/// # Errors
///
/// As [`cos`](crate::cos()); [`Error::Candle`] when a tensor is not a float matrix.
///
/// # Example
///
/// ```
/// use candle_core::{Device::Cpu, Tensor};
/// use layerwise_similarity::{Centring, tensor};
///
/// let x = Tensor::new(&[[3f32, 4.], [1., 0.]], &Cpu)?;
/// assert_eq!(tensor::cos(&x, &(&x * 2.)?, Centring::None)?, 1.);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn cos(x: &Tensor, y: &Tensor, centring: Centring) -> Result<f64> {
    crate::cos(read(x)?.view(), read(y)?.view(), centring)
}

/// [`cos_per_sample`](crate::cos_per_sample) of two tensors `(n, d)`.
///
/// # Errors
///
/// As [`cos`].
pub fn cos_per_sample(x: &Tensor, y: &Tensor, centring: Centring) -> Result<Array1<f64>> {
    crate::cos_per_sample(read(x)?.view(), read(y)?.view(), centring)
}

/// [`cka`](crate::cka()) of tensors `(n, d)` and `(n, d')`.
///
/// # Errors
///
/// As [`cka`](crate::cka()); [`Error::Candle`] when a tensor is not a float matrix.
pub fn cka(x: &Tensor, y: &Tensor, estimator: Estimator) -> Result<f64> {
    crate::cka(read(x)?.view(), read(y)?.view(), estimator)
}

/// [`pairwise`](crate::pairwise()) of a stack of tensors `(n, d)`.
///
/// # Errors
///
/// As [`pairwise`](crate::pairwise()).
pub fn pairwise(layers: &[Tensor], measure: Measure) -> Result<Array2<f64>> {
    crate::pairwise(&views(&read_all(layers)?), measure)
}

/// [`pairwise_between`](crate::pairwise_between) of two stacks of tensors `(n, d)`.
///
/// # Errors
///
/// As [`pairwise_between`](crate::pairwise_between).
pub fn pairwise_between(left: &[Tensor], right: &[Tensor], measure: Measure) -> Result<Array2<f64>> {
    crate::pairwise_between(&views(&read_all(left)?), &views(&read_all(right)?), measure)
}

fn views(stack: &[Array2<f64>]) -> Vec<ArrayView2<'_, f64>> {
    stack.iter().map(|xs| xs.view()).collect()
}

fn read_all(stack: &[Tensor]) -> Result<Vec<Array2<f64>>> {
    stack.iter().map(read).collect()
}

fn read(xs: &Tensor) -> Result<Array2<f64>> {
    let candle = |e: candle_core::Error| Error::Candle(e.to_string());
    let shape = xs.dims2().map_err(candle)?;
    if !xs.dtype().is_float() {
        return Err(Error::Candle(format!("tensor of {:?}, expected a float type", xs.dtype())));
    }
    let values = xs.to_dtype(DType::F64).and_then(|xs| xs.flatten_all()?.to_vec1()).map_err(candle)?;
    Array2::from_shape_vec(shape, values).map_err(|e| Error::Candle(e.to_string()))
}
