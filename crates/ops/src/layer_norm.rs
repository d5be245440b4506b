use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use crate::{
    backward::hand_over,
    gemm::Threads,
    half::in_f32,
    host::{has_kernel, rows_per_part, rows_per_task, slice, with_slices},
    simd,
};

/// Layer norm over the last dimension: `(x - mean) / sqrt(var + eps) * weight + bias`.
///
/// `xs` is `(.., d)`, `weight` and `bias` are `(d)`. The variance is taken in a second pass, so a large mean costs no digits.
///
/// # Errors
///
/// When the shapes do not fit.
pub fn layer_norm(xs: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    let d = xs.dims().last().copied();
    if d != Some(weight.dims1()?) || d != Some(bias.dims1()?) {
        bail!("layer_norm: xs {:?}, weight {:?}, bias {:?}", xs.dims(), weight.dims(), bias.dims())
    }
    #[cfg(feature = "cuda")]
    if crate::cuda::has_kernel([xs, weight, bias]) {
        return crate::cuda::layer_norm(xs, weight, bias, eps);
    }
    in_f32([xs, weight, bias], |inputs| {
        let [xs, weight, bias] = inputs;
        if !inputs.into_iter().all(has_kernel) {
            return crate::plain::layer_norm(xs, weight, bias, eps);
        }
        let op = LayerNorm { eps: eps as f32 };
        xs.contiguous()?.apply_op3(&weight.contiguous()?, &bias.contiguous()?, op)
    })
}

struct LayerNorm {
    eps: f32,
}

impl CustomOp3 for LayerNorm {
    fn name(&self) -> &'static str {
        "layer-norm"
    }

    fn cpu_fwd(
        &self,
        xs: &CpuStorage,
        xs_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (x, w, b) = (slice(xs, xs_layout)?, slice(weight, weight_layout)?, slice(bias, bias_layout)?);
        let mut y = vec![0.; x.len()];
        rows(x, w, b, self.eps, &mut y, Threads::All);
        Ok((CpuStorage::F32(y), xs_layout.shape().clone()))
    }

    fn bwd(
        &self,
        xs: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        result: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let gradient = gradient.contiguous()?;
        let d = weight.elem_count();
        let mut dx = vec![0.; xs.elem_count()];
        let (dw, db) =
            with_slices([xs, weight, &gradient], |[x, w, g]| Ok(backward(x, w, g, self.eps, &mut dx)))?;
        let device = xs.device();
        Ok((
            hand_over(xs, result, Tensor::from_vec(dx, xs.shape(), device)?)?,
            hand_over(weight, result, Tensor::from_vec(dw, d, device)?)?,
            hand_over(bias, result, Tensor::from_vec(db, d, device)?)?,
        ))
    }
}

/// Rows of `y` from rows of `x`.
pub(crate) fn rows(x: &[f32], w: &[f32], b: &[f32], eps: f32, y: &mut [f32], threads: Threads) {
    let d = w.len();
    let part = |(x, y): (&[f32], &mut [f32])| {
        for (x, y) in x.chunks_exact(d).zip(y.chunks_exact_mut(d)) {
            simd::layer_norm(x, w, b, y, eps);
        }
    };
    match threads {
        Threads::One => part((x, y)),
        Threads::All => {
            let rows = rows_per_task(d) * d;
            x.par_chunks(rows).zip(y.par_chunks_mut(rows)).for_each(part);
        }
    }
}

/// Adds the input's gradient to `dx`; gives those of weight and bias.
pub(crate) fn backward(x: &[f32], w: &[f32], g: &[f32], eps: f32, dx: &mut [f32]) -> (Vec<f32>, Vec<f32>) {
    let d = w.len();
    let part = rows_per_part(x.len() / d, d) * d;
    let sums: Vec<(Vec<f32>, Vec<f32>)> = x
        .par_chunks(part)
        .zip(g.par_chunks(part))
        .zip(dx.par_chunks_mut(part))
        .map(|((x, g), dx)| {
            let (mut dw, mut db) = (vec![0.; d], vec![0.; d]);
            for ((x, g), dx) in x.chunks_exact(d).zip(g.chunks_exact(d)).zip(dx.chunks_exact_mut(d)) {
                simd::layer_norm_backward(x, w, g, dx, &mut dw, &mut db, eps);
            }
            (dw, db)
        })
        .collect();
    let (mut dw, mut db) = (vec![0.; d], vec![0.; d]);
    for (w, b) in &sums {
        simd::add(&mut dw, w);
        simd::add(&mut db, b);
    }
    (dw, db)
}
