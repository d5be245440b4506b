use candle_core::{DType, Result, Tensor};
use rayon::prelude::*;

use crate::{
    host::{CHUNK, has_kernel, with_slices},
    simd,
};

/// Sum of the squares of all elements of tensors, in f64. On a GPU one number is read back, however many tensors there are.
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
/// assert_eq!(layerwise_ops::sum_of_squares([&Tensor::new(&[3f32, 4.], &Cpu)?])?, 25.);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn sum_of_squares<'a>(tensors: impl IntoIterator<Item = &'a Tensor>) -> Result<f64> {
    let tensors: Vec<&Tensor> = tensors.into_iter().collect();
    #[cfg(feature = "cuda")]
    let (sum, tensors) = on_gpu(&tensors)?;
    #[cfg(not(feature = "cuda"))]
    let sum = 0.;
    tensors.into_iter().try_fold(sum, |sum, xs| Ok(sum + of_one(xs)?))
}

fn of_one(xs: &Tensor) -> Result<f64> {
    if !has_kernel(xs) {
        return xs.to_dtype(DType::F64)?.sqr()?.sum_all()?.to_scalar();
    }
    let xs = xs.contiguous()?;
    with_slices([&xs], |[values]| {
        let parts: Vec<f64> = values.par_chunks(CHUNK).map(simd::squares).collect();
        Ok(parts.into_iter().sum())
    })
}

/// Of those that the kernel of CUDA applies to; and the others.
#[cfg(feature = "cuda")]
fn on_gpu<'a>(tensors: &[&'a Tensor]) -> Result<(f64, Vec<&'a Tensor>)> {
    let Some(first) = tensors.first() else { return Ok((0., Vec::new())) };
    let here = |xs: &&Tensor| crate::host::has_gpu_kernel([*xs]) && xs.device().same_device(first.device());
    let (there, others): (Vec<&Tensor>, Vec<&Tensor>) = tensors.iter().copied().partition(here);
    let there = there.into_iter().map(|xs| xs.detach().contiguous()).collect::<Result<Vec<_>>>()?;
    Ok((crate::cuda::sum_of_squares(&there.iter().collect::<Vec<_>>())?, others))
}
