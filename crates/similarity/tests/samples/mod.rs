//! What several tests measure, and by what.

#![allow(dead_code, reason = "each test uses its part")]

use layerwise_similarity::{Centring, Distance, Estimator, Measure};
use ndarray::Array2;

/// Every measure, with every choice that it has.
pub(crate) const MEASURES: [Measure; 20] = [
    Measure::Cos(Centring::Samples),
    Measure::Cos(Centring::Features),
    Measure::Cos(Centring::None),
    Measure::AngularDistance(Centring::Samples),
    Measure::AngularDistance(Centring::Features),
    Measure::AngularDistance(Centring::None),
    Measure::Cka(Estimator::Biased),
    Measure::Cka(Estimator::Debiased),
    Measure::RbfCka { estimator: Estimator::Biased, bandwidth: 0.5 },
    Measure::RbfCka { estimator: Estimator::Debiased, bandwidth: 0.5 },
    Measure::Cca,
    Measure::Svcca { variance: 0.9 },
    Measure::Pwcca,
    Measure::Procrustes,
    Measure::ProcrustesDistance,
    Measure::Pnka,
    Measure::Rsa(Distance::Correlation),
    Measure::Rsa(Distance::Euclidean),
    Measure::Rsa(Distance::Cosine),
    Measure::MutualKnn { neighbours: 2 },
];

/// The measures of a `MomentAccumulator`.
pub(crate) const OF_MOMENTS: [Measure; 7] = [
    Measure::Cka(Estimator::Biased),
    Measure::Cka(Estimator::Debiased),
    Measure::Cca,
    Measure::Svcca { variance: 0.9 },
    Measure::Pwcca,
    Measure::Procrustes,
    Measure::ProcrustesDistance,
];

/// Different for each sample.
pub(crate) fn good(n: usize, width: usize) -> Array2<f64> {
    Array2::from_shape_fn((n, width), |(i, j)| ((i * 3 + j * 5) as f64).sin())
}

/// Numbers in (-1, 1) without a pattern.
pub(crate) fn noise(seed: u64, n: usize, width: usize) -> Array2<f64> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(1);
    Array2::from_shape_simple_fn((n, width), || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) as f64 / (1u64 << 52) as f64 - 1.
    })
}
