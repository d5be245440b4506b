use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use crate::{
    half::in_f32,
    host::{has_kernel, rows_per_task, slice, width, with_slices},
    simd,
};

/// Softmax over the last dimension.
///
/// A row with a NaN or +inf, or of nothing but -inf, comes out as NaN; -inf among finite values gets 0.
///
/// # Errors
///
/// When `xs` is a scalar.
pub fn softmax(xs: &Tensor) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if xs.rank() > 0 && crate::cuda::has_kernel([xs]) {
        return crate::cuda::softmax(xs);
    }
    in_f32([xs], |[xs]| {
        if xs.rank() == 0 || !has_kernel(xs) {
            return crate::plain::softmax(xs);
        }
        xs.contiguous()?.apply_op1(Softmax)
    })
}

struct Softmax;

impl CustomOp1 for Softmax {
    fn name(&self) -> &'static str {
        "softmax"
    }

    fn cpu_fwd(&self, xs: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let mut y = slice(xs, layout)?.to_vec();
        let d = width(layout);
        y.par_chunks_exact_mut(d).with_min_len(rows_per_task(d)).for_each(|row| {
            simd::softmax(row);
        });
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }

    fn bwd(&self, _xs: &Tensor, result: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let gradient = gradient.contiguous()?;
        let dx = with_slices([result, &gradient], |[p, g]| {
            let mut dx = g.to_vec();
            let d = width(result.layout());
            let rows = p.par_chunks_exact(d).zip(dx.par_chunks_exact_mut(d));
            rows.with_min_len(rows_per_task(d)).for_each(|(p, dx)| simd::softmax_backward(p, dx));
            Ok(dx)
        })?;
        Ok(Some(Tensor::from_vec(dx, result.shape(), result.device())?))
    }
}
