use std::ops::Range;

use ndarray::{Array1, Array2, ArrayView, ArrayViewMut1, Axis, Dimension};
use rayon::prelude::*;

use crate::{
    Centring, Error, Representation, Result,
    error::in_layer,
    mean::{Mean, ROWS, mean_of, rounding},
    representation::{chunks, finite_rows, same_rows, shape},
};

/// Between these absolute values, fourth powers and their sums neither overflow nor vanish.
pub(crate) const SAFE: Range<f64> = 1e-60..1e60;

/// A checked representation whose rows are read centred.
///
/// Numbers whose powers would leave the range of f64 are scaled by a power of two first: no measure depends on the scale of a
/// representation.
pub(crate) struct Frame<'a> {
    source: &'a dyn Representation,
    pub(crate) samples: usize,
    pub(crate) width: usize,
    scale: f64,
    centre: Centre,
}

/// What is subtracted.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Centre {
    Nothing,
    Rows,
    Columns(Mean),
}

impl Centre {
    /// Gives what rounding may leave where 0 is meant: one number for all, for each row or for each column.
    pub(crate) fn apply(&self, xs: &mut Array2<f64>) -> Array2<f64> {
        match self {
            Self::Nothing => Array2::zeros((1, 1)),
            Self::Rows => {
                let rounding: Array1<f64> = xs.rows_mut().into_iter().map(centre_row).collect();
                rounding.insert_axis(Axis(1))
            }
            Self::Columns(mean) => mean.centre(xs).insert_axis(Axis(0)),
        }
    }
}

impl<'a> Frame<'a> {
    /// Reads the whole representation once, or, to centre it over the samples, twice.
    pub(crate) fn new(source: &'a dyn Representation, centring: Centring) -> Result<Self> {
        // Otherwise row by row: a common scale could take a small row away.
        let size = size_of(source)?;
        let scale = if centring == Centring::Samples { safe_scale(size) } else { 1. };
        Self::scaled(source, centring, scale)
    }

    /// With a given scale, of numbers that are known to be finite.
    pub(crate) fn scaled(source: &'a dyn Representation, centring: Centring, scale: f64) -> Result<Self> {
        let (samples, width) = shape(source)?;
        let centre = match centring {
            Centring::Samples => Centre::Columns(mean_of(source, scale)?),
            Centring::Features => Centre::Rows,
            Centring::None => Centre::Nothing,
        };
        Ok(Self { source, samples, width, scale, centre })
    }

    /// Samples `rows`, `(rows, width)`.
    pub(crate) fn rows(&self, rows: Range<usize>) -> Result<Array2<f64>> {
        Ok(self.rows_and_rounding(rows)?.0)
    }

    /// Samples `rows`, and what rounding may have left of a number that is 0 in theory: one, one a row, or one a feature.
    pub(crate) fn rows_and_rounding(&self, rows: Range<usize>) -> Result<(Array2<f64>, Array2<f64>)> {
        let mut xs = finite_rows(self.source, rows)?;
        if self.scale != 1. {
            xs *= self.scale;
        }
        let rounding = self.centre.apply(&mut xs);
        Ok((xs, rounding))
    }

    /// What numbers are multiplied with before they are centred.
    pub(crate) fn scale(&self) -> f64 {
        self.scale
    }

    /// What is subtracted from each feature, of scaled numbers.
    pub(crate) fn mean(&self) -> Array1<f64> {
        match &self.centre {
            Centre::Columns(mean) => &mean.shift + &mean.offset(),
            _ => Array1::zeros(self.width),
        }
    }

    /// All samples, `(n, width)`.
    pub(crate) fn all(&self) -> Result<Array2<f64>> {
        self.rows(0..self.samples)
    }
}

/// The frames of a stack.
pub(crate) fn frames<'a>(layers: &[&'a dyn Representation], centring: Centring) -> Result<Vec<Frame<'a>>> {
    let frames: Vec<_> = layers.par_iter().map(|&xs| Frame::new(xs, centring)).collect();
    // Outside of the parallel part, so that the first of several bad layers is named.
    frames.into_iter().enumerate().map(|(layer, frame)| in_layer(layer, frame)).collect()
}

/// At least `needed` samples in each layer, in all of them as many as in the first.
pub(crate) fn check_samples(layers: &[&dyn Representation], needed: usize) -> Result<()> {
    let samples = layers.iter().enumerate().map(|(layer, &xs)| {
        let (samples, _) = in_layer(layer, xs.dims())?;
        if samples < needed {
            return in_layer(layer, Err(Error::Samples { samples, needed }));
        }
        in_layer(layer, shape(xs))?;
        Ok(samples)
    });
    let samples = samples.collect::<Result<Vec<_>>>()?;
    let mut others = samples.iter().enumerate();
    others.try_for_each(|(layer, &other)| in_layer(layer, same_rows(samples[0], other)))
}

/// The length of each row.
pub(crate) fn norms(xs: &Array2<f64>) -> impl Iterator<Item = f64> {
    xs.rows().into_iter().map(|row| row.dot(&row).sqrt())
}

/// Scales each row to length 1; rows of length 0 stay 0.
pub(crate) fn unit_rows(xs: &mut Array2<f64>) {
    for mut row in xs.rows_mut() {
        // Scaled first, so that squares neither overflow nor vanish.
        let largest = largest(row.view());
        if largest > 0. {
            row /= largest;
            let norm = row.dot(&row).sqrt();
            row /= norm;
        }
    }
}

/// Subtracts the mean of a row; what rounding alone leaves of a value becomes exactly 0. Gives what that is.
fn centre_row(mut row: ArrayViewMut1<'_, f64>) -> f64 {
    // Numbers whose sums might overflow.
    if largest(row.view()) > 1e280 {
        row *= 2f64.powi(-128);
    }
    let rounding = rounding(largest(row.view()));
    // Around the first value first, so that a large offset costs no digits.
    let first = row[0];
    row -= first;
    let mean = row.sum() / row.len() as f64;
    row.mapv_inplace(|x| if (x - mean).abs() <= rounding { 0. } else { x - mean });
    rounding
}

/// The largest absolute value.
pub(crate) fn largest<D: Dimension>(xs: ArrayView<'_, f64, D>) -> f64 {
    xs.iter().fold(0., |largest, x| largest.max(x.abs()))
}

/// The largest absolute value of a representation whose numbers are all finite.
pub(crate) fn size_of(xs: &dyn Representation) -> Result<f64> {
    let (samples, _) = shape(xs)?;
    let mut size = 0f64;
    for rows in chunks(samples, ROWS) {
        size = size.max(largest(finite_rows(xs, rows)?.view()));
    }
    Ok(size)
}

/// The power of two that brings numbers up to `size` into the safe range.
pub(crate) fn safe_scale(size: f64) -> f64 {
    if size == 0. || SAFE.contains(&size) { 1. } else { power_of_two_below(1. / size) }
}

fn power_of_two_below(x: f64) -> f64 {
    2f64.powi(x.log2().floor().clamp(-1000., 1000.) as i32)
}
