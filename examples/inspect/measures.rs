//! The measures of `--measures`, and matrices of them over pairs of layers.

use anyhow::Result;
use candle_core::Tensor;
use clap::ValueEnum;
use layerwise::similarity::{Centring, Distance, Estimator, Measure};
use layerwise_example_common::similarity::{all_pairs, between};

/// A measure with its usual settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Named {
    /// Sample-wise cosine, centred over samples.
    Cos,
    /// Sample-wise angle over pi, centred over samples: a distance.
    Angular,
    /// Linear CKA, biased, as in the paper.
    Cka,
    /// Linear CKA, debiased.
    CkaDebiased,
    /// CKA with a Gaussian kernel as wide as the median distance.
    RbfCka,
    /// Mean canonical correlation.
    Cca,
    /// CCA of the directions with 99 % of the variance.
    Svcca,
    /// CCA, projection-weighted by the row's layer.
    Pwcca,
    /// Similarity after the best rotation.
    Procrustes,
    /// Cosine of each sample's similarities to all samples.
    Pnka,
    /// Rank correlation of the distances between samples.
    Rsa,
    /// Share of 10 nearest neighbours in common.
    Knn,
}

impl Named {
    pub(crate) fn measure(self) -> Measure {
        match self {
            Self::Cos => Measure::Cos(Centring::Samples),
            Self::Angular => Measure::AngularDistance(Centring::Samples),
            Self::Cka => Measure::Cka(Estimator::Biased),
            Self::CkaDebiased => Measure::Cka(Estimator::Debiased),
            Self::RbfCka => Measure::RbfCka { estimator: Estimator::Biased, bandwidth: 1. },
            Self::Cca => Measure::Cca,
            Self::Svcca => Measure::Svcca { variance: 0.99 },
            Self::Pwcca => Measure::Pwcca,
            Self::Procrustes => Measure::Procrustes,
            Self::Pnka => Measure::Pnka,
            Self::Rsa => Measure::Rsa(Distance::Correlation),
            Self::Knn => Measure::MutualKnn { neighbours: 10 },
        }
    }

    /// Its key in `results.json`.
    pub(crate) fn key(self) -> &'static str {
        match self {
            Self::Cos => "cos",
            Self::Angular => "angular",
            Self::Cka => "cka_biased",
            Self::CkaDebiased => "cka_debiased",
            Self::RbfCka => "rbf_cka",
            Self::Cca => "cca",
            Self::Svcca => "svcca",
            Self::Pwcca => "pwcca",
            Self::Procrustes => "procrustes",
            Self::Pnka => "pnka",
            Self::Rsa => "rsa",
            Self::Knn => "knn",
        }
    }

    /// What tables and figures call it.
    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Cka => "CKA",
            Self::CkaDebiased => "debiased CKA",
            Self::Procrustes => "Procrustes",
            other => other.measure().name(),
        }
    }
}

/// A measure of pairs of layers, NaN where it is undefined.
pub(crate) struct Matrix {
    pub(crate) named: Named,
    pub(crate) values: Vec<Vec<f64>>,
}

/// Each measure of all pairs of layers.
pub(crate) fn within(features: &[Tensor], measures: &[Named]) -> Result<Vec<Matrix>> {
    each(measures, |measure| all_pairs(features, measure))
}

/// Each measure of the layers of one model (rows) with those of another.
pub(crate) fn across(features: &[Tensor], other: &[Tensor], measures: &[Named]) -> Result<Vec<Matrix>> {
    each(measures, |measure| between(features, other, measure))
}

fn each(measures: &[Named], matrix: impl Fn(Measure) -> Result<Vec<Vec<f64>>>) -> Result<Vec<Matrix>> {
    let matrix = |&named: &Named| Ok(Matrix { named, values: matrix(named.measure())? });
    measures.iter().map(matrix).collect()
}
