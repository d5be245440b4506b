use ndarray::{Array2, ArrayView, ArrayView2, ArrayViewMut, ArrayViewMut1, Dimension};

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

/// Subtracts each column's mean over the samples; what is left of a value by rounding only becomes exactly 0.
pub(crate) fn centre_samples(mut xs: Array2<f64>) -> Array2<f64> {
    avoid_overflow(xs.view_mut());
    xs.columns_mut().into_iter().for_each(centre);
    xs
}

/// Subtracts each row's mean over its features; what is left of a value by rounding only becomes exactly 0.
pub(crate) fn centre_features(mut xs: Array2<f64>) -> Array2<f64> {
    for mut row in xs.rows_mut() {
        avoid_overflow(row.view_mut());
        centre(row);
    }
    xs
}

fn centre(mut line: ArrayViewMut1<'_, f64>) {
    let rounding = 4. * f64::EPSILON * largest(line.view());
    // Around the first value first, so that a large offset costs no digits.
    let first = line[0];
    line -= first;
    let mean = line.sum() / line.len() as f64;
    line.mapv_inplace(|x| if (x - mean).abs() <= rounding { 0. } else { x - mean });
}

/// Shrinks numbers whose sums might overflow, exactly; no measure depends on the scale of a representation.
fn avoid_overflow<D: Dimension>(mut xs: ArrayViewMut<'_, f64, D>) {
    if largest(xs.view()) > 1e280 {
        xs *= 2f64.powi(-128);
    }
}

/// The largest absolute value.
pub(crate) fn largest<D: Dimension>(xs: ArrayView<'_, f64, D>) -> f64 {
    xs.iter().fold(0., |largest, x| largest.max(x.abs()))
}

pub(crate) fn same_rows(left: usize, right: usize) -> Result<()> {
    if left == right { Ok(()) } else { Err(Error::Rows { left, right }) }
}
