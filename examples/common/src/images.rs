//! A data set ready for training: images that are augmented each time they are drawn, and images held out.

use std::ops::Range;

use anyhow::Result;
use candle_core::{Device, Tensor};
use layerwise_data::{Augment, ImageSet, Normalise, Preprocess, Shape, Size};
use layerwise_models::Batch;
use layerwise_ops::init::ChaCha8Rng;
use layerwise_train::Samples;
use serde_json::{Value, json};

use crate::{
    layers::{Source, labelled},
    training::{Data, HeldOutBatches},
};

/// Images to train on, and images held out, prepared for a model.
#[derive(Clone, Debug)]
pub struct Images {
    /// What a run is called after: `digits`, `mnist`, `cifar10`.
    pub name: String,
    /// What happens to a training image each time.
    pub augment: Augment,
    train: ImageSet,
    test: ImageSet,
    preprocess: Preprocess,
    checksum: u32,
    device: Device,
}

/// Held-out images that go through a model at once.
pub const TEST_BATCH: usize = 256;

impl Images {
    /// Puts a data set together, to be normalised by the mean and the deviation of the images to train on.
    #[must_use]
    pub fn new(name: &str, (train, test): (ImageSet, ImageSet), augment: Augment, device: &Device) -> Self {
        let Normalise { mean, std } = Normalise::from_set(&train);
        let Shape { height, width, .. } = train.shape();
        let preprocess = Preprocess {
            size: Size::Exact { height, width },
            image_mean: mean,
            image_std: std,
            ..Default::default()
        };
        let checksum = checksum(&[&train, &test]);
        Self { name: name.to_owned(), augment, train, test, preprocess, checksum, device: device.clone() }
    }

    /// The same images as another model takes them: resampled, normalised by its own values.
    #[must_use]
    pub fn prepared_by(self, preprocess: Preprocess) -> Self {
        Self { preprocess, ..self }
    }

    /// The first `limit` images to train on, normalised as all of them.
    ///
    /// # Errors
    ///
    /// When `limit` is 0.
    pub fn train_limited(self, limit: usize) -> Result<Self> {
        let train = self.train.take(limit)?;
        let checksum = checksum(&[&train, &self.test]);
        Ok(Self { train, checksum, ..self })
    }

    /// Number of images to train on.
    #[must_use]
    pub fn train_len(&self) -> usize {
        self.train.len()
    }

    /// Number of images held out.
    #[must_use]
    pub fn test_len(&self) -> usize {
        self.test.len()
    }

    /// The images to train on, as they are.
    #[must_use]
    pub fn train_set(&self) -> &ImageSet {
        &self.train
    }

    /// The images held out.
    #[must_use]
    pub fn test_set(&self) -> &ImageSet {
        &self.test
    }

    /// CRC-32 of all pixels and labels, those held out included: tells this data from other data of the same name.
    #[must_use]
    pub fn checksum(&self) -> u32 {
        self.checksum
    }

    /// The `preprocessor_config.json` of a model that learned them.
    #[must_use]
    pub fn preprocess(&self) -> &Preprocess {
        &self.preprocess
    }

    /// The held-out images in batches.
    pub fn test_batches(&self) -> impl Iterator<Item = candle_core::Result<(Batch, Tensor)>> {
        labelled(self, self.test_len(), TEST_BATCH, &self.device)
    }

    /// Whether images become what a model takes by normalising alone.
    fn fits(&self) -> bool {
        let Shape { channels, height, width } = self.train.shape();
        self.preprocess.size == Size::Exact { height, width } && self.preprocess.image_mean.len() == channels
    }

    fn tensors(
        &self,
        set: &ImageSet,
        rows: &[usize],
        device: &Device,
    ) -> layerwise_data::Result<(Batch, Tensor)> {
        if self.fits() {
            let (images, labels) = set.tensors(rows, &self.normalise(), None, device)?;
            return Ok((images.into(), labels));
        }
        let images = self.preprocess.apply_set(set, rows, device)?;
        let labels: Vec<u32> = rows.iter().map(|&row| set.labels()[row]).collect();
        Ok((images.into(), Tensor::new(labels, device)?))
    }

    fn drawn(&self, rows: &[usize], rng: &mut ChaCha8Rng) -> layerwise_data::Result<(Batch, Tensor)> {
        if self.fits() {
            let augment = Some((&self.augment, rng));
            let (images, labels) = self.train.tensors(rows, &self.normalise(), augment, &self.device)?;
            return Ok((images.into(), labels));
        }
        let changed = self.train.augmented(rows, &self.augment, rng)?;
        self.tensors(&changed, &(0..rows.len()).collect::<Vec<_>>(), &self.device)
    }

    fn normalise(&self) -> Normalise {
        let Preprocess { image_mean, image_std, .. } = self.preprocess.clone();
        Normalise { mean: image_mean, std: image_std }
    }
}

fn checksum(sets: &[&ImageSet]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    for set in sets {
        for (index, label) in set.labels().iter().enumerate() {
            hasher.update(set.image(index).unwrap_or_default());
            hasher.update(&label.to_le_bytes());
        }
    }
    hasher.finalize()
}

impl Samples for Images {
    fn len(&self) -> usize {
        self.train.len()
    }

    fn batch(&self, indices: &[usize], rng: &mut ChaCha8Rng) -> candle_core::Result<(Batch, Tensor)> {
        self.drawn(indices, rng).map_err(candle_core::Error::wrap)
    }
}

impl Data for Images {
    fn identity(&self) -> Value {
        let data = json!({ "name": self.name, "train": self.train_len(), "held_out": self.test_len(), "crc32": self.checksum() });
        json!({ "data": data, "augment": self.augment, "preprocess": self.preprocess() })
    }

    fn held_out(&self) -> Option<HeldOutBatches<'_>> {
        Some(Box::new(self.test_batches()))
    }
}

impl Source for Images {
    fn samples(&self) -> usize {
        self.test_len()
    }

    fn batch(&self, rows: Range<usize>, device: &Device) -> Result<Batch> {
        Ok(self.tensors(&self.test, &rows.collect::<Vec<_>>(), device)?.0)
    }

    fn name(&self, sample: usize) -> String {
        format!("sample {sample}")
    }

    fn labels(&self) -> Option<&[u32]> {
        Some(self.test.labels())
    }

    fn classes(&self) -> &[String] {
        self.train.classes()
    }

    fn settings(&self) -> Value {
        json!(self.preprocess())
    }
}
