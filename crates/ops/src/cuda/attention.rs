use candle_core::{DType, Result, Tensor, bail};

use super::{
    blas::{plain, product, transposed, wide_product},
    launch::Fresh,
    record::{Backward, record},
    softmax::Rows,
};
use crate::{Attention, dropout::Keep};

/// Scores that are in memory at a time; of a sample all are.
const SCORES: usize = 1 << 26;

/// Scores, in f32, and sums by cuBLAS, what is between them in one pass. Scores are not kept: the backward pass computes them again.
pub(crate) fn attention(q: &Tensor, k: &Tensor, v: &Tensor, config: &Attention<'_>) -> Result<Tensor> {
    let (samples, queries, width) = q.dims3()?;
    let keys = k.dim(1)?;
    let mask = match config.key_mask {
        Some(mask) => Some(mask.to_device(q.device())?.to_dtype(DType::U8)?.contiguous()?),
        None => None,
    };
    let keep = config.dropout.map_or(Ok(Keep::ALL), Keep::new)?;
    let dim = width / config.heads;
    let op = Heads { samples, heads: config.heads, queries, keys, dim, causal: config.causal, mask, keep };
    let inputs = [&q.contiguous()?, &k.contiguous()?, &v.contiguous()?];
    let [q, k, v] = inputs.map(Tensor::detach);
    let result = Fresh { shape: inputs[0].shape().clone(), ..Fresh::copy(&op.forward(&q, &k, &v)?)? };
    record(&inputs, result, op)
}

struct Heads {
    samples: usize,
    heads: usize,
    queries: usize,
    keys: usize,
    dim: usize,
    causal: bool,
    /// `(samples, keys)`, u8.
    mask: Option<Tensor>,
    keep: Keep,
}

impl Heads {
    /// Samples that are done together, and the first of each such part.
    fn parts(&self) -> impl Iterator<Item = (usize, usize)> {
        let each = (SCORES / (self.heads * self.queries * self.keys).max(1)).max(1);
        (0..self.samples).step_by(each).map(move |first| (first, each.min(self.samples - first)))
    }

    /// Some samples of `(samples, tokens, width)` as `(samples, heads, tokens, dim)`.
    fn split(&self, xs: &Tensor, (first, count): (usize, usize)) -> Result<Tensor> {
        let tokens = xs.dim(1)?;
        let xs = xs.narrow(0, first, count)?.reshape((count, tokens, self.heads, self.dim))?;
        xs.transpose(1, 2)?.contiguous()
    }

    /// And back to `(samples, tokens, heads, dim)`, as a view.
    fn merged(&self, parts: &[Tensor]) -> Result<Tensor> {
        let all = match parts {
            [one] => one.clone(),
            parts => Tensor::cat(parts, 0)?,
        };
        all.transpose(1, 2)
    }

    fn rows(&self, first: usize) -> Rows {
        let Self { heads, queries, keys, causal, keep, .. } = *self;
        let scale = 1. / (self.dim as f32).sqrt();
        Rows {
            heads,
            queries,
            keys,
            causal,
            first: first * heads * queries,
            mask: self.mask.clone(),
            scale,
            keep,
        }
    }

    fn forward(&self, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
        let mut outs = Vec::new();
        for part in self.parts() {
            let (q, k, v) = (self.split(q, part)?, self.split(k, part)?, self.split(v, part)?);
            let scores = wide_product(plain(&q), transposed(&k), 1.)?.tensor();
            let probabilities = self.rows(part.0).probabilities(&scores, v.dtype())?.tensor();
            outs.push(product(plain(&probabilities), plain(&v), 1.)?.tensor());
        }
        self.merged(&outs)
    }
}

impl Backward for Heads {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn backward(&self, inputs: &[&Tensor], _: &Tensor, gradient: &Tensor) -> Result<Vec<Option<Tensor>>> {
        let &[q, k, v] = inputs else { bail!("attention: {} inputs", inputs.len()) };
        let mut gradients = [const { Vec::new() }; 3];
        for part in self.parts() {
            let rows = self.rows(part.0);
            let split = |xs: &Tensor| self.split(&xs.detach(), part);
            let (q, k, v, g) = (split(q)?, split(k)?, split(v)?, split(gradient)?);
            let scores = wide_product(plain(&q), transposed(&k), 1.)?.tensor();
            let by_probabilities = wide_product(plain(&g), transposed(&v), 1.)?.tensor();
            let by_scores = rows.gradients(&scores, &by_probabilities, q.dtype())?.tensor();
            let probabilities = rows.probabilities(&scores, q.dtype())?.tensor();
            gradients[0].push(product(plain(&by_scores), plain(&k), 1.)?.tensor());
            gradients[1].push(product(transposed(&by_scores), plain(&q), 1.)?.tensor());
            gradients[2].push(product(transposed(&probabilities), plain(&g), 1.)?.tensor());
        }
        let of =
            |(parts, input): (&Vec<Tensor>, &&Tensor)| Ok(Some(self.merged(parts)?.reshape(input.shape())?));
        gradients.iter().zip(inputs).map(of).collect()
    }
}
