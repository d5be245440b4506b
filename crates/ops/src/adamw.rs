use candle_core::{DType, Result, Tensor, Var, bail};
use rayon::prelude::*;

use crate::{
    host::{CHUNK, has_gpu_kernel, has_kernel, share_memory, with_slices, with_values_mut},
    simd,
};

/// Constants of one [`adamw_step`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamWStep {
    /// Learning rate of this step.
    pub lr: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay; 0 for parameters that are not decayed.
    pub weight_decay: f64,
    /// Number of this step, from 1 (bias correction).
    pub step: usize,
    /// The gradient times this is what counts: 1, or less where it is clipped.
    pub gradient_scale: f64,
}

/// One AdamW step in place, as PyTorch's: `p -= lr wd p; m, v updated; p -= lr m' / (sqrt(v') + eps)`.
///
/// `param`, `m` and `v` are updated; all four have one shape. Their memory is locked meanwhile: a job of the same rayon pool that
/// reads them then waits for ever, so let no model answer in that pool during a step.
///
/// # Errors
///
/// When shapes differ, `step` is 0, or two of the tensors share memory.
pub fn adamw_step(param: &Var, gradient: &Tensor, m: &Var, v: &Var, config: AdamWStep) -> Result<()> {
    if [gradient, m, v].iter().any(|xs| xs.shape() != param.shape()) {
        let shapes = [param.dims(), gradient.dims(), m.dims(), v.dims()];
        bail!("adamw_step: param, gradient, m and v have shapes {shapes:?}")
    }
    let AdamWStep { lr, beta1, beta2, eps, weight_decay, step, gradient_scale } = config;
    if step == 0 {
        bail!("adamw_step: step is 0, the first is 1")
    }
    let correction1 = 1. / (1. - beta1.powi(step as i32));
    let correction2 = 1. / (1. - beta2.powi(step as i32));
    let (p, m, v) = (param.as_detached_tensor(), m.as_detached_tensor(), v.as_detached_tensor());
    let gradient = gradient.detach().contiguous()?;
    if share_memory(&[&p, &m, &v, &gradient]) {
        bail!("adamw_step: two of param, gradient, m and v share memory")
    }
    let kernels = [&p, &m, &v, &gradient].into_iter().all(|xs| has_kernel(xs) && xs.is_contiguous());
    let on_gpu = [&p, &m, &v].into_iter().all(|xs| xs.is_contiguous() && xs.dtype() == DType::F32)
        && has_gpu_kernel([&p, &m, &v])
        && has_gpu_kernel([&gradient])
        && gradient.device().same_device(p.device());
    if kernels || on_gpu {
        let update = simd::AdamW {
            beta1: beta1 as f32,
            beta2: beta2 as f32,
            fresh1: (1. - beta1) as f32,
            fresh2: (1. - beta2) as f32,
            gradient: gradient_scale as f32,
            keep: (1. - lr * weight_decay) as f32,
            rate: (lr * correction1) as f32,
            correction: correction2 as f32,
            eps: eps as f32,
        };
        // One pass over the memory of all four.
        #[cfg(feature = "cuda")]
        if on_gpu {
            return crate::cuda::adamw([&p, &m, &v], &gradient, &update);
        }
        return with_values_mut(&p, |p| {
            with_values_mut(&m, |m| {
                with_values_mut(&v, |v| {
                    with_slices([&gradient], |[g]| {
                        p.par_chunks_mut(CHUNK)
                            .zip(m.par_chunks_mut(CHUNK))
                            .zip(v.par_chunks_mut(CHUNK))
                            .zip(g.par_chunks(CHUNK))
                            .for_each(|(((p, m), v), g)| simd::adamw(p, m, v, g, &update));
                        Ok(())
                    })
                })
            })
        });
    }
    let gradient = (gradient * gradient_scale)?;
    let m1 = ((&m * beta1)? + (&gradient * (1. - beta1))?)?;
    let v1 = ((&v * beta2)? + (gradient.sqr()? * (1. - beta2))?)?;
    let update = ((&m1 * correction1)? / ((&v1 * correction2)?.sqrt()? + eps)?)?;
    let next = ((&p * (1. - lr * weight_decay))? - (update * lr)?)?;
    for (old, new) in [(&m, m1), (&v, v1), (&p, next)] {
        old.slice_set(&new, 0, 0)?;
    }
    Ok(())
}
