use ndarray::Array2;

use crate::{
    Centring, Error, Measure, Representation, Result,
    error::in_layer,
    frame::{Frame, check_samples, frames},
    gram::{Kernel, gram_sums, median_squared_distance},
    in_memory::by_moments,
    pairwise::similarity,
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
/// Debiased: `HSIC_1` of Song et al. (2012) on all three. From the smaller of the `d x d'` and the `n x n` matrices, which are never
/// held as a whole where they are large.
///
/// Unchanged by a rotation, a shift or a scaling of either; not by a general linear map.
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
/// let same = cka(&x, &(&x * 3. + 1.), Estimator::Biased)?;
/// assert!((same - 1.).abs() < 1e-12);
/// # Ok::<(), layerwise_similarity::Error>(())
/// ```
pub fn cka(x: &dyn Representation, y: &dyn Representation, estimator: Estimator) -> Result<f64> {
    similarity(x, y, Measure::Cka(estimator))
}

/// Centred kernel alignment with a Gaussian kernel (Kornblith et al. 2019, section 3).
///
/// ```text
/// k(x_i, x_j) = exp(-|x_i - x_j|^2 / (2 s^2)),  s = bandwidth * median of |x_i - x_j| over all pairs i < j
/// ```
///
/// Small bandwidths compare neighbourhoods; as the bandwidth grows, the limit is linear [`cka`]. Kornblith et al. try 0.2, 0.4 and
/// 0.8. Where no two samples are near each other, the biased estimate is 1 for any two representations: a sample is alike to itself
/// only, in both. Each representation has its own median. Time is `O(n^2 d)`, memory that of the features in f64.
///
/// Unchanged by a rotation, a shift or a scaling of either.
///
/// # Errors
///
/// As [`cka`]; [`Error::Setting`] for a bandwidth that is not between 1e-6 and 1e6, [`Error::Degenerate`], too, when half of all
/// pairs of samples coincide, so that there is no scale, and, debiased, when the bandwidth is so small that no two samples are near
/// each other.
pub fn rbf_cka(
    x: &dyn Representation,
    y: &dyn Representation,
    estimator: Estimator,
    bandwidth: f64,
) -> Result<f64> {
    similarity(x, y, Measure::RbfCka { estimator, bandwidth })
}

impl Estimator {
    /// The least number of samples.
    pub(crate) fn samples(self) -> usize {
        match self {
            Self::Biased => 2,
            Self::Debiased => 4,
        }
    }

    /// `tr(K L)` of the Gram matrices of centred features, or `n (n - 3)` times `HSIC_1`.
    ///
    /// The rows of a centred Gram matrix sum to 0; of the three terms of `HSIC_1` that leaves
    /// `tr(K L) - n / (n - 2) sum_i K_ii L_ii + tr(K) tr(L) / ((n - 1) (n - 2))`.
    pub(crate) fn hsic(self, trace: f64, diagonals: f64, traces: (f64, f64), samples: usize) -> f64 {
        let n = samples as f64;
        match self {
            Self::Biased => trace,
            Self::Debiased => trace - n / (n - 2.) * diagonals + traces.0 * traces.1 / ((n - 1.) * (n - 2.)),
        }
    }

    /// The same of Gram matrices with zeros on the diagonal that are not centred, from the sum of their products, the products of
    /// their rows' sums, and their sums.
    fn hsic_of_sums(self, products: f64, rows: f64, sums: (f64, f64), samples: usize) -> f64 {
        let n = samples as f64;
        match self {
            Self::Biased => products - 2. / n * rows + sums.0 * sums.1 / (n * n),
            Self::Debiased => products + sums.0 * sums.1 / ((n - 1.) * (n - 2.)) - 2. / (n - 2.) * rows,
        }
    }

    /// `sqrt(HSIC(X, X))`, of which `terms` is the size of the sums that it is the difference of.
    pub(crate) fn root(self, hsic: f64, terms: f64) -> Result<f64> {
        // Debiased, where theory says 0 (all samples equally far apart) only rounding is left.
        if hsic > ROUNDING * terms { Ok(hsic.sqrt()) } else { Err(Error::Degenerate { spread: hsic }) }
    }

    pub(crate) fn cka(self, hsic: f64, roots: f64) -> f64 {
        match self {
            Self::Biased => (hsic / roots).clamp(0., 1.),
            Self::Debiased => hsic / roots,
        }
    }
}

/// With squares of them, f64 is far from its ends.
const BANDWIDTHS: std::ops::RangeInclusive<f64> = 1e-6..=1e6;

/// Fourth powers of its exponential are far from overflow.
const LARGEST_SHIFT: f64 = 100.;

/// Below this share of its terms, a difference is rounding.
const ROUNDING: f64 = 1e-12;

/// Linear CKA of each of `pairs` of layers, in the form that takes fewer operations.
pub(crate) fn linear(
    layers: &[&dyn Representation],
    pairs: &[(usize, usize)],
    estimator: Estimator,
) -> Result<Vec<f64>> {
    check_samples(layers, estimator.samples())?;
    let dims = layers.iter().map(|xs| xs.dims()).collect::<Result<Vec<_>>>()?;
    let (n, width) = (dims[0].0 as f64, |l: usize| dims[l].1 as f64);
    let gram = n * (0..dims.len()).map(width).sum::<f64>();
    let itself = (0..dims.len()).map(|l| width(l) * width(l)).sum::<f64>();
    let others = pairs.iter().filter(|(i, j)| i != j).map(|&(i, j)| 2. * width(i) * width(j));
    if gram < itself + others.sum::<f64>() {
        from_gram(&frames(layers, Centring::Samples)?, pairs, estimator)
    } else {
        by_moments(layers, pairs, Measure::Cka(estimator), &|_| None)
    }
}

/// CKA with a Gaussian kernel of each of `pairs` of layers.
pub(crate) fn rbf(
    layers: &[&dyn Representation],
    pairs: &[(usize, usize)],
    estimator: Estimator,
    bandwidth: f64,
) -> Result<Vec<f64>> {
    if !BANDWIDTHS.contains(&bandwidth) {
        return Err(Error::Setting { name: "bandwidth", value: bandwidth, expected: "between 1e-6 and 1e6" });
    }
    check_samples(layers, estimator.samples())?;
    let xs = features(&frames(layers, Centring::Samples)?)?;
    let n = xs[0].nrows();
    // `-ln k` of the median distance.
    let at_median = 0.5 / (bandwidth * bandwidth);
    // The biased estimate has ones on the diagonal, beside which the rest may be small; the debiased one has not, and a kernel
    // that is small everywhere is made one of 1 at the median, as far as that is possible.
    let shift = match estimator {
        Estimator::Biased => 0.,
        Estimator::Debiased => at_median.min(LARGEST_SHIFT),
    };
    let gamma = |(layer, xs)| {
        let median = median_squared_distance(xs);
        let gamma = at_median / median;
        let gamma = if gamma.is_finite() { Ok(gamma) } else { Err(Error::Degenerate { spread: median }) };
        in_layer(layer, gamma)
    };
    let gammas = xs.iter().enumerate().map(gamma).collect::<Result<Vec<_>>>()?;
    let sums = gram_sums(&xs, &Kernel::Gaussian { gammas, shift });
    let hsic = |i: usize, j: usize| {
        let (left, right) = (&sums.rows[i], &sums.rows[j]);
        estimator.hsic_of_sums(sums.products[[i, j]], left.dot(right), (left.sum(), right.sum()), n)
    };
    let root = |l: usize| in_layer(l, estimator.root(hsic(l, l), sums.products[[l, l]]));
    let roots = (0..xs.len()).map(root).collect::<Result<Vec<_>>>()?;
    Ok(pairs.iter().map(|&(i, j)| estimator.cka(hsic(i, j), roots[i] * roots[j])).collect())
}

fn from_gram(frames: &[Frame<'_>], pairs: &[(usize, usize)], estimator: Estimator) -> Result<Vec<f64>> {
    let xs = features(frames)?;
    let sums = gram_sums(&xs, &Kernel::Linear);
    let hsic = |i: usize, j: usize| {
        let (left, right) = (&sums.diagonals[i], &sums.diagonals[j]);
        estimator.hsic(sums.products[[i, j]], left.dot(right), (left.sum(), right.sum()), left.len())
    };
    let root = |l: usize| {
        let terms = sums.diagonals[l].dot(&sums.diagonals[l]);
        in_layer(l, estimator.root(hsic(l, l), terms))
    };
    let roots = (0..xs.len()).map(root).collect::<Result<Vec<_>>>()?;
    Ok(pairs.iter().map(|&(i, j)| estimator.cka(hsic(i, j), roots[i] * roots[j])).collect())
}

fn features(frames: &[Frame<'_>]) -> Result<Vec<Array2<f64>>> {
    frames.iter().enumerate().map(|(layer, frame)| in_layer(layer, frame.all())).collect()
}
