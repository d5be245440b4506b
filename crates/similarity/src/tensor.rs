//! The same measures on candle tensors, `(n, d)`, of any device and float type.
//!
//! Tensors are read back to the host and measured there in f64, so results equal those of the `ndarray` functions.

use candle_core::{DType, Tensor};
use ndarray::{Array1, Array2, ArrayView2};

use crate::{Centring, Error, Estimator, Measure, Result, pairwise::in_layer};

/// [`cos`](crate::cos()) of two tensors `(n, d)`.
///
/// # Errors
///
/// As [`cos`](crate::cos()); [`Error::Tensor`] when a tensor is not a float matrix.
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
/// As [`cka`](crate::cka()); [`Error::Tensor`] when a tensor is not a float matrix.
pub fn cka(x: &Tensor, y: &Tensor, estimator: Estimator) -> Result<f64> {
    crate::cka(read(x)?.view(), read(y)?.view(), estimator)
}

/// [`pairwise`](crate::pairwise()) of a stack of tensors `(n, d)`.
///
/// # Errors
///
/// As [`pairwise`](crate::pairwise()).
pub fn pairwise(layers: &[Tensor], measure: Measure) -> Result<Array2<f64>> {
    crate::pairwise(&views(&read_all(layers, 0)?), measure)
}

/// [`pairwise_between`](crate::pairwise_between) of two stacks of tensors `(n, d)`.
///
/// # Errors
///
/// As [`pairwise_between`](crate::pairwise_between).
pub fn pairwise_between(left: &[Tensor], right: &[Tensor], measure: Measure) -> Result<Array2<f64>> {
    let (left, right) = (read_all(left, 0)?, read_all(right, left.len())?);
    crate::pairwise_between(&views(&left), &views(&right), measure)
}

fn views(stack: &[Array2<f64>]) -> Vec<ArrayView2<'_, f64>> {
    stack.iter().map(|xs| xs.view()).collect()
}

/// A stack whose layers count from `first`.
fn read_all(stack: &[Tensor], first: usize) -> Result<Vec<Array2<f64>>> {
    stack.iter().enumerate().map(|(i, xs)| in_layer(first + i, read(xs))).collect()
}

fn read(xs: &Tensor) -> Result<Array2<f64>> {
    let [n, width] = *xs.dims() else { return Err(no_matrix(xs)) };
    if !xs.dtype().is_float() {
        return Err(no_matrix(xs));
    }
    let values = xs.to_dtype(DType::F64).and_then(|xs| xs.flatten_all()?.to_vec1());
    let values = values.map_err(|e| Error::Candle(e.to_string()))?;
    Array2::from_shape_vec((n, width), values).map_err(|e| Error::Candle(e.to_string()))
}

fn no_matrix(xs: &Tensor) -> Error {
    Error::Tensor { shape: xs.dims().to_vec(), dtype: xs.dtype().as_str().into() }
}
