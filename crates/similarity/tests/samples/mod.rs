//! What several tests measure, and by what.

#![allow(dead_code, reason = "each test uses its part")]

use layerwise_similarity::{Estimator, Measure};
use ndarray::Array2;

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
