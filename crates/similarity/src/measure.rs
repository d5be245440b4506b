use crate::{Centring, Distance, Error, Estimator, Result};

/// A similarity (or distance) of two representations.
///
/// Each is also a function of its own, which documents the equation, what it does not notice, and its errors.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Measure {
    /// [`cos`](crate::cos()).
    Cos(Centring),
    /// [`angular_distance`](crate::angular_distance).
    AngularDistance(Centring),
    /// Linear [`cka`](crate::cka()).
    Cka(Estimator),
    /// [`rbf_cka`](crate::rbf_cka).
    RbfCka {
        /// How HSIC is estimated.
        estimator: Estimator,
        /// Width of the kernel over the median distance of samples, from 1e-6 to 1e6.
        bandwidth: f64,
    },
    /// [`cca`](crate::cca()).
    Cca,
    /// [`svcca`](crate::svcca).
    Svcca {
        /// Share of the variance that is kept, in `(0, 1]`; 0.99 by Raghu et al.
        variance: f64,
    },
    /// [`pwcca`](crate::pwcca).
    Pwcca,
    /// [`procrustes`](crate::procrustes()).
    Procrustes,
    /// [`procrustes_distance`](crate::procrustes_distance).
    ProcrustesDistance,
    /// [`pnka`](crate::pnka()).
    Pnka,
    /// [`rsa`](crate::rsa()).
    Rsa(Distance),
    /// [`mutual_knn`](crate::mutual_knn).
    MutualKnn {
        /// How many neighbours; 10 by Huh et al.
        neighbours: usize,
    },
}

impl Measure {
    /// Whether two representations may be swapped.
    #[must_use]
    pub fn is_symmetric(self) -> bool {
        self != Self::Pwcca
    }

    /// As papers call it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Cos(_) => "COS",
            Self::AngularDistance(_) => "angular distance",
            Self::Cka(_) => "linear CKA",
            Self::RbfCka { .. } => "RBF CKA",
            Self::Cca => "CCA",
            Self::Svcca { .. } => "SVCCA",
            Self::Pwcca => "PWCCA",
            Self::Procrustes => "Procrustes similarity",
            Self::ProcrustesDistance => "Procrustes distance",
            Self::Pnka => "PNKA",
            Self::Rsa(_) => "RSA",
            Self::MutualKnn { .. } => "mutual k-NN",
        }
    }

    pub(crate) fn check(self) -> Result<()> {
        match self {
            Self::Svcca { variance } if !(variance > 0. && variance <= 1.) => {
                Err(Error::Setting { name: "variance", value: variance, expected: "a share in (0, 1]" })
            }
            _ => Ok(()),
        }
    }
}
