use candle_core::{DType, Result, Tensor};
use rayon::prelude::*;

use crate::{
    host::{CHUNK, has_kernel, with_slices},
    simd,
};

/// Sum of the squares of all elements, in f64.
///
/// # Errors
///
/// When candle fails.
///
/// # Example
///
/// ```
/// use candle_core::{Device::Cpu, Tensor};
///
/// assert_eq!(layerwise_ops::sum_of_squares(&Tensor::new(&[3f32, 4.], &Cpu)?)?, 25.);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn sum_of_squares(xs: &Tensor) -> Result<f64> {
    if !has_kernel(xs) {
        return xs.to_dtype(DType::F64)?.sqr()?.sum_all()?.to_scalar();
    }
    let xs = xs.contiguous()?;
    with_slices([&xs], |[values]| {
        let parts: Vec<f64> = values.par_chunks(CHUNK).map(simd::squares).collect();
        Ok(parts.into_iter().sum())
    })
}
