use ndarray::{Array1, Array2, ArrayView2, Axis};

use crate::{
    Error, Real, Result,
    representation::{centre_samples, largest, same_rows, widen},
};

/// Below this share of its terms, a difference is rounding.
const ROUNDING: f64 = 1e-12;

/// How the Hilbert-Schmidt independence criterion of a finite sample is estimated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Estimator {
    /// Plain centred Gram matrices (the paper, section 2). Grows with width over samples: independent representations score
    /// above 0.
    #[default]
    Biased,
    /// Song's unbiased estimator, `HSIC_1`; needs four samples. May be slightly negative.
    Debiased,
}

/// Linear centred kernel alignment (the paper, section 2; Kornblith et al. 2019).
///
/// ```text
/// CKA(X, Y) = HSIC(X, Y) / sqrt(HSIC(X, X) HSIC(Y, Y))
/// ```
///
/// `x` is `(n, d)`, `y` is `(n, d')`. Biased: `HSIC = |Y^T X|_F^2` of column-centred features, result in `[0, 1]`.
/// Debiased: `HSIC_1` of Song et al. (2012) on both sums. A representation wider than it has samples is replaced by its Gram
/// matrix (`n x n`) first.
///
/// # Errors
///
/// [`Error::Rows`] when `n` differs, [`Error::Samples`] below 2 (debiased: 4) samples, [`Error::NotFinite`] for a NaN,
/// [`Error::Degenerate`] when a representation is the same for all samples or, debiased, keeps all samples equally far apart:
/// its HSIC with itself is then 0.
///
/// # Example
///
/// ```
/// use layerwise_similarity::{Estimator, cka};
/// use ndarray::array;
///
/// let x = array![[1., 2.], [0., 1.], [4., -1.], [2., 2.], [0., 3.]];
/// let same = cka(x.view(), (&x * 3. + 1.).view(), Estimator::Biased)?;
/// assert!((same - 1.).abs() < 1e-12);
/// # Ok::<(), layerwise_similarity::Error>(())
/// ```
pub fn cka<T: Real, U: Real>(
    x: ArrayView2<'_, T>,
    y: ArrayView2<'_, U>,
    estimator: Estimator,
) -> Result<f64> {
    Features::new(x, estimator)?.cka(&Features::new(y, estimator)?)
}

/// A centred representation with what all its pairs share.
pub(crate) struct Features {
    held: Held,
    /// `|x_i|^2`.
    norms: Array1<f64>,
    estimator: Estimator,
    /// `sqrt(HSIC(X, X))`, positive.
    root: f64,
}

impl Features {
    pub(crate) fn new<T: Real>(xs: ArrayView2<'_, T>, estimator: Estimator) -> Result<Self> {
        let needed = match estimator {
            Estimator::Biased => 2,
            Estimator::Debiased => 4,
        };
        if xs.nrows() < needed {
            return Err(Error::Samples { samples: xs.nrows(), needed });
        }
        let mut xs = centre_samples(widen(xs)?);
        // CKA does not depend on scale; near 1, no product overflows.
        let largest = largest(xs.view());
        if largest > 0. {
            xs /= largest;
        }
        let norms = xs.map_axis(Axis(1), |row| row.dot(&row));
        let features = Self { held: Held::smaller(xs), norms, estimator, root: 1. };
        let hsic = features.hsic(&features)?;
        // Debiased, a difference of sums: where theory says 0 (all samples equally far apart) only rounding is left.
        if hsic > ROUNDING * features.norms.dot(&features.norms) {
            Ok(Self { root: hsic.sqrt(), ..features })
        } else {
            Err(Error::Degenerate { hsic })
        }
    }

    pub(crate) fn cka(&self, other: &Self) -> Result<f64> {
        let cka = self.hsic(other)? / (self.root * other.root);
        Ok(match self.estimator {
            Estimator::Biased => cka.min(1.),
            Estimator::Debiased => cka,
        })
    }

    /// `tr(K L)` of the Gram matrices, or `HSIC_1` times `n (n - 3)`.
    ///
    /// The rows of a centred Gram matrix sum to 0; of the three terms of `HSIC_1` that leaves
    /// `tr(K L) - n / (n - 2) sum_i K_ii L_ii + tr(K) tr(L) / ((n - 1) (n - 2))`.
    fn hsic(&self, other: &Self) -> Result<f64> {
        let (a, b) = (&self.norms, &other.norms);
        same_rows(a.len(), b.len())?;
        let (n, trace) = (a.len() as f64, self.held.trace(&other.held));
        Ok(match self.estimator {
            Estimator::Biased => trace,
            Estimator::Debiased => {
                trace - n / (n - 2.) * a.dot(b) + a.sum() * b.sum() / ((n - 1.) * (n - 2.))
            }
        })
    }
}

/// What is kept of a representation for its pairs: the smaller of the centred features `X`, `(n, d)`, and their Gram matrix
/// `K = X X^T`, `(n, n)`. A pair needs no more.
enum Held {
    Features(Array2<f64>),
    Gram(Array2<f64>),
}

impl Held {
    fn smaller(xs: Array2<f64>) -> Self {
        if xs.ncols() <= xs.nrows() { Self::Features(xs) } else { Self::Gram(xs.dot(&xs.t())) }
    }

    /// `tr(K L)`.
    fn trace(&self, other: &Self) -> f64 {
        match (self, other) {
            (Self::Features(x), Self::Features(y)) => x.t().dot(y).iter().map(|c| c * c).sum(),
            (Self::Gram(k), Self::Gram(l)) => k.flatten().dot(&l.flatten()),
            (Self::Gram(k), Self::Features(x)) | (Self::Features(x), Self::Gram(k)) => (k.dot(x) * x).sum(),
        }
    }
}

#[cfg(test)]
mod tests {
    use ndarray::Array2;

    use super::{Estimator, Features, Held};
    use crate::Result;

    /// Each pair of a stack takes what its layers hold: a product of `n x n x d` a pair would be work done again.
    #[test]
    fn a_representation_is_held_in_its_smaller_form() -> Result<()> {
        for (n, width, gram) in [(5, 4, false), (5, 5, false), (5, 6, true), (5, 40, true)] {
            let xs = Array2::from_shape_fn((n, width), |(i, j)| ((i * 3 + j * 5) as f64).sin());
            match Features::new(xs.view(), Estimator::Biased)?.held {
                Held::Features(xs) => assert!(!gram && xs.dim() == (n, width)),
                Held::Gram(k) => assert!(gram && k.dim() == (n, n)),
            }
        }
        Ok(())
    }
}
