use std::collections::HashSet;

use candle_core::{Result, Tensor, Var, bail};
use rayon::prelude::*;

use crate::{
    host::{CHUNK, has_kernel, place, with_slices, with_values_mut},
    simd,
};

/// Constants of one step of one parameter.
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

/// What a step of AdamW changes, and by what; all of one shape.
#[derive(Clone, Copy, Debug)]
pub struct AdamWUpdate<'a> {
    /// The parameter.
    pub param: &'a Var,
    /// Its gradient.
    pub gradient: &'a Tensor,
    /// First moment.
    pub m: &'a Var,
    /// Second moment.
    pub v: &'a Var,
    /// Of mixed precision: the parameter in 16 bits, which computes; after the step it is `param`, rounded.
    pub rounded: Option<&'a Var>,
    /// Its constants.
    pub by: AdamWStep,
}

/// One AdamW step in place, as PyTorch's: `p -= lr wd p; m, v updated; p -= lr m' / (sqrt(v') + eps)`.
///
/// `param`, `m` and `v` are updated; all four have one shape. Their memory is locked meanwhile: a job of the same rayon pool that
/// reads them then waits for ever, so let no model answer in that pool during a step.
///
/// # Errors
///
/// When shapes differ, `step` is 0, or what is updated shares memory with another of the tensors.
pub fn adamw_step(param: &Var, gradient: &Tensor, m: &Var, v: &Var, config: AdamWStep) -> Result<()> {
    adamw_steps(&[AdamWUpdate { param, gradient, m, v, rounded: None, by: config }])
}

/// [`adamw_step`] of many parameters: on a GPU in one launch.
///
/// # Errors
///
/// As [`adamw_step`], before anything is changed; two updates share no memory either.
pub fn adamw_steps(updates: &[AdamWUpdate<'_>]) -> Result<()> {
    updates.iter().try_for_each(check)?;
    // Gradients are only read: several may be views of one memory.
    let mut changed = Vec::new();
    for AdamWUpdate { param, m, v, rounded, .. } in updates {
        changed
            .extend([Some(*param), Some(*m), Some(*v), *rounded].into_iter().flatten().map(|var| place(var)));
    }
    let distinct: HashSet<usize> = changed.iter().copied().collect();
    if distinct.len() < changed.len() || updates.iter().any(|of| distinct.contains(&place(of.gradient))) {
        bail!("adamw_step: two of all param, m, v and rounded, or one and a gradient, share memory")
    }
    #[cfg(feature = "cuda")]
    let updates = &on_gpu(updates)?;
    updates.iter().try_for_each(one)
}

fn check(update: &AdamWUpdate<'_>) -> Result<()> {
    let AdamWUpdate { param, gradient, m, v, rounded, by } = *update;
    let others = [Some(gradient), Some(m.as_tensor()), Some(v.as_tensor()), rounded.map(|xs| xs.as_tensor())];
    if others.into_iter().flatten().any(|xs| xs.shape() != param.shape()) {
        let shapes = [param.dims(), gradient.dims(), m.dims(), v.dims()];
        let rounded = rounded.map(|xs| xs.dims());
        bail!("adamw_step: param, gradient, m and v have shapes {shapes:?}, rounded {rounded:?}")
    }
    if by.step == 0 {
        bail!("adamw_step: step is 0, the first is 1")
    }
    Ok(())
}

/// What is not constant between parameters, as the kernels take it.
fn constants(by: &AdamWStep) -> simd::AdamW {
    let AdamWStep { lr, beta1, beta2, eps, weight_decay, step, gradient_scale } = *by;
    let correction1 = 1. / (1. - beta1.powi(step as i32));
    let correction2 = 1. / (1. - beta2.powi(step as i32));
    simd::AdamW {
        beta1: beta1 as f32,
        beta2: beta2 as f32,
        fresh1: (1. - beta1) as f32,
        fresh2: (1. - beta2) as f32,
        gradient: gradient_scale as f32,
        keep: (1. - lr * weight_decay) as f32,
        rate: (lr * correction1) as f32,
        correction: correction2 as f32,
        eps: eps as f32,
    }
}

/// Steps of all that the kernel of CUDA applies to; gives the others.
#[cfg(feature = "cuda")]
fn on_gpu<'a>(updates: &[AdamWUpdate<'a>]) -> Result<Vec<AdamWUpdate<'a>>> {
    let Some(first) = updates.first() else { return Ok(Vec::new()) };
    let here =
        |xs: &Tensor| crate::host::has_gpu_kernel([xs]) && xs.device().same_device(first.param.device());
    let own = |xs: &Tensor| here(xs) && xs.is_contiguous();
    let (there, others): (Vec<_>, Vec<_>) = updates.iter().copied().partition(|update| {
        let AdamWUpdate { param, gradient, m, v, rounded, .. } = *update;
        [param, m, v].into_iter().all(|xs| own(xs) && xs.dtype() == candle_core::DType::F32)
            && here(gradient)
            && rounded.is_none_or(|xs| own(xs))
    });
    let owned: Vec<_> = there
        .iter()
        .map(|AdamWUpdate { param, gradient, m, v, rounded, .. }| {
            let vars = [param, m, v].map(|xs| xs.as_detached_tensor());
            Ok((vars, rounded.map(Var::as_detached_tensor), gradient.detach().contiguous()?))
        })
        .collect::<Result<_>>()?;
    let rows: Vec<_> = owned
        .iter()
        .zip(&there)
        .map(|(([param, m, v], copy, gradient), update)| crate::cuda::Update {
            param,
            moments: [m, v],
            gradient,
            copy: copy.as_ref(),
            by: constants(&update.by),
        })
        .collect();
    crate::cuda::adamw(&rows)?;
    Ok(others)
}

