use rand::{SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;

/// `items` in an order that depends on `seed` and `stream` only.
pub(crate) fn shuffled(mut items: Vec<usize>, seed: u64, stream: u64) -> Vec<usize> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(stream);
    items.shuffle(&mut rng);
    items
}
