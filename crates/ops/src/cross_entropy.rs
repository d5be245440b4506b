use candle_core::{CpuStorage, CustomOp1, DType, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use crate::{
    half::in_f32,
    host::{has_gpu_kernel, has_kernel, rows_per_task, slice, with_slices},
    simd,
};

/// How [`cross_entropy`] sums up its rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reduction {
    /// `sum(w_i ce_i) / sum(w_i)` over the rows that are not ignored; without weights, their mean.
    #[default]
    Mean,
    /// `sum(w_i ce_i)`.
    Sum,
    /// One value a row, `w_i ce_i`.
    None,
}

/// Options of [`cross_entropy`]; the default is plain mean cross-entropy.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct CrossEntropy {
    /// Rows with this target count nothing.
    pub ignore_index: Option<u32>,
    /// In `[0, 1)`: the target distribution is `(1 - e)` on the label plus `e / classes` everywhere.
    pub label_smoothing: f64,
    /// Mean, sum, or one value a row.
    pub reduction: Reduction,
}

/// Cross-entropy of `logits` `(n, classes)` against `targets` `(n)`, u32, with optional row `weights` `(n)`; both may be on the CPU when the logits are not.
///
/// Weights are constants: they get no gradient. A NaN among a row's logits makes its loss NaN; -inf is a class of
/// probability 0. A row that is ignored or weighs 0 counts nothing, whatever its logits are. A mean over no rows (all are
/// ignored) is NaN, as PyTorch's.
///
/// # Errors
///
/// When shapes differ, or a target is neither below `classes` nor the ignored index; the error names its row.
pub fn cross_entropy(
    logits: &Tensor,
    targets: &Tensor,
    weights: Option<&Tensor>,
    config: &CrossEntropy,
) -> Result<Tensor> {
    let (n, classes) = logits.dims2()?;
    if targets.dims() != [n] || weights.is_some_and(|weights| weights.dims() != [n]) {
        let weights = weights.map(Tensor::dims);
        bail!("cross_entropy: logits {:?}, targets {:?}, weights {weights:?}", logits.dims(), targets.dims())
    }
    if !(0. ..1.).contains(&config.label_smoothing) {
        bail!("cross_entropy: label smoothing is {}, expected [0, 1)", config.label_smoothing)
    }
    let ids = targets.to_vec1::<u32>()?;
    let wrong = |&id: &u32| id as usize >= classes && config.ignore_index != Some(id);
    if let Some(row) = ids.iter().position(wrong) {
        bail!("cross_entropy: row {row} has label {}, there are {classes} classes", ids[row])
    }
    in_f32([logits], |[logits]| {
        let on_gpu = has_gpu_kernel([logits]) && logits.dtype() == DType::F32;
        if !has_kernel(logits) && !on_gpu {
            let targets = targets.to_device(logits.device())?;
            let weights = weights.map(|weights| weights.to_device(logits.device())).transpose()?;
            return crate::plain::cross_entropy(logits, &targets, weights.as_ref(), config);
        }
        let mut row_weights = match weights {
            Some(weights) => weights.to_dtype(DType::F32)?.to_vec1::<f32>()?,
            None => vec![1.; n],
        };
        for (weight, id) in row_weights.iter_mut().zip(&ids) {
            if config.ignore_index == Some(*id) {
                *weight = 0.;
            }
        }
        let total: f64 = row_weights.iter().map(|&weight| f64::from(weight)).sum();
        let rows = RowLosses { ids, weights: row_weights, smoothing: config.label_smoothing as f32 };
        #[cfg(feature = "cuda")]
        let rows = match on_gpu {
            true => crate::cuda::cross_entropy(logits, &rows.ids, &rows.weights, rows.smoothing)?,
            false => logits.contiguous()?.apply_op1(rows)?,
        };
        #[cfg(not(feature = "cuda"))]
        let rows = logits.contiguous()?.apply_op1(rows)?;
        match config.reduction {
            Reduction::None => Ok(rows),
            Reduction::Sum => rows.sum_all(),
            Reduction::Mean => rows.sum_all()? / total,
        }
    })
}

/// `w_i ce_i` of each row.
struct RowLosses {
    ids: Vec<u32>,
    weights: Vec<f32>,
    smoothing: f32,
}

impl CustomOp1 for RowLosses {
    fn name(&self) -> &'static str {
        "cross-entropy"
    }

    fn cpu_fwd(&self, logits: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (n, classes) = layout.shape().dims2()?;
        let rows = slice(logits, layout)?.par_chunks_exact(classes);
        let loss = |(row, (&id, &weight)): (&[f32], (&u32, &f32))| {
            if weight == 0. {
                return 0.;
            }
            let (max, sum) = simd::softmax(&mut row.to_vec());
            let log_sum = max + sum.ln();
            let hit = row[id as usize];
            if self.smoothing == 0. {
                return weight * (log_sum - hit);
            }
            let mean = row.iter().map(|&x| f64::from(x)).sum::<f64>() as f32 / classes as f32;
            weight * (log_sum - (1. - self.smoothing) * hit - self.smoothing * mean)
        };
        let losses = rows
            .zip(self.ids.par_iter().zip(&self.weights))
            .with_min_len(rows_per_task(classes))
            .map(loss)
            .collect();
        Ok((CpuStorage::F32(losses), n.into()))
    }

    fn bwd(&self, logits: &Tensor, _result: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let (_, classes) = logits.dims2()?;
        let gradient = gradient.contiguous()?;
        let spread = self.smoothing / classes as f32;
        let d = with_slices([logits, &gradient], |[logits, g]| {
            let mut d = logits.to_vec();
            let rows = d.par_chunks_exact_mut(classes).enumerate();
            rows.with_min_len(rows_per_task(classes)).for_each(|(i, row)| {
                let scale = self.weights[i] * g[i];
                if self.weights[i] == 0. {
                    return row.fill(0.);
                }
                simd::softmax(row);
                row[self.ids[i] as usize] -= 1. - self.smoothing;
                row.iter_mut().for_each(|p| *p = (*p - spread) * scale);
            });
            Ok(d)
        })?;
        Ok(Some(Tensor::from_vec(d, logits.shape(), logits.device())?))
    }
}
