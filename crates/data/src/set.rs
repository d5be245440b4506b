use candle_core::{Device, Tensor};
use rand_chacha::ChaCha8Rng;

use crate::{Augment, Error, Normalise, Result, order::shuffled};

/// Shape of one image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// 1 or 3.
    pub channels: usize,
    /// Pixels.
    pub height: usize,
    /// Pixels.
    pub width: usize,
}

impl Shape {
    /// Bytes of one image.
    #[must_use]
    pub fn len(&self) -> usize {
        self.channels.saturating_mul(self.height).saturating_mul(self.width)
    }

    /// Whether an image has no pixel.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Labelled images of one size, in memory.
#[derive(Clone, Debug, PartialEq)]
pub struct ImageSet {
    pixels: Vec<u8>,
    labels: Vec<u32>,
    shape: Shape,
    max: u8,
    classes: Vec<String>,
}

impl ImageSet {
    /// `pixels` is `(n, channels, height, width)` in `0..=max`, `labels` is `(n)`.
    ///
    /// # Errors
    ///
    /// [`Error::Empty`] without images, [`Error::Setting`] when the numbers of pixels and labels do not belong together, there
    /// are not 1 or 3 channels, `max` is 0 or a pixel above it; [`Error::Label`] for a label without class.
    pub fn new(
        pixels: Vec<u8>,
        labels: Vec<u32>,
        shape: Shape,
        max: u8,
        classes: Vec<String>,
    ) -> Result<Self> {
        if labels.is_empty() || shape.is_empty() {
            return Err(Error::Empty { what: "images".into() });
        }
        let bad = |field, value: usize, expected: String| {
            Err(Error::Setting { field, value: value.to_string(), expected })
        };
        if pixels.len() != labels.len().saturating_mul(shape.len()) {
            return bad("pixels", pixels.len(), format!("{} labels x {} pixels", labels.len(), shape.len()));
        }
        if !matches!(shape.channels, 1 | 3) {
            return bad("channels", shape.channels, "1 or 3".into());
        }
        if max == 0 {
            return bad("max", 0, "1 to 255".into());
        }
        if let Some(&pixel) = pixels.iter().find(|&&pixel| pixel > max) {
            return bad("pixel", pixel.into(), format!("at most {max}"));
        }
        if let Some(sample) = labels.iter().position(|&label| label as usize >= classes.len()) {
            return Err(Error::Label { sample, label: labels[sample], classes: classes.len() });
        }
        Ok(Self { pixels, labels, shape, max, classes })
    }

    /// Number of images.
    #[must_use]
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Never: a set has at least one image.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// Shape of each image.
    #[must_use]
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// Value of a white pixel: 16 for the digits, 255 elsewhere.
    #[must_use]
    pub fn max(&self) -> u8 {
        self.max
    }

    /// Names of the classes.
    #[must_use]
    pub fn classes(&self) -> &[String] {
        &self.classes
    }

    /// Label of each image.
    #[must_use]
    pub fn labels(&self) -> &[u32] {
        &self.labels
    }

    /// Pixels of one image, `(channels, height, width)`; `None` out of range.
    #[must_use]
    pub fn image(&self, index: usize) -> Option<&[u8]> {
        self.pixels.chunks_exact(self.shape.len()).nth(index)
    }

    /// The images `indices`, in that order.
    ///
    /// # Errors
    ///
    /// [`Error::Index`] for one that is not there, [`Error::Empty`] for none.
    pub fn subset(&self, indices: &[usize]) -> Result<Self> {
        let mut pixels = Vec::with_capacity(indices.len() * self.shape.len());
        let mut labels = Vec::with_capacity(indices.len());
        for &index in indices {
            pixels.extend_from_slice(self.image(index).ok_or(Error::Index { index, len: self.len() })?);
            labels.push(self.labels[index]);
        }
        Self::new(pixels, labels, self.shape, self.max, self.classes.clone())
    }

    /// The first `n` images, or all when there are fewer.
    ///
    /// # Errors
    ///
    /// [`Error::Empty`] for none.
    pub fn take(&self, n: usize) -> Result<Self> {
        self.subset(&(0..n.min(self.len())).collect::<Vec<_>>())
    }

    /// Two parts with the classes in equal proportion, drawn by `seed`: the rest, and about `fraction` of each class.
    ///
    /// # Errors
    ///
    /// [`Error::Setting`] when `fraction` is not between 0 and 1, [`Error::Empty`] when a part would have no image.
    pub fn split(&self, fraction: f64, seed: u64) -> Result<(Self, Self)> {
        if !(fraction > 0. && fraction < 1.) {
            let expected = "between 0 and 1".into();
            return Err(Error::Setting { field: "fraction", value: fraction.to_string(), expected });
        }
        let (mut rest, mut held_out) = (Vec::new(), Vec::new());
        for class in 0..self.classes.len() as u32 {
            let members: Vec<usize> = (0..self.len()).filter(|&i| self.labels[i] == class).collect();
            let drawn = shuffled(members, seed, u64::from(class));
            let (out, stay) = drawn.split_at((drawn.len() as f64 * fraction).round() as usize);
            held_out.extend_from_slice(out);
            rest.extend_from_slice(stay);
        }
        rest.sort_unstable();
        held_out.sort_unstable();
        Ok((self.subset(&rest)?, self.subset(&held_out)?))
    }

    /// Changed copies of the images `indices`, their pixels rounded to whole levels again: for what takes pixels, as a
    /// resampling does.
    ///
    /// # Errors
    ///
    /// [`Error::Index`] for one that is not there, [`Error::Empty`] for none, [`Error::Setting`] when `augment` has a setting out
    /// of range.
    pub fn augmented(&self, indices: &[usize], augment: &Augment, rng: &mut ChaCha8Rng) -> Result<Self> {
        let mut chosen = self.subset(indices)?;
        for image in chosen.pixels.chunks_exact_mut(self.shape.len()) {
            let values: Vec<f32> = image.iter().map(|&x| f32::from(x)).collect();
            let changed = augment.apply(&values, self.shape, rng)?;
            for (pixel, value) in image.iter_mut().zip(changed) {
                *pixel = value.round() as u8;
            }
        }
        Ok(chosen)
    }

    /// The images `indices` as `(n, channels, height, width)`, f32, augmented and then normalised, and their labels `(n)`, u32.
    ///
    /// # Errors
    ///
    /// [`Error::Index`] for one that is not there, [`Error::Setting`] when `normalise` has another number of channels, or
    /// `augment` a setting out of range.
    pub fn tensors(
        &self,
        indices: &[usize],
        normalise: &Normalise,
        mut augment: Option<(&Augment, &mut ChaCha8Rng)>,
        device: &Device,
    ) -> Result<(Tensor, Tensor)> {
        let Shape { channels, height, width } = self.shape;
        normalise.check(channels)?;
        let mut pixels = Vec::with_capacity(indices.len() * self.shape.len());
        let mut labels = Vec::with_capacity(indices.len());
        for &index in indices {
            let image = self.image(index).ok_or(Error::Index { index, len: self.len() })?;
            let mut values: Vec<f32> = image.iter().map(|&x| f32::from(x) / f32::from(self.max)).collect();
            if let Some((augment, rng)) = &mut augment {
                values = augment.apply(&values, self.shape, rng)?;
            }
            normalise.apply(&mut values, self.shape);
            pixels.append(&mut values);
            labels.push(self.labels[index]);
        }
        let images = Tensor::from_vec(pixels, (indices.len(), channels, height, width), device)?;
        Ok((images, Tensor::from_vec(labels, indices.len(), device)?))
    }
}
