use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use crate::{
    Affine, Norm,
    gemm::{Mat, MatMut, Threads},
    host::{has_kernel, rows_per_task, slice, with_slices},
    linear::start,
    panels::Panels,
    simd,
};

/// An exit of a model that answers more than it learns: `norm(x) W^T + b` as one operation, its weights laid out once.
///
/// It is a copy: what happens to the weights later is not seen.
#[derive(Clone)]
pub struct PackedExit(Arc<Weights>);

struct Weights {
    norm: Option<(Vec<f32>, Vec<f32>, f32)>,
    head: Panels,
    bias: Option<Vec<f32>>,
}

impl PackedExit {
    /// Nothing where there is no kernel, which is f32 on the CPU.
    ///
    /// # Errors
    ///
    /// When the shapes do not fit.
    pub fn new(norm: Option<&Norm<'_>>, head: &Affine<'_>) -> Result<Option<Self>> {
        let (outputs, inputs) = head.weight.dims2()?;
        head.check("packed_exit", "head", (outputs, inputs))?;
        norm.map(|norm| norm.check("packed_exit", inputs)).transpose()?;
        let norms = norm.iter().flat_map(|norm| norm.tensors());
        if !head.tensors().chain(norms).all(has_kernel) {
            return Ok(None);
        }
        let values = |xs: &Tensor| xs.flatten_all()?.to_vec1::<f32>();
        let weight = head.weight.contiguous()?;
        Ok(Some(Self(Arc::new(Weights {
            norm: norm
                .map(|norm| {
                    Ok::<_, candle_core::Error>((values(norm.weight)?, values(norm.bias)?, norm.eps as f32))
                })
                .transpose()?,
            head: with_slices([&weight], |[weight]| {
                Ok(Panels::new(Mat::rows(weight, inputs), outputs, inputs, Threads::All))
            })?,
            bias: head.bias.map(values).transpose()?,
        }))))
    }

    /// `(rows, outputs)` of `xs` `(rows, inputs)`, or of the first tokens of `xs` `(rows, tokens, inputs)`; no graph.
    ///
    /// # Errors
    ///
    /// When the shape does not fit, or `xs` is not f32 on the CPU.
    pub fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        let (_, inputs) = self.0.head.shape();
        if !has_kernel(xs) || !matches!(xs.rank(), 2 | 3) || xs.dims().last() != Some(&inputs) {
            bail!(
                "packed_exit: {:?} {:?}, expected f32 (rows, {inputs}) or (rows, tokens, {inputs}) on the CPU",
                xs.dtype(),
                xs.dims()
            )
        }
        xs.contiguous()?.apply_op1_no_bwd(&*self.0)
    }
}

impl CustomOp1 for Weights {
    fn name(&self) -> &'static str {
        "packed-exit"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (outputs, d) = self.head.shape();
        let (x, rows) = (slice(storage, layout)?, layout.dims()[0]);
        let mut y = vec![0.; rows * outputs];
        let mut out = MatMut::rows(&mut y, outputs);
        let add = start(&mut out, self.bias.as_deref());
        let x = Mat::rows(x, x.len() / rows);
        match &self.norm {
            None => self.head.product(out, add, x, 1., Threads::All),
            Some((weight, bias, eps)) => {
                let mut normed = vec![0.; rows * d];
                let norm = |(i, y): (usize, &mut [f32])| {
                    simd::layer_norm(&x.data[i * x.row..][..d], weight, bias, y, *eps)
                };
                match Threads::All.worth(rows * d * outputs) {
                    Threads::One => normed.chunks_exact_mut(d).enumerate().for_each(norm),
                    Threads::All => normed
                        .par_chunks_exact_mut(d)
                        .enumerate()
                        .with_min_len(rows_per_task(d))
                        .for_each(norm),
                }
                self.head.product(out, add, Mat::rows(&normed, d), 1., Threads::All);
            }
        }
        Ok((CpuStorage::F32(y), (rows, outputs).into()))
    }
}

impl std::fmt::Debug for PackedExit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PackedExit").finish_non_exhaustive()
    }
}
