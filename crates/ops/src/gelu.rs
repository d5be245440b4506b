use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use crate::{
    half::in_f32,
    host::{CHUNK, has_kernel, slice, with_slices},
    simd,
};

/// `x/2 (1 + erf(x / sqrt 2))`, elementwise: `gelu` of Hugging Face configs.
///
/// # Errors
///
/// On integer tensors.
pub fn gelu(xs: &Tensor) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if crate::cuda::has_kernel([xs]) {
        return crate::cuda::activation(crate::Activation::Gelu, xs, None);
    }
    in_f32([xs], |[xs]| {
        if !has_kernel(xs) {
            return crate::plain::gelu(xs);
        }
        xs.contiguous()?.apply_op1(Gelu { forward: simd::gelu, backward: simd::gelu_backward })
    })
}

/// `x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))`, elementwise: `gelu_new` of Hugging Face configs.
///
/// # Errors
///
/// On integer tensors.
pub fn gelu_tanh(xs: &Tensor) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if crate::cuda::has_kernel([xs]) {
        return crate::cuda::activation(crate::Activation::GeluTanh, xs, None);
    }
    in_f32([xs], |[xs]| {
        if !has_kernel(xs) {
            return crate::plain::gelu_tanh(xs);
        }
        xs.contiguous()?.apply_op1(Gelu { forward: simd::gelu_tanh, backward: simd::gelu_tanh_backward })
    })
}

struct Gelu {
    forward: fn(&[f32], &mut [f32]),
    backward: fn(&[f32], &[f32], &mut [f32]),
}

impl CustomOp1 for Gelu {
    fn name(&self) -> &'static str {
        "gelu"
    }

    fn cpu_fwd(&self, xs: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = slice(xs, layout)?;
        let mut y = vec![0.; x.len()];
        x.par_chunks(CHUNK).zip(y.par_chunks_mut(CHUNK)).for_each(|(x, y)| (self.forward)(x, y));
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }

    fn bwd(&self, xs: &Tensor, _result: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let gradient = gradient.contiguous()?;
        let dx = with_slices([xs, &gradient], |[x, g]| {
            let mut dx = vec![0.; x.len()];
            x.par_chunks(CHUNK)
                .zip(g.par_chunks(CHUNK))
                .zip(dx.par_chunks_mut(CHUNK))
                .for_each(|((x, g), dx)| (self.backward)(x, g, dx));
            Ok(dx)
        })?;
        Ok(Some(Tensor::from_vec(dx, xs.shape(), xs.device())?))
    }
}
