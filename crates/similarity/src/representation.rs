use ndarray::{Array2, ArrayView2, ArrayViewMut1};

use crate::{Error, Result};

/// A number type that representations come in.
pub trait Real: Copy + Into<f64> + Send + Sync {}
impl Real for f32 {}
impl Real for f64 {}

/// `(samples, width)` widened to f64, checked to be finite and not empty.
pub(crate) fn widen<T: Real>(xs: ArrayView2<'_, T>) -> Result<Array2<f64>> {
    if xs.nrows() == 0 {
        return Err(Error::Samples { samples: 0, needed: 1 });
    }
    if xs.ncols() == 0 {
        return Err(Error::Width);
    }
    let xs = xs.mapv(Into::into);
    match xs.indexed_iter().find(|(_, x): &(_, &f64)| !x.is_finite()) {
        Some(((row, column), _)) => Err(Error::NotFinite { row, column }),
        None => Ok(xs),
    }
}

/// Subtracts each column's mean over the samples; a column that is constant up to rounding becomes exactly 0.
pub(crate) fn centre_samples(mut xs: Array2<f64>) -> Array2<f64> {
    let n = xs.nrows() as f64;
    for mut column in xs.columns_mut() {
        let largest = |column: &ArrayViewMut1<'_, f64>| column.iter().fold(0f64, |max, x| max.max(x.abs()));
        let before = largest(&column);
        // Around the first value first, so that a large offset costs no digits.
        let first = column[0];
        column -= first;
        let mean = column.sum() / n;
        column -= mean;
        if largest(&column) <= 4. * f64::EPSILON * before {
            column.fill(0.);
        }
    }
    xs
}

/// Subtracts each row's mean over its features.
pub(crate) fn centre_features(mut xs: Array2<f64>) -> Array2<f64> {
    let width = xs.ncols() as f64;
    for mut row in xs.rows_mut() {
        let mean = row.sum() / width;
        row -= mean;
    }
    xs
}

pub(crate) fn same_rows(left: usize, right: usize) -> Result<()> {
    if left == right { Ok(()) } else { Err(Error::Rows { left, right }) }
}
