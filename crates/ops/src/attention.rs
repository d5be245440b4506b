use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use crate::{
    Dropout,
    dropout::Keep,
    gemm::{Mat, Threads, gemm},
    half::in_f32,
    host::{has_kernel, rows_per_task, slice, with_slices},
    simd,
};

/// What [`attention`] may look at.
#[derive(Clone, Copy, Debug)]
pub struct Attention<'a> {
    /// Number of heads; divides the width.
    pub heads: usize,
    /// Position `i` sees positions `0..=i` only (of the last `queries` keys, when there are more keys than queries).
    pub causal: bool,
    /// `(batch, keys)`, u8 or u32: 1 where a key may be seen, 0 where it is padding.
    pub key_mask: Option<&'a Tensor>,
    /// Dropout of the attention probabilities.
    pub dropout: Option<Dropout>,
}

impl Attention<'_> {
    /// Every position sees every position.
    #[must_use]
    pub fn full(heads: usize) -> Self {
        Self { heads, causal: false, key_mask: None, dropout: None }
    }
}

/// Multi-head scaled dot-product attention: per head `softmax(q k^T / sqrt(dim)) v`.
///
/// `q` is `(batch, queries, heads * dim)`, `k` and `v` are `(batch, keys, heads * dim)`; the result has the shape of `q`. A
/// query that may see no key gets 0. The backward pass computes the probabilities again, one head at a time; no
/// `queries x keys` matrix is kept.
///
/// # Errors
///
/// When the shapes do not fit.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, config: &Attention<'_>) -> Result<Tensor> {
    let (batch, queries, width) = q.dims3()?;
    let (_, keys, _) = k.dims3()?;
    let heads = config.heads;
    let fits = k.dims() == [batch, keys, width] && v.dims() == k.dims();
    if !fits || heads == 0 || !width.is_multiple_of(heads) || (config.causal && keys < queries) {
        let dims = [q.dims(), k.dims(), v.dims()];
        bail!("attention: q, k, v {dims:?}, {heads} heads, causal {}", config.causal)
    }
    if let Some(mask) = config.key_mask.filter(|mask| mask.dims() != [batch, keys]) {
        bail!("attention: key mask {:?}, expected {:?}", mask.dims(), [batch, keys])
    }
    in_f32([q, k, v], |inputs| {
        let [q, k, v] = inputs;
        if !inputs.into_iter().all(has_kernel) {
            return crate::plain::attention(q, k, v, config);
        }
        let mask = match config.key_mask {
            Some(mask) => Some(mask.to_dtype(candle_core::DType::U8)?.flatten_all()?.to_vec1::<u8>()?),
            None => None,
        };
        let op = Heads {
            heads,
            causal: config.causal,
            mask,
            keep: config.dropout.map(Keep::new).transpose()?,
            dims: Dims { queries, keys, width, dim: width / heads },
        };
        q.contiguous()?.apply_op3(&k.contiguous()?, &v.contiguous()?, op)
    })
}

#[derive(Clone, Copy)]
struct Dims {
    queries: usize,
    keys: usize,
    width: usize,
    dim: usize,
}

struct Heads {
    heads: usize,
    causal: bool,
    mask: Option<Vec<u8>>,
    keep: Option<Keep>,
    dims: Dims,
}

impl Heads {
    /// Probabilities `(queries, keys)` of head `i` (over batch and heads) into `probs`, before dropout.
    fn probabilities(&self, i: usize, q: &[f32], k: &[f32], probs: &mut [f32]) {
        let Dims { queries, keys, width, dim } = self.dims;
        let (q, k) = (self.head(i, q, queries), self.head(i, k, keys));
        gemm((queries, keys, dim), probs, false, q, k.t(), 1. / (dim as f32).sqrt(), Threads::One);
        let mask = self.mask.as_ref().map(|mask| &mask[i / self.heads * keys..][..keys]);
        debug_assert_eq!(width, self.heads * dim);
        for (row, probs) in probs.chunks_exact_mut(keys).enumerate() {
            let seen = if self.causal { row + 1 + keys - queries } else { keys };
            let (seen, unseen) = probs.split_at_mut(seen);
            unseen.fill(0.);
            let Some(mask) = mask else {
                simd::softmax(seen);
                continue;
            };
            if mask[..seen.len()].iter().all(|&m| m == 0) {
                seen.fill(0.);
                continue;
            }
            for (p, &m) in seen.iter_mut().zip(mask) {
                if m == 0 {
                    *p = -1e30;
                }
            }
            simd::softmax(seen);
            for (p, &m) in seen.iter_mut().zip(mask) {
                if m == 0 {
                    *p = 0.;
                }
            }
        }
    }

    /// Heads that one task gets at least, by the elements of their queries and scores.
    fn heads_per_task(&self) -> usize {
        let Dims { queries, keys, dim, .. } = self.dims;
        rows_per_task(queries * (keys + dim))
    }

