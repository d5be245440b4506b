use candle_core::{CpuStorage, InplaceOp2, InplaceOp3, Layout, Result, Tensor, Var, bail};
use rayon::prelude::*;

use crate::{
    host::{CHUNK, has_kernel, slice},
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
}

/// One AdamW step in place, as PyTorch's: `p -= lr wd p; m, v updated; p -= lr m' / (sqrt(v') + eps)`.
///
/// `param`, `m` and `v` are updated; all four have one shape.
///
/// # Errors
///
/// When shapes differ, or `step` is 0.
pub fn adamw_step(param: &Var, gradient: &Tensor, m: &Var, v: &Var, config: AdamWStep) -> Result<()> {
    if [gradient, m, v].iter().any(|xs| xs.shape() != param.shape()) {
        let shapes = [param.dims(), gradient.dims(), m.dims(), v.dims()];
        bail!("adamw_step: param, gradient, m and v have shapes {shapes:?}")
    }
    let AdamWStep { lr, beta1, beta2, eps, weight_decay, step } = config;
    if step == 0 {
        bail!("adamw_step: step is 0, the first is 1")
    }
    let correction1 = 1. / (1. - beta1.powi(step as i32));
    let correction2 = 1. / (1. - beta2.powi(step as i32));
    let (p, m, v) = (param.as_detached_tensor(), m.as_detached_tensor(), v.as_detached_tensor());
    let gradient = gradient.detach().contiguous()?;
    if [&p, &m, &v, &gradient].into_iter().all(|xs| has_kernel(xs) && xs.is_contiguous()) {
        m.inplace_op2(&gradient, &Blend { square: false, beta: beta1 })?;
        v.inplace_op2(&gradient, &Blend { square: true, beta: beta2 })?;
        let update = Update {
            keep: (1. - lr * weight_decay) as f32,
            rate: (lr * correction1) as f32,
            correction: correction2 as f32,
            eps: eps as f32,
        };
        return p.inplace_op3(&m, &v, &update);
    }
    let m1 = ((&m * beta1)? + (&gradient * (1. - beta1))?)?;
    let v1 = ((&v * beta2)? + (gradient.sqr()? * (1. - beta2))?)?;
    let update = ((&m1 * correction1)? / ((&v1 * correction2)?.sqrt()? + eps)?)?;
    let next = ((&p * (1. - lr * weight_decay))? - (update * lr)?)?;
    for (old, new) in [(&m, m1), (&v, v1), (&p, next)] {
        old.slice_set(&new, 0, 0)?;
    }
    Ok(())
}

/// A moment's update: `x = beta x + (1 - beta) g`, or with `g^2`.
struct Blend {
    square: bool,
    beta: f64,
}

impl InplaceOp2 for Blend {
    fn name(&self) -> &'static str {
        "adamw-moment"
    }

    fn cpu_fwd(&self, xs: &mut CpuStorage, layout: &Layout, g: &CpuStorage, g_layout: &Layout) -> Result<()> {
        let g = slice(g, g_layout)?;
        let (a, b) = (self.beta as f32, (1. - self.beta) as f32);
        slice_mut(xs, layout)?.par_chunks_mut(CHUNK).zip(g.par_chunks(CHUNK)).for_each(|(xs, g)| {
            if self.square { simd::blend_square(xs, g, a, b) } else { simd::blend(xs, g, a, b) }
        });
        Ok(())
    }
}

struct Update {
    keep: f32,
    rate: f32,
    correction: f32,
    eps: f32,
}

impl InplaceOp3 for Update {
    fn name(&self) -> &'static str {
        "adamw"
    }

    fn cpu_fwd(
        &self,
        p: &mut CpuStorage,
        layout: &Layout,
        m: &CpuStorage,
        m_layout: &Layout,
        v: &CpuStorage,
        v_layout: &Layout,
    ) -> Result<()> {
        let (m, v) = (slice(m, m_layout)?, slice(v, v_layout)?);
        let Self { keep, rate, correction, eps } = *self;
        slice_mut(p, layout)?
            .par_chunks_mut(CHUNK)
            .zip(m.par_chunks(CHUNK))
            .zip(v.par_chunks(CHUNK))
            .for_each(|((p, m), v)| simd::adamw(p, m, v, keep, rate, correction, eps));
        Ok(())
    }
}

fn slice_mut<'a>(storage: &'a mut CpuStorage, layout: &Layout) -> Result<&'a mut [f32]> {
    match (storage, layout.contiguous_offsets()) {
        (CpuStorage::F32(values), Some((start, end))) => Ok(&mut values[start..end]),
        _ => bail!("adamw: expected contiguous f32"),
    }
}
