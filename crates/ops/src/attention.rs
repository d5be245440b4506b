use candle_core::{CpuStorage, CustomOp3, DType, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use crate::{
    Dropout,
    backward::hand_over,
    dropout::Keep,
    gemm::Mat,
    half::in_f32,
    heads::{Gradients, Head, Heads, Scratch},
    host::{has_kernel, rows_per_task, slice, with_slices},
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

    pub(crate) fn check_mask(&self, operation: &str, batch: usize, keys: usize) -> Result<()> {
        match self.key_mask {
            Some(mask) if mask.dims() != [batch, keys] => {
                bail!("{operation}: key mask {:?}, expected {:?}", mask.dims(), [batch, keys])
            }
            _ => Ok(()),
        }
    }

    /// The kernel for these sizes.
    pub(crate) fn heads(&self, queries: usize, keys: usize, width: usize) -> Result<Heads> {
        let mask = match self.key_mask {
            Some(mask) => Some(mask.to_dtype(DType::U8)?.flatten_all()?.to_vec1::<u8>()?),
            None => None,
        };
        Ok(Heads {
            heads: self.heads,
            causal: self.causal,
            mask,
            keep: self.dropout.map(Keep::new).transpose()?,
            queries,
            keys,
            dim: width / self.heads,
        })
    }
}

/// Multi-head scaled dot-product attention: per head `softmax(q k^T / sqrt(dim)) v`.
///
/// `q` is `(batch, queries, heads * dim)`, `k` and `v` are `(batch, keys, heads * dim)`; the result has the shape of `q`. A
/// query that may see no key gets 0. The backward pass computes the probabilities again, one head and at most 128 queries at a
/// time; no `queries x keys` matrix is kept.
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
    config.check_mask("attention", batch, keys)?;
    #[cfg(feature = "cuda")]
    if crate::cuda::has_kernel([q, k, v]) {
        return crate::cuda::attention(q, k, v, config);
    }
    in_f32([q, k, v], |inputs| {
        let [q, k, v] = inputs;
        if !inputs.into_iter().all(has_kernel) {
            return crate::plain::attention(q, k, v, config);
        }
        let op = Op(config.heads(queries, keys, width)?);
        q.contiguous()?.apply_op3(&k.contiguous()?, &v.contiguous()?, op)
    })
}

struct Op(Heads);

impl Op {
    /// Head `i`, counted over samples and their heads, of `(batch, tokens, width)`.
    fn head<'a>(&self, [q, k, v]: [&'a [f32]; 3], i: usize) -> Head<'a> {
        let Heads { heads, dim, queries, keys, .. } = self.0;
        let part = |xs, tokens: usize| Mat::rows(xs, heads * dim).from(i / heads * tokens, i % heads * dim);
        Head { q: part(q, queries), k: part(k, keys), v: part(v, keys) }
    }
}

impl CustomOp3 for Op {
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
        let inputs = [slice(q, q_layout)?, slice(k, k_layout)?, slice(v, v_layout)?];
        let mut out = vec![0.; inputs[0].len()];
        let outs = self.0.split(&mut out, self.0.queries);
        outs.into_par_iter()
            .enumerate()
            .with_min_len(rows_per_task(self.0.work()))
            .for_each_init(Scratch::default, |scratch, (i, out)| {
                self.0.forward(i, self.head(inputs, i), out, scratch)
            });
        Ok((CpuStorage::F32(out), q_layout.shape().clone()))
    }

    fn bwd(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        result: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let heads = &self.0;
        let gradient = gradient.contiguous()?;
        let [mut dq, mut dk, mut dv] = [q, k, v].map(|xs| vec![0.; xs.elem_count()]);
        with_slices([q, k, v, &gradient], |[q, k, v, g]| {
            let width = heads.width();
            let outs = heads
                .split(&mut dq, heads.queries)
                .into_iter()
                .zip(heads.split(&mut dk, heads.keys))
                .zip(heads.split(&mut dv, heads.keys));
            let outs: Vec<_> = outs.map(|((q, k), v)| Gradients { q, k, v }).collect();
            outs.into_par_iter().enumerate().with_min_len(rows_per_task(heads.work())).for_each_init(
                Scratch::default,
                |scratch, (i, out)| {
                    let g = Mat::rows(g, width)
                        .from(i / heads.heads * heads.queries, i % heads.heads * heads.dim);
                    heads.backward(i, self.head([q, k, v], i), g, out, scratch);
                },
            );
            Ok(())
        })?;
        let tensor = |values: Vec<f32>, like: &Tensor| {
            hand_over(like, result, Tensor::from_vec(values, like.shape(), like.device())?)
        };
        Ok((tensor(dq, q)?, tensor(dk, k)?, tensor(dv, v)?))
    }
}
