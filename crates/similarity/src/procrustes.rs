use crate::{Measure, Representation, Result, pairwise::similarity};

/// How well the best rotation lays one representation on the other.
///
/// ```text
/// s(X, Y) = |X^T Y|_* / (|X|_F |Y|_F)
/// ```
///
/// `x` is `(n, d)`, `y` is `(n, d')`, both centred; `|.|_*` is the sum of singular values. In `[0, 1]`: the largest
/// `<X R, Y> / (|X| |Y|)` over matrices `R` with orthonormal columns or rows (the narrower one is padded with zeros).
///
/// Unchanged by a rotation, a shift or a scaling of either; not by a general linear map.
///
/// # Errors
///
/// [`Error::Rows`](crate::Error::Rows) when `n` differs, [`Error::Samples`](crate::Error::Samples) below 2 samples,
/// [`Error::NotFinite`](crate::Error::NotFinite) for a NaN, [`Error::Degenerate`](crate::Error::Degenerate) when a representation is
/// the same for all samples.
///
/// # Example
///
/// ```
/// use layerwise_similarity::{procrustes, procrustes_distance};
/// use ndarray::array;
///
/// let x = array![[1., 2.], [0., 1.], [4., -1.], [2., 2.]];
/// let turned = x.dot(&array![[0., 1.], [-1., 0.]]) * 3. + 1.;
/// assert!((procrustes(&x, &turned)? - 1.).abs() < 1e-12);
/// assert!(procrustes_distance(&x, &turned)? < 1e-6);
/// # Ok::<(), layerwise_similarity::Error>(())
/// ```
pub fn procrustes(x: &dyn Representation, y: &dyn Representation) -> Result<f64> {
    similarity(x, y, Measure::Procrustes)
}

/// Orthogonal Procrustes distance of centred representations of norm 1 (Ding et al. 2021; Williams et al. 2021).
///
/// ```text
/// d(X, Y) = min_R |X R / |X| - Y / |Y||_F = sqrt(2 - 2 s(X, Y))
/// ```
///
/// A metric, in `[0, sqrt(2)]`; some authors report its square. The square root turns the last digit of [`procrustes`] into 1e-8:
/// less is rounding.
///
/// # Errors
///
/// As [`procrustes`].
pub fn procrustes_distance(x: &dyn Representation, y: &dyn Representation) -> Result<f64> {
    similarity(x, y, Measure::ProcrustesDistance)
}
