//! Matrices of measures over pairs of layers.

use anyhow::Result;
use candle_core::Tensor;
use layerwise::similarity::Measure;
use layerwise_example_common::{
    measures::NamedMeasure,
    similarity::{all_pairs, between},
};

/// A measure of pairs of layers, NaN where it is undefined.
pub(crate) struct Matrix {
    pub(crate) named: NamedMeasure,
    pub(crate) values: Vec<Vec<f64>>,
}

/// Each measure of all pairs of layers.
pub(crate) fn within(features: &[Tensor], measures: &[NamedMeasure]) -> Result<Vec<Matrix>> {
    each(measures, |measure| all_pairs(features, measure))
}

/// Each measure of the layers of one model (rows) with those of another.
pub(crate) fn across(
    features: &[Tensor],
    other: &[Tensor],
    measures: &[NamedMeasure],
) -> Result<Vec<Matrix>> {
    each(measures, |measure| between(features, other, measure))
}

fn each(measures: &[NamedMeasure], matrix: impl Fn(Measure) -> Result<Vec<Vec<f64>>>) -> Result<Vec<Matrix>> {
    let matrix = |&named: &NamedMeasure| Ok(Matrix { named, values: matrix(named.measure())? });
    measures.iter().map(matrix).collect()
}
