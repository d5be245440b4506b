use serde::{Deserialize, Serialize};

use crate::{Error, ImageSet, Result, Shape};

/// `(x - mean) / std` per channel, on pixels in `[0, 1]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Normalise {
    /// One value a channel.
    pub mean: Vec<f32>,
    /// One value a channel, positive.
    pub std: Vec<f32>,
}

impl Normalise {
    /// Mean and standard deviation of each channel over all pixels of `set`; a constant channel gets a deviation of 1.
    #[must_use]
    pub fn from_set(set: &ImageSet) -> Self {
        let Shape { channels, height, width } = set.shape();
        // In integers: exact, so that a constant channel has a variance of exactly 0.
        let (mut sum, mut square) = (vec![0u128; channels], vec![0u128; channels]);
        for image in (0..set.len()).filter_map(|i| set.image(i)) {
            for (c, plane) in image.chunks_exact(height * width).enumerate() {
                sum[c] += u128::from(plane.iter().map(|&x| u64::from(x)).sum::<u64>());
                square[c] += u128::from(plane.iter().map(|&x| u64::from(x).pow(2)).sum::<u64>());
            }
        }
        let n = (set.len() * height * width) as u128;
        let scale = n as f64 * f64::from(set.max());
        let mean = sum.iter().map(|&sum| (sum as f64 / scale) as f32).collect();
        let std = square.iter().zip(&sum).map(|(square, sum)| match n * square - sum * sum {
            0 => 1.,
            variance => ((variance as f64).sqrt() / scale) as f32,
        });
        Self { std: std.collect(), mean }
    }

    pub(crate) fn check(&self, channels: usize) -> Result<()> {
        for (field, values) in [("mean", &self.mean), ("std", &self.std)] {
            if values.len() != channels {
                let expected = format!("{channels}, one a channel");
                return Err(Error::Setting { field, value: format!("{} values", values.len()), expected });
            }
        }
        let bad = |field, values: &[f32], expected: &str| {
            Err(Error::Setting { field, value: format!("{values:?}"), expected: expected.into() })
        };
        if !self.mean.iter().all(|mean| mean.is_finite()) {
            return bad("mean", &self.mean, "finite");
        }
        if !self.std.iter().all(|std| std.is_finite() && *std > 0.) {
            return bad("std", &self.std, "positive");
        }
        Ok(())
    }

    /// Normalises one image `(channels, height, width)` in place.
    pub(crate) fn apply(&self, image: &mut [f32], shape: Shape) {
        let planes = image.chunks_exact_mut(shape.height * shape.width);
        for (plane, (mean, std)) in planes.zip(self.mean.iter().zip(&self.std)) {
            plane.iter_mut().for_each(|x| *x = (*x - mean) / std);
        }
    }
}
