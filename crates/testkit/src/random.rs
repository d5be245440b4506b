use candle_core::{Device, Tensor};
use layerwise_ops::init;

/// Standard normal values, f32, fixed by `seed`.
///
/// # Panics
///
/// When memory runs out.
#[must_use]
pub fn random(seed: u64, dims: &[usize]) -> Tensor {
    init::normal(&mut init::rng(seed), dims, 1., &Device::Cpu).expect("a deviation of 1 is finite")
}
