use ndarray::{Array1, Array2, ArrayView2};

use crate::{
    Error, Real, Result,
    representation::{centre_features, centre_samples, largest, same_rows, widen},
};

/// What is subtracted from a representation before cosines are taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Centring {
    /// Each feature's mean over the samples (the paper, section 2).
    #[default]
    Samples,
    /// Each sample's mean over its features (the authors' published code).
    Features,
    /// Nothing.
    None,
}

/// Sample-wise cosine similarity, averaged over samples: COS of the paper, section 2.
///
/// ```text
/// COS(X, Y) = 1/n sum_i <x_i, y_i> / (|x_i| |y_i|)
/// ```
///
/// `x` and `y` are `(n, d)`; the result is in `[-1, 1]`. A sample that is 0 after centring has cosine 0 with everything.
///
/// # Errors
///
/// [`Error::Rows`] and [`Error::Widths`] when shapes differ, [`Error::NotFinite`] for a NaN, [`Error::Samples`] without
/// samples.
///
/// # Example
///
/// ```
/// use layerwise_similarity::{Centring, cos};
/// use ndarray::array;
///
/// let x = array![[3., 4.], [1., 0.]];
/// assert_eq!(cos(x.view(), (&x * 2.).view(), Centring::None)?, 1.);
/// # Ok::<(), layerwise_similarity::Error>(())
/// ```
pub fn cos<T: Real>(x: ArrayView2<'_, T>, y: ArrayView2<'_, T>, centring: Centring) -> Result<f64> {
    let values = cos_per_sample(x, y, centring)?;
    Ok(values.sum() / values.len() as f64)
}

/// The cosine of each sample, `(n)`, in the order of the samples; see [`cos`].
///
/// # Errors
///
/// As [`cos`].
pub fn cos_per_sample<T: Real>(
    x: ArrayView2<'_, T>,
    y: ArrayView2<'_, T>,
    centring: Centring,
) -> Result<Array1<f64>> {
    row_products(&directions(x, centring)?, &directions(y, centring)?)
}

/// Rows centred and scaled to length 1; rows of length 0 stay 0.
pub(crate) fn directions<T: Real>(xs: ArrayView2<'_, T>, centring: Centring) -> Result<Array2<f64>> {
    let xs = widen(xs)?;
    let mut xs = match centring {
        Centring::Samples => centre_samples(xs),
        Centring::Features => centre_features(xs),
        Centring::None => xs,
    };
    for mut row in xs.rows_mut() {
        // Scaled first, so that squares neither overflow nor vanish.
        let largest = largest(row.view());
        if largest > 0. {
            row /= largest;
            let norm = row.dot(&row).sqrt();
            row /= norm;
        }
    }
    Ok(xs)
}

/// `<x_i, y_i>` of each row.
pub(crate) fn row_products(x: &Array2<f64>, y: &Array2<f64>) -> Result<Array1<f64>> {
    same_rows(x.nrows(), y.nrows())?;
    if x.ncols() != y.ncols() {
        return Err(Error::Widths { left: x.ncols(), right: y.ncols() });
    }
    Ok(x.rows().into_iter().zip(y.rows()).map(|(x, y)| x.dot(&y).clamp(-1., 1.)).collect())
}
