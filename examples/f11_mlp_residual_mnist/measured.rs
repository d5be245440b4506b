//! What is measured of the models.

use anyhow::Result;
use candle_core::Tensor;
use layerwise::{
    exit::LayerScores,
    similarity::{Centring, Estimator, Measure},
};
use layerwise_example_common::{
    curves::{Together, mean_curve, together},
    similarity::to_last,
};

/// A model and its curves over layers `1..=L`.
pub(crate) struct Measured {
    pub(crate) seed: u64,
    pub(crate) scores: LayerScores,
    pub(crate) cos: Vec<f64>,
    pub(crate) cka: Vec<f64>,
    pub(crate) correlations: Vec<Together>,
}

/// The models with or those without residual connections.
pub(crate) struct Variant {
    pub(crate) name: &'static str,
    pub(crate) models: Vec<Measured>,
    pub(crate) mean: Vec<Together>,
}

impl Variant {
    /// The mean of a curve over the seeds.
    pub(crate) fn mean_of(&self, curve: fn(&Measured) -> Vec<f64>) -> Vec<f64> {
        mean_curve(&self.models.iter().map(curve).collect::<Vec<_>>())
    }
}

pub(crate) fn measure(seed: u64, layers: &[Tensor], scores: LayerScores) -> Result<Measured> {
    let cos = to_last(layers, Measure::Cos(Centring::Samples))?;
    let cka = to_last(layers, Measure::Cka(Estimator::Biased))?;
    let correlations = vec![
        together(("COS", &cos), ("CKA", &cka)),
        together(("COS", &cos), ("accuracy", &scores.accuracy)),
        together(("CKA", &cka), ("accuracy", &scores.accuracy)),
    ];
    Ok(Measured { seed, scores, cos, cka, correlations })
}
