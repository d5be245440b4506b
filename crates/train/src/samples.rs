use candle_core::Tensor;
use layerwise_models::Batch;
use layerwise_ops::init::{self, ChaCha8Rng};
use rand::seq::SliceRandom;

use crate::{Error, Result};

/// Labelled samples that a trainer can draw by index.
pub trait Samples {
    /// How many there are.
    fn len(&self) -> usize;

    /// Whether there is none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Looks at the samples as a whole; [`train`](crate::train) does so before anything else. A wrapper passes it on.
    ///
    /// # Errors
    ///
    /// When they cannot be trained on.
    fn check(&self) -> Result<()> {
        Ok(())
    }

    /// The order in which an epoch visits the samples, in batches of `size`: all of them once, and a function of the arguments, so that a
    /// run can go on where it stopped. A wrapper passes it on.
    fn order(&self, seed: u64, epoch: usize, _size: usize) -> Vec<usize> {
        epoch_order(self.len(), seed, epoch)
    }

    /// The samples `indices` with labels `(rows)`, u32, or, where a number is to be predicted, f32; augmented with `rng` or not at
    /// all.
    ///
    /// # Errors
    ///
    /// When an index is out of range or a sample cannot be read.
    fn batch(&self, indices: &[usize], rng: &mut ChaCha8Rng) -> candle_core::Result<(Batch, Tensor)>;
}

/// Samples held as tensors.
#[derive(Clone, Debug)]
pub struct TensorSamples {
    /// `(samples, ..)`.
    pub inputs: Tensor,
    /// `(samples)`, u32 or f32.
    pub labels: Tensor,
}

impl Samples for TensorSamples {
    fn len(&self) -> usize {
        self.labels.elem_count()
    }

    fn check(&self) -> Result<()> {
        let (inputs, labels) = (self.inputs.dim(0)?, self.len());
        if inputs == labels { Ok(()) } else { Err(Error::Samples { inputs, labels }) }
    }

    fn batch(&self, indices: &[usize], _rng: &mut ChaCha8Rng) -> candle_core::Result<(Batch, Tensor)> {
        let rows: Vec<u32> = indices.iter().map(|&i| i as u32).collect();
        let rows = Tensor::new(rows, self.inputs.device())?;
        let inputs = self.inputs.index_select(&rows, 0)?;
        Ok((inputs.into(), self.labels.index_select(&rows, 0)?))
    }
}

/// The order in which `epoch` visits `n` samples: a function of its arguments.
#[must_use]
pub fn epoch_order(n: usize, seed: u64, epoch: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..n).collect();
    order.shuffle(&mut stream(seed, Stream::Order, epoch as u64));
    order
}

/// What a derived generator is for.
#[derive(Clone, Copy)]
pub(crate) enum Stream {
    Order = 1,
    Augmentation = 2,
    Dropout = 3,
}

/// A generator that depends on the run's seed, its purpose and a counter.
pub(crate) fn stream(seed: u64, what: Stream, counter: u64) -> ChaCha8Rng {
    let mut rng = init::rng(seed);
    rng.set_stream(((what as u64) << 56) | counter);
    rng
}
