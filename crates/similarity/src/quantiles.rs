use ndarray::ArrayView1;

use crate::{Error, Result};

/// Quantiles of values, say of the cosines of [`per_sample`](crate::per_sample), one for each of `levels` in `[0, 1]`: 0 is the
/// smallest, 0.5 the median. Between two values linear, as NumPy's default.
///
/// # Errors
///
/// [`Error::Samples`] without values, [`Error::NotFinite`] for a NaN (column 0), [`Error::Setting`] for a level outside of `[0, 1]`.
///
/// # Example
///
/// ```
/// use layerwise_similarity::quantiles;
/// use ndarray::array;
///
/// assert_eq!(quantiles(array![4., 1., 2., 3.].view(), &[0., 0.5, 1.])?, [1., 2.5, 4.]);
/// # Ok::<(), layerwise_similarity::Error>(())
/// ```
pub fn quantiles(values: ArrayView1<'_, f64>, levels: &[f64]) -> Result<Vec<f64>> {
    if values.is_empty() {
        return Err(Error::Samples { samples: 0, needed: 1 });
    }
    if let Some(row) = values.iter().position(|x| !x.is_finite()) {
        return Err(Error::NotFinite { row, column: 0 });
    }
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let quantile = |&level: &f64| {
        if !(0. ..=1.).contains(&level) {
            return Err(Error::Setting { name: "level", value: level, expected: "a share in [0, 1]" });
        }
        let at = level * (sorted.len() - 1) as f64;
        let (low, high) = (sorted[at.floor() as usize], sorted[at.ceil() as usize]);
        Ok(low + (high - low) * at.fract())
    };
    levels.iter().map(quantile).collect()
}
