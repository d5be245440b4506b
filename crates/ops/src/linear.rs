use candle_core::{CpuStorage, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use crate::{
    backward::hand_over,
    gemm::{Mat, MatMut, Threads, gemm, gemm_new},
    host::{has_kernel, rows_per_part, slice, with_slices},
    panels::Panels,
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
    #[cfg(feature = "cuda")]
    if crate::cuda::has_kernel([xs, weight].into_iter().chain(bias)) {
        return crate::cuda::linear(xs, weight, bias);
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
        forward(slice(xs, xs_layout)?, xs_layout, slice(weight, weight_layout)?, weight_layout, Some(bias))
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
        let (dx, dw) = backward(xs, weight, result, &gradient)?;
        let db = with_slices([&gradient], |[g]| Ok(column_sums(g, bias.elem_count())))?;
        Ok((dx, dw, hand_over(bias, result, Tensor::from_vec(db, bias.shape(), bias.device())?)?))
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
        forward(slice(xs, xs_layout)?, xs_layout, slice(weight, weight_layout)?, weight_layout, None)
    }

    fn bwd(
        &self,
        xs: &Tensor,
        weight: &Tensor,
        result: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        backward(xs, weight, result, &gradient.contiguous()?)
    }
}

fn forward(
    x: &[f32],
    x_layout: &Layout,
    w: &[f32],
    w_layout: &Layout,
    bias: Option<&[f32]>,
) -> Result<(CpuStorage, Shape)> {
    let (outputs, inputs) = w_layout.shape().dims2()?;
    let rows = x.len() / inputs;
    let mut y = vec![0.; rows * outputs];
    let (x, w) = (Mat::rows(x, inputs), Mat::rows(w, inputs));
    let mut out = MatMut::rows(&mut y, outputs);
    let add = start(&mut out, bias);
    if rows < FEW_ROWS {
        gemm(out, add, x, w.t(), inputs, 1., Threads::All);
    } else {
        let panels = Panels::new(w, outputs, inputs, Threads::All);
        panels.product(out, add, x, 1., Threads::All);
    }
    let mut dims = x_layout.dims().to_vec();
    if let Some(last) = dims.last_mut() {
        *last = outputs;
    }
    Ok((CpuStorage::F32(y), dims.into()))
}

/// So few rows are not worth laying the weight out for.
const FEW_ROWS: usize = 16;

/// Starts every row with the bias; says whether there was one, so that products are to be added.
pub(crate) fn start(out: &mut MatMut<'_>, bias: Option<&[f32]>) -> bool {
    if let Some(bias) = bias {
        (0..out.rows).for_each(|i| out.row(i).copy_from_slice(bias));
    }
    bias.is_some()
}

/// `dx = g W`, and `dW = g^T x` written as `(outputs, inputs)` at once; each only where a gradient is wanted.
fn backward(
    xs: &Tensor,
    weight: &Tensor,
    result: &Tensor,
    gradient: &Tensor,
) -> Result<(Option<Tensor>, Option<Tensor>)> {
    let (outputs, inputs) = weight.dims2()?;
    let rows = xs.elem_count() / inputs;
    with_slices([xs, weight, gradient], |[x, w, g]| {
        let (x, w, g) = (Mat::rows(x, inputs), Mat::rows(w, inputs), Mat::rows(g, outputs));
        let dx = if xs.track_op() {
            let dx = gemm_new((rows, inputs, outputs), g, w, Threads::All);
            hand_over(xs, result, Tensor::from_vec(dx, xs.shape(), xs.device())?)?
        } else {
            None
        };
        let dw = if weight.track_op() {
            hand_over(
                weight,
                result,
                Tensor::from_vec(
                    weight_gradient(g, x, rows, (outputs, inputs)),
                    weight.shape(),
                    weight.device(),
                )?,
            )?
        } else {
            None
        };
        Ok((dx, dw))
    })
}

/// `dW = g^T x`, `(outputs, inputs)`.
pub(crate) fn weight_gradient(
    g: Mat<'_>,
    x: Mat<'_>,
    rows: usize,
    (outputs, inputs): (usize, usize),
) -> Vec<f32> {
    gemm_new((outputs, inputs, rows), g.t(), x, Threads::All)
}

/// Sum of the rows of `(n, d)`.
pub(crate) fn column_sums(rows: &[f32], d: usize) -> Vec<f32> {
    let part = rows_per_part(rows.len() / d, d) * d;
    let sum = |rows: &[f32]| {
        let mut sum = vec![0.; d];
        rows.chunks_exact(d).for_each(|row| simd::add(&mut sum, row));
        sum
    };
    let parts: Vec<Vec<f32>> = rows.par_chunks(part).map(sum).collect();
    sum(&parts.concat())
}
