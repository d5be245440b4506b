use candle_core::{CpuStorage, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use crate::{
    gemm::{Mat, Threads, gemm},
    host::{has_kernel, rows_per_part, slice, with_slices},
    simd,
};

/// `x W^T + b` over the last dimension.
///
/// `xs` is `(.., inputs)`, `weight` `(outputs, inputs)`, `bias` `(outputs)`; the result is `(.., outputs)`.
///
/// # Errors
///
/// When the shapes do not fit.
pub fn linear(xs: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let (outputs, inputs) = weight.dims2()?;
    let bias_fits = bias.is_none_or(|bias| bias.dims() == [outputs]);
    if xs.dims().last() != Some(&inputs) || !bias_fits {
        let bias = bias.map(Tensor::dims);
        bail!("linear: xs {:?}, weight {:?}, bias {bias:?}", xs.dims(), weight.dims())
    }
    if !has_kernel(xs) || !has_kernel(weight) || !bias.is_none_or(has_kernel) {
        return crate::plain::linear(xs, weight, bias);
    }
    let (xs, weight) = (xs.contiguous()?, weight.contiguous()?);
    match bias {
        Some(bias) => xs.apply_op3(&weight, &bias.contiguous()?, Linear),
        None => xs.apply_op2(&weight, Linear),
    }
}

struct Linear;

impl CustomOp3 for Linear {
    fn name(&self) -> &'static str {
        "linear"
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
        let bias = slice(bias, bias_layout)?;
        let rows = xs_layout.shape().elem_count() / weight_layout.dims()[1];
        let mut y = Vec::with_capacity(rows * bias.len());
        for _ in 0..rows {
            y.extend_from_slice(bias);
        }
        forward(slice(xs, xs_layout)?, xs_layout, slice(weight, weight_layout)?, weight_layout, y, true)
    }

    fn bwd(
        &self,
        xs: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        _result: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let gradient = gradient.contiguous()?;
        let (dx, dw) = backward(xs, weight, &gradient)?;
        let db = with_slices([&gradient], |[g]| Ok(column_sums(g, bias.elem_count())))?;
        Ok((dx, dw, Some(Tensor::from_vec(db, bias.shape(), bias.device())?)))
    }
}

impl CustomOp2 for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(
        &self,
        xs: &CpuStorage,
        xs_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let rows = xs_layout.shape().elem_count() / weight_layout.dims()[1];
        let y = vec![0.; rows * weight_layout.dims()[0]];
        forward(slice(xs, xs_layout)?, xs_layout, slice(weight, weight_layout)?, weight_layout, y, false)
    }

    fn bwd(
        &self,
        xs: &Tensor,
        weight: &Tensor,
        _result: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        backward(xs, weight, &gradient.contiguous()?)
    }
}

/// `y = x W^T`, or `y += x W^T` with `add`.
fn forward(
    x: &[f32],
    x_layout: &Layout,
    w: &[f32],
    w_layout: &Layout,
    mut y: Vec<f32>,
    add: bool,
) -> Result<(CpuStorage, Shape)> {
    let (outputs, inputs) = w_layout.shape().dims2()?;
    let (x, w) = (Mat::new(x, inputs, 1), Mat::new(w, inputs, 1).t());
    gemm((y.len() / outputs, outputs, inputs), &mut y, add, x, w, 1., Threads::All);
    let mut dims = x_layout.dims().to_vec();
    if let Some(last) = dims.last_mut() {
        *last = outputs;
    }
    Ok((CpuStorage::F32(y), dims.into()))
}

/// `dx = g W`, and `dW = g^T x` written as `(outputs, inputs)` at once; `dx` only where a gradient is wanted.
fn backward(xs: &Tensor, weight: &Tensor, gradient: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
    let (outputs, inputs) = weight.dims2()?;
    let rows = xs.elem_count() / inputs;
    with_slices([xs, weight, gradient], |[x, w, g]| {
        let (x, w, g) = (Mat::new(x, inputs, 1), Mat::new(w, inputs, 1), Mat::new(g, outputs, 1));
        let dx = if xs.track_op() {
            let mut dx = vec![0.; rows * inputs];
            gemm((rows, inputs, outputs), &mut dx, false, g, w, 1., Threads::All);
            Some(Tensor::from_vec(dx, xs.shape(), xs.device())?)
        } else {
            None
        };
        let dw = if weight.track_op() {
            let mut dw = vec![0.; outputs * inputs];
            gemm((outputs, inputs, rows), &mut dw, false, g.t(), x, 1., Threads::All);
            Some(Tensor::from_vec(dw, weight.shape(), weight.device())?)
        } else {
            None
        };
        Ok((dx, dw))
    })
}

/// Sum of the rows of `(n, d)`.
fn column_sums(rows: &[f32], d: usize) -> Vec<f32> {
    let part = rows_per_part(rows.len() / d, d) * d;
    let sum = |rows: &[f32]| {
        let mut sum = vec![0.; d];
        rows.chunks_exact(d).for_each(|row| simd::add(&mut sum, row));
        sum
    };
    let parts: Vec<Vec<f32>> = rows.par_chunks(part).map(sum).collect();
    sum(&parts.concat())
}
