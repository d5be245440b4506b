use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;

use crate::{
    Activation, Affine, Dropout, Norm,
    gemm::Threads,
    heads,
    host::{CHUNK, has_kernel},
    simd,
    sublayer::{Middle, sublayer},
};

/// Weights and settings of [`feed_forward`].
#[derive(Clone, Copy, Debug)]
pub struct FeedForward<'a> {
    /// Of width `width`, before or after the sublayer.
    pub norm: Norm<'a>,
    /// `(inner, width)`.
    pub up: Affine<'a>,
    /// `(width, inner)`.
    pub down: Affine<'a>,
    /// Nonlinearity between the two.
    pub activation: Activation,
    /// Dropout of the update to the residual stream.
    pub dropout: Option<Dropout>,
}

/// The second sublayer of a transformer block, `x + drop(down(act(up(norm(x)))))`, or, where the norm stands after it,
/// `norm(x + drop(down(act(up(x)))))`.
///
/// `xs` is `(.., width)`, and so is the result. This is one operation: rows go through all of it a few at a time, and of what
/// lies between, only the result of `up` (and the sum before a norm that stands last) is kept for the backward pass. That frees
/// it; a second backward pass runs the forward pass again, with the weights as they are then.
/// [`plain::feed_forward`](crate::plain::feed_forward) is the same in single operations, which is also what runs where there is
/// no kernel.
///
/// # Errors
///
/// When the shapes do not fit, or the dropout probability is outside `[0, 1)`.
pub fn feed_forward(xs: &Tensor, config: &FeedForward<'_>) -> Result<Tensor> {
    let FeedForward { norm, up, down, activation, dropout } = config;
    let (inner, width) = up.weight.dims2()?;
    norm.check("feed_forward", width)?;
    up.check("feed_forward", "up", (inner, width))?;
    down.check("feed_forward", "down", (width, inner))?;
    if xs.dims().last() != Some(&width) {
        bail!("feed_forward: xs {:?}, expected a width of {width}", xs.dims())
    }
    let weights = norm.tensors().into_iter().chain(up.tensors()).chain(down.tensors());
    if !weights.chain([xs]).all(has_kernel) {
        return crate::plain::feed_forward(xs, config);
    }
    sublayer(Activated(*activation), xs, norm, &[up], down, *dropout)
}

struct Activated(Activation);

impl Middle for Activated {
    const KEPT: bool = false;

    fn name(&self) -> &'static str {
        "feed-forward"
    }

    fn group(&self) -> usize {
        1
    }

    fn forward(
        &self,
        _first: usize,
        projected: &[f32],
        middle: &mut [f32],
        _scratch: &mut heads::Scratch,
        threads: Threads,
    ) {
        match threads {
            Threads::One => self.0.rows(projected, middle),
            Threads::All => {
                let parts = projected.par_chunks(CHUNK).zip(middle.par_chunks_mut(CHUNK));
                parts.for_each(|(x, y)| self.0.rows(x, y));
            }
        }
    }

    /// Leaves the slopes in `projected`.
    fn again(&self, projected: &mut [f32]) -> Vec<f32> {
        let mut middle = vec![0.; projected.len()];
        let parts = projected.par_chunks_mut(CHUNK).zip(middle.par_chunks_mut(CHUNK));
        parts.for_each(|(x, y)| self.0.values_and_slopes(x, y));
        middle
    }

    fn backward(&self, projected: Vec<f32>, mut gradient: Vec<f32>) -> Vec<f32> {
        let parts = gradient.par_chunks_mut(CHUNK).zip(projected.par_chunks(CHUNK));
        parts.for_each(|(g, slopes)| simd::multiply(g, slopes));
        gradient
    }
}
