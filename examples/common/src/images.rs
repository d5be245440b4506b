//! A data set ready for training: images that are augmented each time they are drawn, and images held out.

use std::ops::Range;

use anyhow::Result;
use candle_core::{Device, Tensor};
use layerwise_data::{Augment, ImageSet, Normalise, Preprocess, Shape, Size};
use layerwise_models::Batch;
use layerwise_ops::init::ChaCha8Rng;
use layerwise_train::Samples;

use crate::layers::Source;

/// Images to train on, and images held out; both normalised by the training images' mean and deviation.
#[derive(Debug)]
pub struct Images {
    /// What a run is called after: `digits`, `mnist`, `cifar10`.
    pub name: &'static str,
    /// What happens to a training image each time.
    pub augment: Augment,
    train: ImageSet,
    normalise: Normalise,
    test: Batch,
    labels: Tensor,
    label_values: Vec<u32>,
    checksum: u32,
    device: Device,
}

/// Held-out images that go through a model at once.
pub const TEST_BATCH: usize = 256;

impl Images {
    /// Puts a data set together.
    ///
    /// # Errors
    ///
    /// When the device cannot hold the images held out.
    pub fn new(
        name: &'static str,
        (train, test): (ImageSet, &ImageSet),
        augment: Augment,
        device: &Device,
    ) -> Result<Self> {
        let normalise = Normalise::from_set(&train);
        let all: Vec<usize> = (0..test.len()).collect();
        let (images, labels) = test.tensors(&all, &normalise, None, device)?;
        let checksum = checksum(&[&train, test]);
        Ok(Self {
            name,
            augment,
            train,
            normalise,
            test: images.into(),
            labels,
            label_values: test.labels().to_vec(),
            checksum,
            device: device.clone(),
        })
    }

    /// Number of images to train on.
    #[must_use]
    pub fn train_len(&self) -> usize {
        self.train.len()
    }

    /// Number of images held out.
    #[must_use]
    pub fn test_len(&self) -> usize {
        self.labels.elem_count()
    }

    /// CRC-32 of all pixels and labels, those held out included: tells this data from other data of the same name.
    #[must_use]
    pub fn checksum(&self) -> u32 {
        self.checksum
    }

    /// The `preprocessor_config.json` of a model that learned them.
    #[must_use]
    pub fn preprocess(&self) -> Preprocess {
        let Normalise { mean, std } = self.normalise.clone();
        let Shape { height, width, .. } = self.train.shape();
        let size = Size::Exact { height, width };
        Preprocess { size, image_mean: mean, image_std: std, ..Default::default() }
    }

    /// All held-out images with their labels.
    #[must_use]
    pub fn test(&self) -> (&Batch, &Tensor) {
        (&self.test, &self.labels)
    }

    /// The held-out images in batches.
    pub fn test_batches(&self) -> impl Iterator<Item = candle_core::Result<(Batch, Tensor)>> {
        let n = self.test_len();
        (0..n).step_by(TEST_BATCH).map(move |start| {
            let end = n.min(start + TEST_BATCH);
            let images = self.test.inputs.narrow(0, start, end - start)?;
            Ok((images.into(), self.labels.narrow(0, start, end - start)?))
        })
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
        let (images, labels) = self
            .train
            .tensors(indices, &self.normalise, Some((&self.augment, rng)), &self.device)
            .map_err(candle_core::Error::wrap)?;
        Ok((images.into(), labels))
    }
}

impl Source for Images {
    fn samples(&self) -> usize {
        self.test_len()
    }

    fn batch(&self, rows: Range<usize>, _device: &Device) -> Result<Batch> {
        Ok(self.test.inputs.narrow(0, rows.start, rows.len())?.into())
    }

    fn name(&self, sample: usize) -> String {
        format!("sample {sample}")
    }

    fn labels(&self) -> Option<&[u32]> {
        Some(&self.label_values)
    }

    fn classes(&self) -> &[String] {
        self.train.classes()
    }
}
