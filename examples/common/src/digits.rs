//! The embedded digits, ready for training, and the small ViT that learns them.

use anyhow::Result;
use candle_core::{Device, Tensor};
use layerwise_data::{Augment, ImageSet, Normalise, Preprocess, Size, digits};
use layerwise_models::{Batch, VitConfig};
use layerwise_ops::init::ChaCha8Rng;
use layerwise_train::Samples;

/// A 12-layer ViT of width 48 for images of 8x8 pixels, in patches of 2x2.
#[must_use]
pub fn digits_vit() -> VitConfig {
    VitConfig {
        image_size: 8,
        patch_size: 2,
        num_channels: 1,
        hidden_size: 48,
        num_hidden_layers: 12,
        num_attention_heads: 3,
        intermediate_size: 192,
        num_labels: 10,
        ..Default::default()
    }
}

/// The embedded digits: 80 % to train on, turned by up to 10 degrees each time they are drawn; 20 % held out, the same in
/// every run.
#[derive(Debug)]
pub struct Digits {
    train: ImageSet,
    normalise: Normalise,
    test: Batch,
    labels: Tensor,
    device: Device,
}

/// Held-out images that go through a model at once.
pub const TEST_BATCH: usize = 256;

impl Digits {
    /// At most `limit` training images.
    ///
    /// # Errors
    ///
    /// When `limit` is 0.
    pub fn load(limit: usize, device: &Device) -> Result<Self> {
        let (train, test) = digits()?.split(0.2, 0)?;
        let train = train.take(limit)?;
        let normalise = Normalise::from_set(&train);
        let all: Vec<usize> = (0..test.len()).collect();
        let (images, labels) = test.tensors(&all, &normalise, None, device)?;
        Ok(Self { train, normalise, test: images.into(), labels, device: device.clone() })
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

    /// The `preprocessor_config.json` of a model that learned them.
    #[must_use]
    pub fn preprocess(&self) -> Preprocess {
        let Normalise { mean, std } = self.normalise.clone();
        let size = Size::Exact { height: 8, width: 8 };
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
            let rows = TEST_BATCH.min(n - start);
            let images = self.test.inputs.narrow(0, start, rows)?;
            Ok((images.into(), self.labels.narrow(0, start, rows)?))
        })
    }
}

impl Samples for Digits {
    fn len(&self) -> usize {
        self.train.len()
    }

    fn batch(&self, indices: &[usize], rng: &mut ChaCha8Rng) -> candle_core::Result<(Batch, Tensor)> {
        // Of the paper's recipe what 8x8 digits bear: mirrored they are others, and a pixel is an eighth of them.
        let augment = Augment { crop_padding: 0, flip: 0., rotation_degrees: 10. };
        let (images, labels) = self
            .train
            .tensors(indices, &self.normalise, Some((&augment, rng)), &self.device)
            .map_err(candle_core::Error::wrap)?;
        Ok((images.into(), labels))
    }
}
