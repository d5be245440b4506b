use candle_core::{Result, Tensor, bail};

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
/// # Errors
///
/// When `p` is outside `[0, 1)`.
pub fn dropout(xs: &Tensor, config: Dropout) -> Result<Tensor> {
    crate::plain::dropout(xs, config)
}

/// `1 / (1 - p)` where an element is kept, 0 where it is dropped.
pub(crate) fn keep_mask(n: usize, config: Dropout) -> Result<Vec<f32>> {
    let Dropout { p, seed } = config;
    if !(0. ..1.).contains(&p) {
        bail!("dropout: p is {p}, expected [0, 1)")
    }
    let threshold = (f64::from(p) * 2f64.powi(32)) as u64;
    let keep = 1. / (1. - p);
    Ok((0..n as u64).map(|i| if splitmix(seed, i) >> 32 >= threshold { keep } else { 0. }).collect())
}

/// `SplitMix64` of a counter: a stateless 64-bit hash.
pub(crate) fn splitmix(seed: u64, i: u64) -> u64 {
    let z = seed.wrapping_add(i.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
