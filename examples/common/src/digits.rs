use anyhow::Result;
use candle_core::{Device, Tensor};
use layerwise::{
    data::{ImageSet, Normalise, digits},
    models::Batch,
    ops::init::ChaCha8Rng,
    train::Samples,
};

/// The embedded digits: 80 % to train on, 20 % held out, the same in every run.
pub(crate) struct Digits {
    train: ImageSet,
    normalise: Normalise,
    test: Batch,
    labels: Tensor,
    device: Device,
}

/// Samples that one evaluation pass takes at once.
const TEST_BATCH: usize = 256;

impl Digits {
    /// At most `limit` training images.
    pub(crate) fn load(limit: usize, device: &Device) -> Result<Self> {
        let (train, test) = digits()?.split(0.2, 0)?;
        let train = train.take(limit)?;
        let normalise = Normalise::from_set(&train);
        let all: Vec<usize> = (0..test.len()).collect();
        let (images, labels) = test.tensors(&all, &normalise, None, device)?;
        Ok(Self { train, normalise, test: images.into(), labels, device: device.clone() })
    }

    pub(crate) fn train_len(&self) -> usize {
        self.train.len()
    }

    pub(crate) fn test_len(&self) -> usize {
        self.labels.elem_count()
    }

    /// All held-out images with their labels.
    pub(crate) fn test(&self) -> (&Batch, &Tensor) {
        (&self.test, &self.labels)
    }

    /// The held-out images in batches.
    pub(crate) fn test_batches(&self) -> impl Iterator<Item = candle_core::Result<(Batch, Tensor)>> {
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

    fn batch(&self, indices: &[usize], _rng: &mut ChaCha8Rng) -> candle_core::Result<(Batch, Tensor)> {
        // No augmentation: mirrored digits are other digits.
        let (images, labels) = self
            .train
            .tensors(indices, &self.normalise, None, &self.device)
            .map_err(candle_core::Error::wrap)?;
        Ok((images.into(), labels))
    }
}
