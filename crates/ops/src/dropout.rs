use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use crate::{
    backward::hand_over,
    host::{CHUNK, has_kernel, slice, with_slices},
    simd,
};

/// Which elements [`dropout`] zeroes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dropout {
    /// Probability of zeroing an element, in `[0, 1)`.
    pub p: f32,
    /// The mask is a function of this seed and of the element's index: equal seeds, equal masks.
    pub seed: u64,
}

/// Inverted dropout: zeroes elements with probability `p` and scales the others by `1 / (1 - p)`.
///
/// No mask is kept for the backward pass; it is computed again.
///
/// # Errors
///
/// When `p` is outside `[0, 1)`.
pub fn dropout(xs: &Tensor, config: Dropout) -> Result<Tensor> {
    let keep = Keep::new(config)?;
    #[cfg(feature = "cuda")]
    if crate::cuda::has_kernel([xs]) {
        return crate::cuda::dropout(xs, keep);
    }
    if !has_kernel(xs) {
        return crate::plain::dropout(xs, config);
    }
    xs.contiguous()?.apply_op1(keep)
}

/// The mask of a [`Dropout`].
#[derive(Clone, Copy)]
pub(crate) struct Keep {
    seed: u64,
    /// Of 2^32 hashes, those below this are dropped.
    dropped: u64,
    scale: f32,
}

impl Keep {
    /// Nothing is dropped.
    #[cfg(feature = "cuda")]
    pub(crate) const ALL: Self = Self { seed: 0, dropped: 0, scale: 1. };

    /// As kernels take it: the seed, of 2^32 hashes those that are dropped, and what is kept is multiplied by.
    #[cfg(feature = "cuda")]
    pub(crate) fn numbers(self) -> (u64, u64, f32) {
        (self.seed, self.dropped, self.scale)
    }

    pub(crate) fn new(Dropout { p, seed }: Dropout) -> Result<Self> {
        if !(0. ..1.).contains(&p) {
            bail!("dropout: p is {p}, expected [0, 1)")
        }
        Ok(Self { seed, dropped: (f64::from(p) * 2f64.powi(32)) as u64, scale: 1. / (1. - p) })
    }

    /// `1 / (1 - p)` where element `i` is kept, 0 where it is dropped.
    pub(crate) fn factor(&self, i: usize) -> f32 {
        if simd::splitmix(self.seed, i as u64) >> 32 >= self.dropped { self.scale } else { 0. }
    }

    /// Multiplies elements `first, first + 1, ..` by their factors.
    pub(crate) fn apply(&self, xs: &mut [f32], first: usize) {
        simd::drop(xs, self.seed, first as u64, self.dropped, self.scale);
    }

    /// A copy of `xs` times the factors.
    pub(crate) fn applied(&self, xs: &[f32]) -> Vec<f32> {
        let mut ys = xs.to_vec();
        let chunks = ys.par_chunks_mut(CHUNK).enumerate();
        chunks.for_each(|(chunk, ys)| self.apply(ys, chunk * CHUNK));
        ys
    }
}

impl CustomOp1 for Keep {
    fn name(&self) -> &'static str {
        "dropout"
    }

    fn cpu_fwd(&self, xs: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        Ok((CpuStorage::F32(self.applied(slice(xs, layout)?)), layout.shape().clone()))
    }

    fn bwd(&self, xs: &Tensor, result: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let dx = with_slices([&gradient.contiguous()?], |[g]| Ok(self.applied(g)))?;
        hand_over(xs, result, Tensor::from_vec(dx, xs.shape(), xs.device())?)
    }
}
