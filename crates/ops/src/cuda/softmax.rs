use candle_core::{DType, Result, Tensor};

use super::{
    launch::{Fresh, Input, NULL, Number, by_type, launch, named, room, row_blocks},
    record::{Backward, record},
};
use crate::dropout::Keep;

/// Rows of scores, `(.., queries, keys)`, f32: what is seen of them, and how they become probabilities.
pub(super) struct Rows {
    pub(super) heads: usize,
    pub(super) queries: usize,
    pub(super) keys: usize,
    pub(super) causal: bool,
    /// Row of all scores that the first one is.
    pub(super) first: usize,
    /// `(samples, keys)`, u8, contiguous.
    pub(super) mask: Option<Tensor>,
    pub(super) scale: f32,
    pub(super) keep: Keep,
}

impl Rows {
    /// Probabilities of scores, dropped out.
    pub(super) fn probabilities(&self, scores: &Tensor, to: DType) -> Result<Fresh> {
        by_type!(to, kernel("probabilities", self, scores, None))
    }

    /// Gradients by the scores from those by the dropped probabilities, f32.
    pub(super) fn gradients(&self, scores: &Tensor, gradients: &Tensor, to: DType) -> Result<Fresh> {
        by_type!(to, kernel("probabilities_dx", self, scores, Some(gradients)))
    }
}

fn kernel<T: Number>(name: &str, rows: &Rows, scores: &Tensor, gradients: Option<&Tensor>) -> Result<Fresh> {
    let count = scores.elem_count();
    let input = Input::of(scores)?;
    let (device, x) = (input.device()?, input.view::<f32>()?);
    let mut to = room::<T>(&device, count)?;
    let mask = rows.mask.as_ref().map(Input::of).transpose()?;
    let mask = mask.as_ref().map(Input::view::<u8>).transpose()?;
    let gradients = gradients.map(Input::of).transpose()?;
    let gradients = gradients.as_ref().map(Input::view::<f32>).transpose()?;
    let [keys, queries, heads] = [rows.keys, rows.queries, rows.heads].map(|size| size as i32);
    let (causal, first, (seed, dropped, kept)) =
        (i32::from(rows.causal), rows.first as u64, rows.keep.numbers());
    launch!(device, SOFTMAX, named::<T>(name), row_blocks(count / rows.keys, rows.keys)?, arguments => {
        arguments.arg(&x);
        if let Some(gradients) = &gradients {
            arguments.arg(gradients);
        }
        arguments.arg(&mut to);
        match &mask {
            Some(mask) => arguments.arg(mask),
            None => arguments.arg(&NULL),
        };
        arguments.arg(&keys).arg(&queries).arg(&heads).arg(&causal);
        arguments.arg(&first).arg(&rows.scale).arg(&seed).arg(&dropped).arg(&kept)
    });
    Ok(Fresh::new(to, &device, scores.shape()))
}

pub(crate) fn softmax(xs: &Tensor) -> Result<Tensor> {
    let xs = xs.contiguous()?;
    record(&[&xs], by_type!(xs.dtype(), forward(&xs))?, Softmax)
}

fn forward<T: Number>(xs: &Tensor) -> Result<Fresh> {
    let (count, width) = (xs.elem_count(), xs.dims().last().copied().unwrap_or(1));
    let input = Input::of(xs)?;
    let (device, x) = (input.device()?, input.view::<T>()?);
    let (mut y, of_width) = (room::<T>(&device, count)?, width as i32);
    launch!(device, SOFTMAX, named::<T>("softmax"), row_blocks(count / width, width)?, arguments =>
        arguments.arg(&x).arg(&mut y).arg(&of_width));
    Ok(Fresh::new(y, &device, xs.shape()))
}

struct Softmax;

impl Backward for Softmax {
    fn name(&self) -> &'static str {
        "softmax"
    }

    fn backward(&self, _: &[&Tensor], result: &Tensor, gradient: &Tensor) -> Result<Vec<Option<Tensor>>> {
        Ok(vec![Some(by_type!(result.dtype(), backward(result, gradient))?.tensor())])
    }
}

fn backward<T: Number>(result: &Tensor, gradient: &Tensor) -> Result<Fresh> {
    let (count, width) = (result.elem_count(), result.dims().last().copied().unwrap_or(1));
    let inputs = [Input::of(result)?, Input::of(gradient)?];
    let (device, p, g) = (inputs[0].device()?, inputs[0].view::<T>()?, inputs[1].view::<T>()?);
    let (mut dx, of_width) = (room::<T>(&device, count)?, width as i32);
    launch!(device, SOFTMAX, named::<T>("softmax_dx"), row_blocks(count / width, width)?, arguments =>
        arguments.arg(&p).arg(&g).arg(&mut dx).arg(&of_width));
    Ok(Fresh::new(dx, &device, result.shape()))
}