fn one(update: &AdamWUpdate<'_>) -> Result<()> {
    let (p, m, v) =
        (update.param.as_detached_tensor(), update.m.as_detached_tensor(), update.v.as_detached_tensor());
    let gradient = update.gradient.detach().to_dtype(p.dtype())?.contiguous()?;
    if [&p, &m, &v, &gradient].into_iter().all(|xs| has_kernel(xs) && xs.is_contiguous()) {
        let by = constants(&update.by);
        // One pass over the memory of all four.
        with_values_mut(&p, |p| {
            with_values_mut(&m, |m| {
                with_values_mut(&v, |v| {
                    with_slices([&gradient], |[g]| {
                        p.par_chunks_mut(CHUNK)
                            .zip(m.par_chunks_mut(CHUNK))
                            .zip(v.par_chunks_mut(CHUNK))
                            .zip(g.par_chunks(CHUNK))
                            .for_each(|(((p, m), v), g)| simd::adamw(p, m, v, g, &by));
                        Ok(())
                    })
                })
            })
        })?;
    } else {
        plain([&p, &m, &v], &gradient, &update.by)?;
    }
    match update.rounded {
        Some(rounded) => rounded.set(&p.to_dtype(rounded.dtype())?),
        None => Ok(()),
    }
}

fn plain([p, m, v]: [&Tensor; 3], gradient: &Tensor, by: &AdamWStep) -> Result<()> {
    let AdamWStep { lr, beta1, beta2, eps, weight_decay, step, gradient_scale } = *by;
    let correction1 = 1. / (1. - beta1.powi(step as i32));
    let correction2 = 1. / (1. - beta2.powi(step as i32));
    let gradient = (gradient * gradient_scale)?;
    let m1 = ((m * beta1)? + (&gradient * (1. - beta1))?)?;
    let v1 = ((v * beta2)? + (gradient.sqr()? * (1. - beta2))?)?;
    let update = ((&m1 * correction1)? / ((&v1 * correction2)?.sqrt()? + eps)?)?;
    let next = ((p * (1. - lr * weight_decay))? - (update * lr)?)?;
    for (old, new) in [(m, m1), (v, v1), (p, next)] {
        old.slice_set(&new, 0, 0)?;
    }
    Ok(())
}
