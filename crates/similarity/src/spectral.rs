//! Measures of the spectra of second moments: the CCA family and Procrustes.

use ndarray::{Array1, Array2, Axis, s};
use rayon::prelude::*;

use crate::{
    Error, Measure, Result,
    error::in_layer,
    linalg::{eigen, left_singular, product, singular_values},
};

/// Directions with less than this share of the largest variance are not told from rounding, and dropped.
pub(crate) const RANK: f64 = 1e-10;

/// The measure of each of `pairs` of `layers`, from `scatter(i, j) = X_i^T X_j` of centred features.
///
/// `features(l)` is the `(width, d)` matrix that turns what the scatter is of into features, where they are not the same.
pub(crate) fn spectral<'a>(
    measure: Measure,
    layers: usize,
    pairs: &[(usize, usize)],
    scatter: &(dyn Fn(usize, usize) -> Array2<f64> + Sync),
    features: &(dyn Fn(usize) -> Option<&'a Array2<f64>> + Sync),
) -> Result<Vec<f64>> {
    let score: Box<dyn Fn(usize, usize) -> Result<f64> + Sync> = match measure {
        Measure::Procrustes | Measure::ProcrustesDistance => {
            let norms: Vec<f64> = (0..layers).map(|l| scatter(l, l).diag().sum().sqrt()).collect();
            Box::new(move |i, j| {
                let nuclear = singular_values(&scatter(i, j))?.sum();
                let similarity = (nuclear / (norms[i] * norms[j])).min(1.);
                Ok(match measure {
                    Measure::Procrustes => similarity,
                    _ => (2. - 2. * similarity).sqrt(),
                })
            })
        }
        _ => {
            let share = if let Measure::Svcca { variance } = measure { variance } else { 1. };
            let bases: Vec<_> =
                (0..layers).into_par_iter().map(|l| Basis::new(&scatter(l, l), share)).collect();
            let bases = bases.into_iter().enumerate().map(|(l, basis)| in_layer(l, basis));
            let bases = bases.collect::<Result<Vec<_>>>()?;
            Box::new(move |i, j| {
                let (x, y) = (&bases[i], &bases[j]);
                let whitened =
                    product(product(x.whitening().t(), scatter(i, j).view()).view(), y.whitening().view());
                let least = x.rank().min(y.rank());
                Ok(match measure {
                    Measure::Pwcca => {
                        let (u, correlations) = left_singular(&whitened)?;
                        let weights = x.weights(&u, features(i));
                        let correlations = correlations.mapv(|rho| rho.min(1.));
                        weights.dot(&correlations) / weights.sum()
                    }
                    _ => singular_values(&whitened)?.mapv(|rho| rho.min(1.)).sum() / least as f64,
                })
            })
        }
    };
    let scores: Vec<_> = pairs.par_iter().map(|&(i, j)| score(i, j)).collect();
    pairs.iter().zip(scores).map(|(&(_, layer), score)| in_layer(layer, score)).collect()
}

/// Principal directions of a layer.
struct Basis {
    /// Their scatter, descending.
    values: Array1<f64>,
    /// As columns, `(d, k)`.
    vectors: Array2<f64>,
}

impl Basis {
    /// The leading directions that hold `share` of the variance, at most all that are not rounding.
    fn new(scatter: &Array2<f64>, share: f64) -> Result<Self> {
        let (values, vectors) = eigen(scatter)?;
        let largest = values[0];
        if largest <= 0. {
            return Err(Error::Degenerate { spread: largest });
        }
        let rank = values.iter().take_while(|&&value| value > RANK * largest).count();
        let wanted = share * values.slice(s![..rank]).sum();
        let mut held = 0.;
        // One more than those that together hold less.
        let short = values.iter().take(rank).take_while(|&&value| {
            held += value;
            held < wanted
        });
        let keep = if share < 1. { (short.count() + 1).min(rank) } else { rank };
        Ok(Self {
            values: values.slice(s![..keep]).to_owned(),
            vectors: vectors.slice(s![.., ..keep]).to_owned(),
        })
    }

    fn rank(&self) -> usize {
        self.values.len()
    }

    /// `W = V L^(-1/2)`: the columns of `X W` are orthonormal.
    fn whitening(&self) -> Array2<f64> {
        &self.vectors / &self.values.mapv(f64::sqrt)
    }

    /// `alpha_i = sum_j |<h_i, x_j>|` of the canonical vectors `h = X W u` and the columns `x_j` of `X`: the rows of
    /// `U^T L^(1/2) V^T`.
    fn weights(&self, u: &Array2<f64>, features: Option<&Array2<f64>>) -> Array1<f64> {
        let scaled = &self.vectors * &self.values.mapv(f64::sqrt);
        let mut inner = product(u.t(), scaled.t());
        if let Some(features) = features {
            inner = product(inner.view(), features.view());
        }
        inner.mapv(f64::abs).sum_axis(Axis(1))
    }
}
