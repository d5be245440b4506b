//! Similarity of all pairs of layers, the embedding included.

use anyhow::Result;
use candle_core::Tensor;
use layerwise::similarity::{Centring, Estimator, Measure};
use layerwise_example_common::similarity::all_pairs;

/// `(L + 1) x (L + 1)` each; NaN where a measure is undefined.
pub(crate) struct Matrices {
    pub(crate) cos: Vec<Vec<f64>>,
    pub(crate) cka_biased: Vec<Vec<f64>>,
    pub(crate) cka_debiased: Vec<Vec<f64>>,
}

impl Matrices {
    /// `features` are `(samples, width)` of layers `0..=L`.
    pub(crate) fn measure(features: &[Tensor]) -> Result<Self> {
        Ok(Self {
            cos: all_pairs(features, Measure::Cos(Centring::Samples))?,
            cka_biased: all_pairs(features, Measure::Cka(Estimator::Biased))?,
            cka_debiased: all_pairs(features, Measure::Cka(Estimator::Debiased))?,
        })
    }
}
