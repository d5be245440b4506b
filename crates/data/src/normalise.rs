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
        let (mut sum, mut square) = (vec![0f64; channels], vec![0f64; channels]);
        for image in (0..set.len()).filter_map(|i| set.image(i)) {
            for (c, plane) in image.chunks_exact(height * width).enumerate() {
                for &x in plane {
                    let x = f64::from(x) / f64::from(set.max());
                    sum[c] += x;
                    square[c] += x * x;
                }
            }
        }
        let n = (set.len() * height * width) as f64;
        let mean: Vec<f64> = sum.iter().map(|sum| sum / n).collect();
        let std = square.iter().zip(&mean).map(|(square, mean)| {
            let variance = square / n - mean * mean;
            if variance > 0. { variance.sqrt() as f32 } else { 1. }
        });
        Self { std: std.collect(), mean: mean.iter().map(|&mean| mean as f32).collect() }
    }

    pub(crate) fn check(&self, channels: usize) -> Result<()> {
        for (field, values) in [("mean", &self.mean), ("std", &self.std)] {
            if values.len() != channels {
                let expected = format!("{channels}, one a channel");
                return Err(Error::Setting { field, value: format!("{} values", values.len()), expected });
            }
        }
        if self.std.iter().any(|std| std.is_nan() || *std <= 0.) {
            let expected = "positive".into();
            return Err(Error::Setting { field: "std", value: format!("{:?}", self.std), expected });
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
