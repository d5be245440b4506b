//! Attention of one head of one sample, on slices.

use crate::{
    dropout::Keep,
    gemm::{Mat, MatMut, Threads, gemm},
    panels::Panels,
    simd,
};

/// Queries whose scores are in memory at once.
const QUERIES: usize = 128;

/// Fewer are not worth laying keys out for.
const FEW_QUERIES: usize = 16;

/// Keys `(keys, dim)`.
#[derive(Clone, Copy)]
enum Keys<'a> {
    /// As they are.
    Rows(Mat<'a>),
    /// Laid out for products.
    Panels(&'a Panels),
}

/// What all heads have in common.
pub(crate) struct Heads {
    pub(crate) heads: usize,
    pub(crate) causal: bool,
    /// Of every sample and key.
    pub(crate) mask: Option<Vec<u8>>,
    pub(crate) keep: Option<Keep>,
    pub(crate) queries: usize,
    pub(crate) keys: usize,
    pub(crate) dim: usize,
}

/// Queries `(queries, dim)`, keys and values `(keys, dim)`.
#[derive(Clone, Copy)]
pub(crate) struct Head<'a> {
    pub(crate) q: Mat<'a>,
    pub(crate) k: Mat<'a>,
    pub(crate) v: Mat<'a>,
}

/// Where the gradients of a [`Head`] go.
pub(crate) struct Gradients<'a> {
    pub(crate) q: MatMut<'a>,
    pub(crate) k: MatMut<'a>,
    pub(crate) v: MatMut<'a>,
}

/// Memory for one head at a time.
pub(crate) struct Scratch {
    keys: Panels,
    values: Panels,
    probs: Vec<f32>,
    gradients: Vec<f32>,
}

impl Default for Scratch {
    fn default() -> Self {
        Self { keys: Panels::empty(), values: Panels::empty(), probs: Vec::new(), gradients: Vec::new() }
    }
}

impl Heads {
    /// Width of all heads together.
    pub(crate) fn width(&self) -> usize {
        self.heads * self.dim
    }

    /// Elements of the queries and scores of a head.
    pub(crate) fn work(&self) -> usize {
        self.queries * (self.keys + self.dim)
    }

    /// The parts of `data` `(samples * tokens, width)` that belong to each head of each sample.
    pub(crate) fn split<'a>(&self, data: &'a mut [f32], tokens: usize) -> Vec<MatMut<'a>> {
        MatMut::rows(data, self.width()).blocks(tokens, self.dim).collect()
    }

    /// `softmax(q k^T / sqrt(dim)) v` of head `i`, counted over samples and their heads.
    pub(crate) fn forward(&self, i: usize, head: Head<'_>, out: MatMut<'_>, scratch: &mut Scratch) {
        let Scratch { keys, probs, .. } = scratch;
        // A layout of all keys for the queries of a token or two would cost more than their scores.
        let keys = if self.queries < FEW_QUERIES {
            Keys::Rows(head.k)
        } else {
            keys.fill(head.k, self.keys, self.dim, Threads::One);
            Keys::Panels(keys)
        };
        for (first, out) in (0..).step_by(self.block()).zip(out.blocks(self.block(), self.dim)) {
            let (queries, seen) = (out.rows, self.seen(first + out.rows - 1));
            self.probabilities(i, first, head.q, keys, seen, queries, probs);
            self.drop(i, first, seen, probs);
            gemm(out, false, Mat::rows(probs, seen), head.v, seen, 1., Threads::One);
        }
    }

    /// Gradients of head `i` from that of its output, `g` `(queries, dim)`.
    pub(crate) fn backward(
        &self,
        i: usize,
        head: Head<'_>,
        g: Mat<'_>,
        mut out: Gradients<'_>,
        scratch: &mut Scratch,
    ) {
        let Scratch { keys, values, probs, gradients } = scratch;
        let scale = self.scale();
        keys.fill(head.k, self.keys, self.dim, Threads::One);
        values.fill(head.v, self.keys, self.dim, Threads::One);
        for (first, dq) in (0..).step_by(self.block()).zip(out.q.blocks(self.block(), self.dim)) {
            let (queries, seen) = (dq.rows, self.seen(first + dq.rows - 1));
            let (g, q) = (g.from(first, 0), head.q.from(first, 0));
            self.probabilities(i, first, head.q, Keys::Panels(keys), seen, queries, probs);
            // Gradient of the dropped probabilities, then through dropout and softmax.
            gradients.resize(queries * seen, 0.);
            values.product(MatMut::rows(gradients, seen), false, g, 1., Threads::One);
            self.drop(i, first, seen, gradients);
            for (p, d) in probs.chunks_exact(seen).zip(gradients.chunks_exact_mut(seen)) {
                simd::softmax_backward(p, d);
            }
            self.drop(i, first, seen, probs);
            let (p, d) = (Mat::rows(probs, seen), Mat::rows(gradients, seen));
            gemm(dq, false, d, head.k, seen, scale, Threads::One);
            // The first block writes the keys that it sees, the others add: what lies behind is zero.
            let add = first > 0;
            for (out, lhs, rhs, scale) in [(&mut out.v, p.t(), g, 1.), (&mut out.k, d.t(), q, scale)] {
                if !add {
                    (seen..self.keys).for_each(|key| out.row(key).fill(0.));
                }
                let Some(out) = out.reborrow().blocks(seen, self.dim).next() else { continue };
                gemm(out, add, lhs, rhs, queries, scale, Threads::One);
            }
        }
    }

    fn scale(&self) -> f32 {
        1. / (self.dim as f32).sqrt()
    }

    /// Queries of a block: all, or parts of nearly equal size.
    fn block(&self) -> usize {
        self.queries.div_ceil(self.queries.div_ceil(QUERIES))
    }

    /// How many keys `query` may see, the mask set aside.
    fn seen(&self, query: usize) -> usize {
        if self.causal { query + 1 + self.keys - self.queries } else { self.keys }
    }

    /// Probabilities `(queries, seen)` of the queries from `first` on, before dropout.
    #[allow(clippy::too_many_arguments, reason = "the sizes of a block and its operands")]
    fn probabilities(
        &self,
        i: usize,
        first: usize,
        q: Mat<'_>,
        keys: Keys<'_>,
        seen: usize,
        queries: usize,
        probs: &mut Vec<f32>,
    ) {
        probs.resize(queries * seen, 0.);
        let (out, q) = (MatMut::rows(probs, seen), q.from(first, 0));
        match keys {
            Keys::Panels(keys) => keys.product(out, false, q, self.scale(), Threads::One),
            Keys::Rows(keys) => gemm(out, false, q, keys.t(), self.dim, self.scale(), Threads::One),
        }
        let mask = self.mask.as_ref().map(|mask| &mask[i / self.heads * self.keys..][..self.keys]);
        for (row, probs) in probs.chunks_exact_mut(seen).enumerate() {
            let (seen, unseen) = probs.split_at_mut(self.seen(first + row));
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

    /// Multiplies by the dropout mask of head `i`, which is that of all `(queries, keys)`.
    fn drop(&self, i: usize, first: usize, seen: usize, probs: &mut [f32]) {
        let Some(keep) = &self.keep else { return };
        for (row, probs) in probs.chunks_exact_mut(seen).enumerate() {
            keep.apply(probs, (i * self.queries + first + row) * self.keys);
        }
    }
}
