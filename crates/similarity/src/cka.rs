use ndarray::{Array2, ArrayView2, Axis};

use crate::{
    Error, Real, Result,
    representation::{centre_samples, same_rows, widen},
};

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
/// Debiased: `HSIC_1` of Song et al. (2012) on both sums. Works in feature form (`d x d'`) or Gram form (`n x n`), whichever
/// is smaller.
///
/// # Errors
///
/// [`Error::Rows`] when `n` differs, [`Error::Samples`] below 2 (debiased: 4) samples, [`Error::NotFinite`] for a NaN,
/// [`Error::Degenerate`] when a representation is the same for all samples, or its debiased HSIC with itself is not positive.
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
    let (x, y) = (Features::new(x, estimator)?, Features::new(y, estimator)?);
    let hsic = x.hsic(&y, estimator)?;
    let scale = x.self_hsic(estimator)?.sqrt() * y.self_hsic(estimator)?.sqrt();
    Ok(hsic / scale)
}

/// A centred representation with the sums that `HSIC_1` needs, shared by all its pairs.
pub(crate) struct Features {
    xs: Array2<f64>,
    /// `|x_i|^2`.
    norms: ndarray::Array1<f64>,
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
        let largest = xs.iter().fold(0f64, |largest, x| largest.max(x.abs()));
        if largest > 0. {
            xs /= largest;
        }
        let norms = xs.map_axis(Axis(1), |row| row.dot(&row));
        Ok(Self { xs, norms })
    }

    /// HSIC with itself; positive.
    pub(crate) fn self_hsic(&self, estimator: Estimator) -> Result<f64> {
        let hsic = self.hsic(self, estimator)?;
        if hsic > 0. { Ok(hsic) } else { Err(Error::Degenerate { hsic }) }
    }

    pub(crate) fn hsic(&self, other: &Self, estimator: Estimator) -> Result<f64> {
        let n = self.xs.nrows();
        same_rows(n, other.xs.nrows())?;
        let (dx, dy) = (self.xs.ncols(), other.xs.ncols());
        let sums = if dx.saturating_mul(dy) <= n.saturating_mul(n) {
            self.feature_form(other)
        } else {
            self.gram_form(other)
        };
        Ok(match estimator {
            Estimator::Biased => sums.full,
            Estimator::Debiased => sums.debiased(n as f64),
        })
    }

    /// Sums from `C = X^T Y`, `d x d'`.
    fn feature_form(&self, other: &Self) -> Sums {
        let (x, y) = (&self.xs, &other.xs);
        let c = x.t().dot(y);
        let full = c.iter().map(|c| c * c).sum();
        let (a, b) = (&self.norms, &other.norms);
        // The features are centred up to rounding, so their column sums are kept.
        let (sx, sy) = (x.sum_axis(Axis(0)), y.sum_axis(Axis(0)));
        let ab = a.dot(b);
        let (u, v) = (x.t().dot(b), y.t().dot(a));
        Sums {
            full,
            off_diagonal: full - ab,
            k_total: sx.dot(&sx) - a.sum(),
            l_total: sy.dot(&sy) - b.sum(),
            cross: sx.dot(&c.dot(&sy)) - sx.dot(&u) - sy.dot(&v) + ab,
        }
    }

    /// The same sums from the Gram matrices, `n x n`.
    fn gram_form(&self, other: &Self) -> Sums {
        let mut k = self.xs.dot(&self.xs.t());
        let mut l = other.xs.dot(&other.xs.t());
        let full = k.iter().zip(&l).map(|(k, l)| k * l).sum();
        k.diag_mut().fill(0.);
        l.diag_mut().fill(0.);
        let (k1, l1) = (k.sum_axis(Axis(1)), l.sum_axis(Axis(1)));
        Sums {
            full,
            off_diagonal: k.iter().zip(&l).map(|(k, l)| k * l).sum(),
            k_total: k1.sum(),
            l_total: l1.sum(),
            cross: k1.dot(&l1),
        }
    }
}

/// With `K~`, `L~` the Gram matrices without their diagonals.
struct Sums {
    /// `tr(K L)`.
    full: f64,
    /// `tr(K~ L~)`.
    off_diagonal: f64,
    /// `1' K~ 1`.
    k_total: f64,
    /// `1' L~ 1`.
    l_total: f64,
    /// `1' K~ L~ 1`.
    cross: f64,
}

impl Sums {
    fn debiased(&self, n: f64) -> f64 {
        let totals = self.k_total * self.l_total / ((n - 1.) * (n - 2.));
        (self.off_diagonal + totals - 2. / (n - 2.) * self.cross) / (n * (n - 3.))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_give_the_same_sums() -> Result<()> {
        let value =
            |i: usize, j: usize, k: usize| (((i * 7 + j * 13 + k) * 2654435761) % 1000) as f64 / 500. - 1.;
        for (n, dx, dy) in [(5, 3, 4), (9, 20, 2), (30, 7, 7)] {
            let x = Array2::from_shape_fn((n, dx), |(i, j)| value(i, j, 1));
            let y = Array2::from_shape_fn((n, dy), |(i, j)| value(i, j, 5));
            let x = Features::new(x.view(), Estimator::Debiased)?;
            let y = Features::new(y.view(), Estimator::Debiased)?;
            let (f, g) = (x.feature_form(&y), x.gram_form(&y));
            let pairs = [(f.full, g.full), (f.off_diagonal, g.off_diagonal), (f.cross, g.cross)];
            for (a, b) in pairs.into_iter().chain([(f.k_total, g.k_total), (f.l_total, g.l_total)]) {
                assert!((a - b).abs() < 1e-11 * (1. + a.abs()), "n={n} dx={dx} dy={dy}: {a} {b}");
            }
        }
        Ok(())
    }
}
