use std::ops::Range;

use candle_core::{Device, Tensor};

use crate::{
    Augment, Error, ImageSet, Normalise, Result,
    order::{rng, shuffled},
};

/// The streams of a seed that epochs draw from; the small numbers are [`ImageSet::split`]'s.
const ORDER: u64 = 1 << 56;
const AUGMENTATION: u64 = 2 << 56;

/// The order in which `epoch` visits `n` samples: a function of its arguments.
///
/// # Example
///
/// ```
/// use layerwise_data::epoch_order;
///
/// assert_eq!(epoch_order(8, 42, 0), [0, 6, 1, 7, 3, 5, 2, 4]);
/// ```
#[must_use]
pub fn epoch_order(n: usize, seed: u64, epoch: usize) -> Vec<usize> {
    shuffled((0..n).collect(), seed, ORDER | epoch as u64)
}

impl ImageSet {
    /// The batches of one training epoch: all images in [`epoch_order`], augmented and then normalised, `size` at a time.
    ///
    /// Images are `(rows, channels, height, width)`, f32, labels `(rows)`, u32; the last batch has what is left. What
    /// augmentation draws depends on `seed`, `epoch` and the number of the batch only, so that `nth` makes any batch again.
    ///
    /// # Errors
    ///
    /// [`Error::Setting`] for a `size` of 0, when `normalise` has another number of channels, or `augment` a setting out of
    /// range. A batch is an error where its tensors cannot be made.
    pub fn batches<'a>(
        &'a self,
        size: usize,
        seed: u64,
        epoch: usize,
        normalise: &'a Normalise,
        augment: Option<&'a Augment>,
        device: &'a Device,
    ) -> Result<Batches<'a>> {
        let augment = augment.map(|augment| Draw { augment, seed, epoch });
        Batches::new(self, size, epoch_order(self.len(), seed, epoch), normalise, augment, device)
    }

    /// All images in their own order, normalised, `size` at a time: what a model is evaluated on. As [`batches`](Self::batches)
    /// else.
    ///
    /// # Errors
    ///
    /// [`Error::Setting`] for a `size` of 0, or when `normalise` has another number of channels.
    pub fn batches_in_order<'a>(
        &'a self,
        size: usize,
        normalise: &'a Normalise,
        device: &'a Device,
    ) -> Result<Batches<'a>> {
        Batches::new(self, size, (0..self.len()).collect(), normalise, None, device)
    }
}

/// Images and labels of a set, batch by batch, each made when it is asked for: see [`ImageSet::batches`].
#[derive(Clone, Debug)]
pub struct Batches<'a> {
    set: &'a ImageSet,
    order: Vec<usize>,
    size: usize,
    normalise: &'a Normalise,
    augment: Option<Draw<'a>>,
    device: &'a Device,
    left: Range<usize>,
}

#[derive(Clone, Copy, Debug)]
struct Draw<'a> {
    augment: &'a Augment,
    seed: u64,
    epoch: usize,
}

impl<'a> Batches<'a> {
    fn new(
        set: &'a ImageSet,
        size: usize,
        order: Vec<usize>,
        normalise: &'a Normalise,
        augment: Option<Draw<'a>>,
        device: &'a Device,
    ) -> Result<Self> {
        if size == 0 {
            return Err(Error::Setting { field: "size", value: "0".into(), expected: "at least 1".into() });
        }
        normalise.check(set.shape().channels)?;
        if let Some(draw) = augment {
            draw.augment.check()?;
        }
        let left = 0..order.len().div_ceil(size);
        Ok(Self { set, order, size, normalise, augment, device, left })
    }
}

impl Iterator for Batches<'_> {
    type Item = Result<(Tensor, Tensor)>;

    fn next(&mut self) -> Option<Self::Item> {
        self.nth(0)
    }

    /// Makes none of the batches that it leaves out.
    fn nth(&mut self, skipped: usize) -> Option<Self::Item> {
        let batch = self.left.nth(skipped)?;
        let indices = self.order.chunks(self.size).nth(batch)?;
        let Some(Draw { augment, seed, epoch }) = self.augment else {
            return Some(self.set.tensors(indices, self.normalise, None, self.device));
        };
        let mut rng = rng(seed, AUGMENTATION | epoch as u64);
        rng.set_word_pos((batch as u128) << 40); // a batch draws less than that
        Some(self.set.tensors(indices, self.normalise, Some((augment, &mut rng)), self.device))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.left.size_hint()
    }
}

impl ExactSizeIterator for Batches<'_> {}
