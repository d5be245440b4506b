//! Seeded initial values. candle's CPU generator cannot be seeded, so randomness comes from a `ChaCha8Rng` of the caller.

use candle_core::{Device, Error, Result, Shape, Tensor, bail};
use rand::{Rng, SeedableRng};
pub use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, Normal};

/// A generator whose stream is fixed by `seed`, on every platform.
#[must_use]
pub fn rng(seed: u64) -> ChaCha8Rng {
    ChaCha8Rng::seed_from_u64(seed)
}

/// Normal values of mean 0 and deviation `std`, redrawn until within two deviations (the ViT and BERT papers' choice).
///
/// # Errors
///
/// When `std` is negative or not finite.
pub fn trunc_normal(
    rng: &mut ChaCha8Rng,
    shape: impl Into<Shape>,
    std: f64,
    device: &Device,
) -> Result<Tensor> {
    let normal = gaussian(std)?;
    filled(shape, device, || {
        loop {
            let value: f64 = normal.sample(rng);
            if value.abs() <= 2. * std {
                return value as f32;
            }
        }
    })
}

/// Normal values of mean 0 and deviation `std`.
///
/// # Errors
///
/// When `std` is negative or not finite.
pub fn normal(rng: &mut ChaCha8Rng, shape: impl Into<Shape>, std: f64, device: &Device) -> Result<Tensor> {
    let normal = gaussian(std)?;
    filled(shape, device, || normal.sample(rng) as f32)
}

/// Uniform values within `sqrt(6 / (inputs + outputs))` (Xavier) for a weight of shape `(outputs, inputs, ..)`.
///
/// # Errors
///
/// When the shape has fewer than two dimensions.
pub fn xavier_uniform(rng: &mut ChaCha8Rng, shape: impl Into<Shape>, device: &Device) -> Result<Tensor> {
    let shape = shape.into();
    let [outputs, inputs, rest @ ..] = shape.dims() else {
        bail!("xavier_uniform: shape {shape:?} has fewer than two dimensions")
    };
    let receptive: usize = rest.iter().product();
    let bound = (6. / ((inputs + outputs) * receptive) as f32).sqrt();
    filled(shape, device, || rng.random_range(-bound..=bound))
}

/// `Normal` itself takes a negative deviation.
fn gaussian(std: f64) -> Result<Normal<f64>> {
    if !(0. ..f64::INFINITY).contains(&std) {
        bail!("init: the deviation is {std}, expected a finite number of 0 or more")
    }
    Normal::new(0., std).map_err(Error::wrap)
}

fn filled(shape: impl Into<Shape>, device: &Device, mut value: impl FnMut() -> f32) -> Result<Tensor> {
    let shape = shape.into();
    let values: Vec<f32> = (0..shape.elem_count()).map(|_| value()).collect();
    Tensor::from_vec(values, shape, device)
}
