use crate::{Measure, Representation, Result, pairwise::similarity};

/// Mean canonical correlation (Hotelling 1936).
///
/// ```text
/// CCA(X, Y) = 1/k sum_i rho_i,  rho = singular values of Q_X^T Q_Y,  k = min(rank X, rank Y)
/// ```
///
/// `x` is `(n, d)`, `y` is `(n, d')`; `Q` are orthonormal bases of the centred columns. In `[0, 1]`. Directions with less than
/// 1e-10 of the variance of the largest one count as rounding and are dropped. With few samples (`n` not much above the ranks)
/// it is close to 1 for anything: see [`svcca`] and [`cka`](crate::cka()).
///
/// Unchanged by any shift of either and any invertible linear map that stretches directions by less than 1e5 against each other:
/// beyond that, some are dropped.
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
/// use layerwise_similarity::cca;
/// use ndarray::array;
///
/// let x = array![[1., 2.], [0., 1.], [4., -1.], [2., 2.], [0., 3.]];
/// let mixed = x.dot(&array![[2., 1.], [0., -3.]]);
/// assert!((cca(&x, &mixed)? - 1.).abs() < 1e-9);
/// # Ok::<(), layerwise_similarity::Error>(())
/// ```
pub fn cca(x: &dyn Representation, y: &dyn Representation) -> Result<f64> {
    similarity(x, y, Measure::Cca)
}

/// Singular vector canonical correlation (Raghu et al. 2017): [`cca`] of the leading principal directions of each representation
/// that together hold the share `variance` of its variance; the authors take 0.99.
///
/// Unchanged by a rotation, a shift or a scaling of either; not by a general linear map.
///
/// # Errors
///
/// As [`cca`]; [`Error::Setting`](crate::Error::Setting) for a share outside of `(0, 1]`.
pub fn svcca(x: &dyn Representation, y: &dyn Representation, variance: f64) -> Result<f64> {
    similarity(x, y, Measure::Svcca { variance })
}

/// Projection-weighted canonical correlation (Morcos et al. 2018), weighted by how much of `x` each canonical vector accounts for.
///
/// ```text
/// PWCCA(X, Y) = sum_i alpha_i rho_i / sum_i alpha_i,  alpha_i = sum_j |<h_i, x_j>|
/// ```
///
/// `h_i` are the canonical vectors of `X` in sample space, `x_j` its centred columns. Not symmetric: a matrix of
/// [`pairwise`](crate::pairwise()) has the weights of the row's layer.
///
/// Unchanged by a shift or a scaling of either and by an invertible linear map of `y`; not by a rotation of `x`.
///
/// # Errors
///
/// As [`cca`].
pub fn pwcca(x: &dyn Representation, y: &dyn Representation) -> Result<f64> {
    similarity(x, y, Measure::Pwcca)
}
