use rand::{SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;

/// `items` in an order that depends on `seed` and `stream` only.
pub(crate) fn shuffled(mut items: Vec<usize>, seed: u64, stream: u64) -> Vec<usize> {
    items.shuffle(&mut rng(seed, stream));
    items
}

/// One of the 2⁶⁴ independent generators of a seed.
pub(crate) fn rng(seed: u64, stream: u64) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(stream);
    rng
}
