use crate::{epoch_order, order::shuffled};

/// Batches that are sorted together.
const BATCHES: usize = 50;
/// The stream of a seed that orders of batches are drawn from, beside those of epochs.
const BUCKETS: u64 = 3 << 56;

/// An order of samples in which neighbours are of about one length, so that batches of `size` have little padding: some batches at a
/// time in [`epoch_order`] are sorted by length, and these batches shuffled. A function of its arguments.
///
/// The last batch of all has what is left, as in any order.
///
/// ```
/// use layerwise_data::bucketed_order;
///
/// let lengths = [9, 2, 8, 1, 9, 1, 2, 8];
/// let order = bucketed_order(&lengths, 2, 42, 0);
/// assert!(order.chunks(2).all(|batch| lengths[batch[0]].abs_diff(lengths[batch[1]]) <= 1));
/// ```
#[must_use]
pub fn bucketed_order(lengths: &[usize], size: usize, seed: u64, epoch: usize) -> Vec<usize> {
    let size = size.max(1);
    let mut order = epoch_order(lengths.len(), seed, epoch);
    let whole = order.len() / size * size;
    let rest = order.split_off(whole);
    let mut batches = Vec::new();
    for part in order.chunks_mut(BATCHES * size) {
        // Stable, so that samples of one length stay in the order that they were drawn in.
        part.sort_by_key(|&sample| lengths[sample]);
        batches.extend(part.chunks(size).map(<[usize]>::to_vec));
    }
    let by_draw = shuffled((0..batches.len()).collect(), seed, BUCKETS | epoch as u64);
    by_draw.into_iter().flat_map(|batch| std::mem::take(&mut batches[batch])).chain(rest).collect()
}
