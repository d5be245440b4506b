use rand::Rng;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::{Error, Result, Shape};

/// Random changes to a training image; the default is the paper's image recipe.
///
/// Pixels that come from outside the image are 0 (black), before normalisation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Augment {
    /// The image is shifted by up to this many pixels each way: a random crop after padding (paper's 32-pixel images: 4).
    pub crop_padding: usize,
    /// Probability of mirroring left and right, 0.5; 0 where left and right matter, as in digits.
    pub flip: f64,
    /// Rotation by up to this many degrees each way, bilinear (paper: 15).
    pub rotation_degrees: f32,
}

impl Default for Augment {
    fn default() -> Self {
        Self { crop_padding: 4, flip: 0.5, rotation_degrees: 15. }
    }
}

impl Augment {
    /// A changed copy of one image `(channels, height, width)`.
    ///
    /// # Errors
    ///
    /// [`Error::Setting`] for a probability or an angle that is none, or an image of another shape.
    pub fn apply(&self, image: &[f32], shape: Shape, rng: &mut ChaCha8Rng) -> Result<Vec<f32>> {
        self.check()?;
        if image.len() != shape.len() {
            return Err(bad("image", format!("{} values", image.len()), &shape.len().to_string()));
        }
        let pad = self.crop_padding as i64;
        let (dy, dx) = (rng.random_range(-pad..=pad), rng.random_range(-pad..=pad));
        let mirrored = rng.random_bool(self.flip);
        let angle = match self.rotation_degrees {
            0. => 0.,
            degrees => rng.random_range(-degrees..=degrees),
        };
        let mut image = shift(image, shape, dy as isize, dx as isize);
        if mirrored {
            mirror(&mut image, shape);
        }
        Ok(if angle == 0. { image } else { rotate(&image, shape, angle) })
    }

    pub(crate) fn check(&self) -> Result<()> {
        if self.crop_padding > 1 << 16 {
            return Err(bad("crop_padding", self.crop_padding.to_string(), "at most 65536"));
        }
        if !(0. ..=1.).contains(&self.flip) {
            return Err(bad("flip", self.flip.to_string(), "0 to 1"));
        }
        if !(0. ..=180.).contains(&self.rotation_degrees) {
            return Err(bad("rotation_degrees", self.rotation_degrees.to_string(), "0 to 180"));
        }
        Ok(())
    }
}

fn bad(field: &'static str, value: String, expected: &str) -> Error {
    Error::Setting { field, value, expected: expected.into() }
}

/// Moves an image down by `dy` and right by `dx` pixels.
#[must_use]
pub fn shift(image: &[f32], shape: Shape, dy: isize, dx: isize) -> Vec<f32> {
    resample(image, shape, |plane, y, x| {
        at(plane, shape, (y as isize).saturating_sub(dy), (x as isize).saturating_sub(dx))
    })
}

/// Mirrors an image left to right.
pub fn mirror(image: &mut [f32], shape: Shape) {
    image.chunks_exact_mut(shape.width.max(1)).for_each(<[f32]>::reverse);
}

/// Rotates an image about its centre by `degrees`, counter-clockwise, with bilinear interpolation.
#[must_use]
pub fn rotate(image: &[f32], shape: Shape, degrees: f32) -> Vec<f32> {
    let (sin, cos) = degrees.to_radians().sin_cos();
    let (cy, cx) = ((shape.height as f32 - 1.) / 2., (shape.width as f32 - 1.) / 2.);
    resample(image, shape, |plane, y, x| {
        let (dy, dx) = (y as f32 - cy, x as f32 - cx);
        let (sy, sx) = (cy + sin * dx + cos * dy, cx + cos * dx - sin * dy);
        let (y0, x0) = (sy.floor(), sx.floor());
        let (fy, fx) = (sy - y0, sx - x0);
        let get = |dy: isize, dx: isize| at(plane, shape, y0 as isize + dy, x0 as isize + dx);
        let top = get(0, 0) * (1. - fx) + get(0, 1) * fx;
        let bottom = get(1, 0) * (1. - fx) + get(1, 1) * fx;
        top * (1. - fy) + bottom * fy
    })
}

fn resample(image: &[f32], shape: Shape, value: impl Fn(&[f32], usize, usize) -> f32) -> Vec<f32> {
    let value = &value;
    let planes = image.chunks_exact((shape.height * shape.width).max(1));
    planes
        .flat_map(|plane| {
            (0..shape.height).flat_map(move |y| (0..shape.width).map(move |x| value(plane, y, x)))
        })
        .collect()
}

fn at(plane: &[f32], shape: Shape, y: isize, x: isize) -> f32 {
    let inside = (0..shape.height as isize).contains(&y) && (0..shape.width as isize).contains(&x);
    if inside { plane[y as usize * shape.width + x as usize] } else { 0. }
}
