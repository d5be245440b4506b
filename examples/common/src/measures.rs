//! Measures by the names that users type.

use clap::ValueEnum;
use layerwise_similarity::{Centring, Distance, Estimator, Measure};

/// A measure with its usual settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum NamedMeasure {
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

impl NamedMeasure {
    /// The measure itself.
    #[must_use]
    pub fn measure(self) -> Measure {
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
    #[must_use]
    pub fn key(self) -> &'static str {
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
    #[must_use]
    pub fn title(self) -> &'static str {
        match self {
            Self::Cka => "CKA",
            Self::CkaDebiased => "debiased CKA",
            Self::Procrustes => "Procrustes",
            other => other.measure().name(),
        }
    }
}
