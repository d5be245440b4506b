use std::f64::consts::PI;

use ndarray::{Array1, Array2, ArrayView1};
use rayon::prelude::*;

use crate::{
    Error, Measure, Representation, Result,
    error::in_layer,
    frame::{Frame, unit_rows},
    pairwise::similarity,
    representation::{chunks, same_rows},
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
/// Unchanged by scaling either; not by a rotation of one of them. Besides, centred over the samples, by a rotation of both and a shift
/// of either; centred over the features, by a scale of each sample and a number added to all its features, but not by a rotation of
/// both; not centred, by a rotation of both and a scale of each sample.
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
/// assert_eq!(cos(&x, &(&x * 2.), Centring::None)?, 1.);
/// # Ok::<(), layerwise_similarity::Error>(())
/// ```
pub fn cos(x: &dyn Representation, y: &dyn Representation, centring: Centring) -> Result<f64> {
    similarity(x, y, Measure::Cos(centring))
}

/// The cosine of each sample, `(n)`, in the order of the samples; see [`cos`].
///
/// # Errors
///
/// As [`cos`].
pub fn cos_per_sample(
    x: &dyn Representation,
    y: &dyn Representation,
    centring: Centring,
) -> Result<Array1<f64>> {
    per_sample_of(x, y, centring, cosine)
}

/// `of(x_i, y_i)` of each sample's directions.
pub(crate) fn per_sample_of(
    x: &dyn Representation,
    y: &dyn Representation,
    centring: Centring,
    of: Compare,
) -> Result<Array1<f64>> {
    let (x, y) = (Frame::new(x, centring)?, Frame::new(y, centring)?);
    same_shape(&x, &y)?;
    let mut values = Vec::with_capacity(x.samples);
    for rows in chunks(x.samples, ROWS) {
        let (x, y) = (directions(&x, rows.clone())?, directions(&y, rows)?);
        values.extend(of_rows(&x, &y, of));
    }
    Ok(values.into())
}

/// Angle between the two vectors of each sample, as a share of 180 degrees, averaged over samples.
///
/// ```text
/// d(X, Y) = 1/n sum_i arccos(<x_i, y_i> / (|x_i| |y_i|)) / pi
/// ```
///
/// In `[0, 1]`, 0 for the same directions. With [`Centring::None`] and two layers of a stack it is the distance by which Gromov et
/// al. (2024) choose the blocks to prune. A sample that is 0 after centring is at a right angle to everything. Unchanged by what leaves
/// [`cos`] unchanged.
///
/// # Errors
///
/// As [`cos`].
///
/// # Example
///
/// ```
/// use layerwise_similarity::{Centring, angular_distance};
/// use ndarray::array;
///
/// let (x, y) = (array![[2., 0.]], array![[0., 5.]]);
/// assert_eq!(angular_distance(&x, &y, Centring::None)?, 0.5);
/// # Ok::<(), layerwise_similarity::Error>(())
/// ```
pub fn angular_distance(x: &dyn Representation, y: &dyn Representation, centring: Centring) -> Result<f64> {
    similarity(x, y, Measure::AngularDistance(centring))
}

/// Compares two directions: rows of length 1, or of length 0.
pub(crate) type Compare = fn(ArrayView1<'_, f64>, ArrayView1<'_, f64>) -> f64;

/// Their cosine; 0 where one has no direction.
pub(crate) fn cosine(x: ArrayView1<'_, f64>, y: ArrayView1<'_, f64>) -> f64 {
    x.dot(&y).clamp(-1., 1.)
}

/// Their angle over pi, `2 atan(|x - y| / |x + y|) / pi`: the arc cosine would lose small angles; 0.5 where one has no direction.
pub(crate) fn angle(x: ArrayView1<'_, f64>, y: ArrayView1<'_, f64>) -> f64 {
    let (mut difference, mut sum) = (0., 0.);
    for (x, y) in x.iter().zip(y) {
        difference += (x - y) * (x - y);
        sum += (x + y) * (x + y);
    }
    // Where one is 0, both are equal; where both are, so are these.
    if sum + difference == 0. { 0.5 } else { 2. * f64::sqrt(difference).atan2(sum.sqrt()) / PI }
}

/// Mean of `of(x_i, y_i)` over the samples' directions for each of `pairs` of layers.
pub(crate) fn mean_of_rows(layers: &[Frame<'_>], pairs: &[(usize, usize)], of: Compare) -> Result<Vec<f64>> {
    for (layer, xs) in layers.iter().enumerate() {
        in_layer(layer, same_shape(&layers[0], xs))?;
    }
    let samples = layers.first().map_or(0, |layer| layer.samples);
    let parts: Vec<_> = chunks(samples, ROWS).collect();
    let sums: Vec<Result<Vec<f64>>> = parts
        .into_par_iter()
        .map(|rows| {
            let read = layers.iter().enumerate();
            let rows = read.map(|(layer, xs)| in_layer(layer, directions(xs, rows.clone())));
            let rows = rows.collect::<Result<Vec<_>>>()?;
            Ok(pairs.iter().map(|&(i, j)| of_rows(&rows[i], &rows[j], of).sum()).collect())
        })
        .collect();
    let mut means = vec![0.; pairs.len()];
    for sums in sums {
        for (mean, sum) in means.iter_mut().zip(sums?) {
            *mean += sum / samples as f64;
        }
    }
    Ok(means)
}

/// `of` each two rows.
pub(crate) fn of_rows(x: &Array2<f64>, y: &Array2<f64>, of: Compare) -> impl Iterator<Item = f64> {
    x.rows().into_iter().zip(y.rows()).map(move |(x, y)| of(x, y))
}

/// Few enough that those of a dozen layers stay in the cache while all pairs are taken.
const ROWS: usize = 64;

fn directions(xs: &Frame<'_>, rows: std::ops::Range<usize>) -> Result<Array2<f64>> {
    let mut xs = xs.rows(rows)?;
    unit_rows(&mut xs);
    Ok(xs)
}

pub(crate) fn same_shape(x: &Frame<'_>, y: &Frame<'_>) -> Result<()> {
    same_rows(x.samples, y.samples)?;
    if x.width == y.width { Ok(()) } else { Err(Error::Widths { left: x.width, right: y.width }) }
}
