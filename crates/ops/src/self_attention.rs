use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;

use crate::{
    Affine, Attention, Dropout, Norm,
    gemm::{Mat, MatMut, Threads},
    heads::{Gradients, Head, Heads, Scratch},
    host::{has_kernel, rows_per_task},
    sublayer::{Middle, sublayer},
};

/// Weights and settings of [`self_attention`].
#[derive(Clone, Copy, Debug)]
pub struct SelfAttention<'a> {
    /// Of width `width`, before or after the sublayer.
    pub norm: Norm<'a>,
    /// `(width, width)`, as the next three.
    pub query: Affine<'a>,
    /// Keys.
    pub key: Affine<'a>,
    /// Values.
    pub value: Affine<'a>,
    /// From the heads back to the residual stream.
    pub output: Affine<'a>,
    /// Heads, mask and dropout of the probabilities.
    pub attention: Attention<'a>,
    /// Dropout of the update to the residual stream.
    pub dropout: Option<Dropout>,
}

/// The first sublayer of a transformer block, `x + drop(output(attention(norm(x))))`, or, where the norm stands after it,
/// `norm(x + drop(output(attention(x))))`.
///
/// `xs` is `(batch, tokens, width)`, and so is the result. This is one operation: samples go through all of it one after the
/// other on each thread, and of what lies between, queries, keys, values and the heads' result (and the sum before a norm that
/// stands last) are kept for the backward pass. [`plain::self_attention`](crate::plain::self_attention) is the same in single
/// operations, which is also what runs where there is no kernel.
///
/// # Errors
///
/// When the shapes do not fit, or a dropout probability is outside `[0, 1)`.
pub fn self_attention(xs: &Tensor, config: &SelfAttention<'_>) -> Result<Tensor> {
    let SelfAttention { norm, query, key, value, output, attention, dropout } = config;
    let (batch, tokens, width) = xs.dims3()?;
    norm.check("self_attention", width)?;
    for (name, affine) in [("query", query), ("key", key), ("value", value), ("output", output)] {
        affine.check("self_attention", name, (width, width))?;
    }
    if attention.heads == 0 || !width.is_multiple_of(attention.heads) {
        bail!("self_attention: {} heads of a width of {width}", attention.heads)
    }
    attention.check_mask("self_attention", batch, tokens)?;
    let weights =
        norm.tensors().into_iter().chain([query, key, value, output].into_iter().flat_map(Affine::tensors));
    if !weights.chain([xs]).all(has_kernel) {
        return crate::plain::self_attention(xs, config);
    }
    let heads = attention.heads(tokens, tokens, width)?;
    sublayer(heads, xs, norm, &[query, key, value], output, *dropout)
}

impl Heads {
    /// Head `i` in rows of queries, keys and values side by side.
    fn head<'a>(&self, projected: &'a [f32], i: usize) -> Head<'a> {
        let width = self.width();
        let all = Mat::rows(projected, 3 * width).from(i / self.heads * self.keys, i % self.heads * self.dim);
        Head { q: all, k: all.from(0, width), v: all.from(0, 2 * width) }
    }
}

impl Middle for Heads {
    const KEPT: bool = true;

    fn name(&self) -> &'static str {
        "self-attention"
    }

    fn group(&self) -> usize {
        self.queries
    }

    fn forward(
        &self,
        first: usize,
        projected: &[f32],
        middle: &mut [f32],
        scratch: &mut Scratch,
        threads: Threads,
    ) {
        let before = first / self.queries * self.heads;
        let outs = self.split(middle, self.queries);
        let run = |scratch: &mut Scratch, (i, out): (usize, MatMut<'_>)| {
            Heads::forward(self, before + i, self.head(projected, i), out, scratch);
        };
        match threads {
            Threads::One => outs.into_iter().enumerate().for_each(|head| run(scratch, head)),
            Threads::All => outs.into_par_iter().enumerate().for_each_init(Scratch::default, run),
        }
    }

    fn backward(&self, projected: Vec<f32>, gradient: Vec<f32>) -> Vec<f32> {
        let width = self.width();
        let mut out = vec![0.; projected.len()];
        let mut outs = Vec::new();
        let mut parts = MatMut::rows(&mut out, 3 * width).blocks(self.queries, width);
        while let (Some(q), Some(k), Some(v)) = (parts.next(), parts.next(), parts.next()) {
            let [q, k, v] = [q, k, v].map(|part| part.blocks(self.queries, self.dim));
            outs.extend(q.zip(k).zip(v).map(|((q, k), v)| Gradients { q, k, v }));
        }
        drop(parts);
        outs.into_par_iter().enumerate().with_min_len(rows_per_task(self.work())).for_each_init(
            Scratch::default,
            |scratch, (i, out)| {
                let sample = i / self.heads * self.queries;
                let g = Mat::rows(&gradient, width).from(sample, i % self.heads * self.dim);
                Heads::backward(self, i, self.head(&projected, i), g, out, scratch);
            },
        );
        out
    }
}