    /// Multiplies by the dropout mask of head `i`.
    fn drop(&self, i: usize, probs: &mut [f32]) {
        if let Some(keep) = &self.keep {
            let first = i * probs.len();
            probs.iter_mut().enumerate().for_each(|(j, p)| *p *= keep.factor(first + j));
        }
    }

    /// Head `i` of `(batch, tokens, width)` as a matrix `(tokens, dim)`.
    fn head<'a>(&self, i: usize, xs: &'a [f32], tokens: usize) -> Mat<'a> {
        let Dims { width, dim, .. } = self.dims;
        let first = i / self.heads * tokens * width + i % self.heads * dim;
        Mat::new(&xs[first..], width, 1)
    }

    /// Copies heads `(batch * heads)` of `(tokens, dim)` back into `(batch, tokens, width)`.
    fn join(&self, parts: &[Vec<f32>], tokens: usize) -> Vec<f32> {
        let Dims { width, dim, .. } = self.dims;
        let mut out = vec![0.; parts.len() * tokens * dim];
        let rows = out.par_chunks_exact_mut(width).enumerate().with_min_len(rows_per_task(width));
        rows.for_each(|(row, out)| {
            let (sample, token) = (row / tokens, row % tokens);
            for (head, out) in out.chunks_exact_mut(dim).enumerate() {
                out.copy_from_slice(&parts[sample * self.heads + head][token * dim..][..dim]);
            }
        });
        out
    }
}

impl CustomOp3 for Heads {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        q_layout: &Layout,
        k: &CpuStorage,
        k_layout: &Layout,
        v: &CpuStorage,
        v_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (q, k, v) = (slice(q, q_layout)?, slice(k, k_layout)?, slice(v, v_layout)?);
        let Dims { queries, keys, dim, .. } = self.dims;
        let count = q_layout.dims()[0] * self.heads;
        let parts: Vec<Vec<f32>> = (0..count)
            .into_par_iter()
            .with_min_len(self.heads_per_task())
            .map_init(
                || vec![0.; queries * keys],
                |probs, i| {
                    self.probabilities(i, q, k, probs);
                    self.drop(i, probs);
                    let mut out = vec![0.; queries * dim];
                    let (p, v) = (Mat::new(probs, keys, 1), self.head(i, v, keys));
                    gemm((queries, dim, keys), &mut out, false, p, v, 1., Threads::One);
                    out
                },
            )
            .collect();
        Ok((CpuStorage::F32(self.join(&parts, queries)), q_layout.shape().clone()))
    }

    fn bwd(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        _result: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let gradient = gradient.contiguous()?;
        let Dims { queries, keys, dim, .. } = self.dims;
        let count = q.dim(0)? * self.heads;
        let scale = 1. / (dim as f32).sqrt();
        let [dq, dk, dv] = with_slices([q, k, v, &gradient], |[q, k, v, g]| {
            let head_backward = |probs: &mut Vec<f32>, i: usize| {
                let (qh, kh, vh) = (self.head(i, q, queries), self.head(i, k, keys), self.head(i, v, keys));
                let gh = self.head(i, g, queries);
                self.probabilities(i, q, k, probs);
                // Gradient of the dropped probabilities, then through dropout and softmax.
                let mut d = vec![0.; queries * keys];
                gemm((queries, keys, dim), &mut d, false, gh, vh.t(), 1., Threads::One);
                self.drop(i, &mut d);
                for (p, d) in probs.chunks_exact(keys).zip(d.chunks_exact_mut(keys)) {
                    simd::softmax_backward(p, d);
                }
                self.drop(i, probs);
                let (mut dq, mut dk, mut dv) =
                    (vec![0.; queries * dim], vec![0.; keys * dim], vec![0.; keys * dim]);
                let (p, d) = (Mat::new(probs, keys, 1), Mat::new(&d, keys, 1));
                gemm((keys, dim, queries), &mut dv, false, p.t(), gh, 1., Threads::One);
                gemm((queries, dim, keys), &mut dq, false, d, kh, scale, Threads::One);
                gemm((keys, dim, queries), &mut dk, false, d.t(), qh, scale, Threads::One);
                [dq, dk, dv]
            };
            let parts: Vec<[Vec<f32>; 3]> = (0..count)
                .into_par_iter()
                .with_min_len(self.heads_per_task())
                .map_init(|| vec![0.; queries * keys], head_backward)
                .collect();
            let (mut dq, mut dk, mut dv) = (Vec::new(), Vec::new(), Vec::new());
            for [q, k, v] in parts {
                dq.push(q);
                dk.push(k);
                dv.push(v);
            }
            Ok([self.join(&dq, queries), self.join(&dk, keys), self.join(&dv, keys)])
        })?;
        let tensor = |values: Vec<f32>, like: &Tensor| Tensor::from_vec(values, like.shape(), like.device());
        Ok((Some(tensor(dq, q)?), Some(tensor(dk, k)?), Some(tensor(dv, v)?)))
    }
}
