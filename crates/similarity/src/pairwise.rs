use ndarray::{Array2, ArrayView2};
use rayon::prelude::*;

use crate::{
    Centring, Error, Estimator, Real, Result,
    cka::Features,
    cos::{directions, row_products},
};

/// A similarity of two representations as one number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Measure {
    /// [`cos`](crate::cos()).
    Cos(Centring),
    /// [`cka`](crate::cka()).
    Cka(Estimator),
}

/// Similarity of all pairs of layers of one stack, `(L, L)`, symmetric.
///
/// Each layer is centred and normalised once; pairs are computed in parallel, each of them once.
///
/// # Errors
///
/// [`Error::NoLayers`] for an empty stack; [`Error::Layer`] naming the layer whose representation does not do.
pub fn pairwise<T: Real>(layers: &[ArrayView2<'_, T>], measure: Measure) -> Result<Array2<f64>> {
    let n = some(layers)?;
    let pairs: Vec<(usize, usize)> = (0..n).flat_map(|i| (i..n).map(move |j| (i, j))).collect();
    let values = score(layers, &pairs, measure)?;
    let mut matrix = Array2::zeros((n, n));
    for (&(i, j), value) in pairs.iter().zip(values) {
        matrix[[i, j]] = value;
        matrix[[j, i]] = value;
    }
    Ok(matrix)
}

/// Similarity of each layer of one stack with each of another, `(L, L')`.
///
/// # Errors
///
/// [`Error::NoLayers`] for an empty stack; [`Error::Layer`] naming the layer whose representation does not do, where layers of
/// the second stack count on from the first.
pub fn pairwise_between<T: Real>(
    left: &[ArrayView2<'_, T>],
    right: &[ArrayView2<'_, T>],
    measure: Measure,
) -> Result<Array2<f64>> {
    let (n, m) = (some(left)?, some(right)?);
    let all: Vec<ArrayView2<'_, T>> = left.iter().chain(right).copied().collect();
    let pairs: Vec<(usize, usize)> = (0..n).flat_map(|i| (0..m).map(move |j| (i, n + j))).collect();
    let values = score(&all, &pairs, measure)?;
    Ok(Array2::from_shape_fn((n, m), |(i, j)| values[i * m + j]))
}

/// The measure of each of `pairs` of `layers`.
fn score<T: Real>(
    layers: &[ArrayView2<'_, T>],
    pairs: &[(usize, usize)],
    measure: Measure,
) -> Result<Vec<f64>> {
    match measure {
        Measure::Cos(centring) => {
            let layers = prepare(layers, |xs| directions(xs, centring))?;
            each(pairs, |i, j| {
                let cosines = row_products(&layers[i], &layers[j])?;
                Ok(cosines.sum() / cosines.len() as f64)
            })
        }
        Measure::Cka(estimator) => {
            let layers = prepare(layers, |xs| Features::new(xs, estimator))?;
            each(pairs, |i, j| layers[i].cka(&layers[j]))
        }
    }
}

fn some<T>(layers: &[T]) -> Result<usize> {
    if layers.is_empty() { Err(Error::NoLayers) } else { Ok(layers.len()) }
}

fn prepare<T: Real, P: Send>(
    layers: &[ArrayView2<'_, T>],
    f: impl Fn(ArrayView2<'_, T>) -> Result<P> + Sync,
) -> Result<Vec<P>> {
    let prepared: Vec<_> = layers.par_iter().map(|xs| f(*xs)).collect();
    // Outside of the parallel part, so that the first of several bad layers is named.
    prepared.into_iter().enumerate().map(|(layer, result)| in_layer(layer, result)).collect()
}

fn each(pairs: &[(usize, usize)], f: impl Fn(usize, usize) -> Result<f64> + Sync) -> Result<Vec<f64>> {
    let values: Vec<_> = pairs.par_iter().map(|&(i, j)| f(i, j)).collect();
    pairs.iter().zip(values).map(|(&(_, layer), value)| in_layer(layer, value)).collect()
}

pub(crate) fn in_layer<T>(layer: usize, result: Result<T>) -> Result<T> {
    result.map_err(|source| Error::Layer { layer, source: Box::new(source) })
}
