//! Similarity of layers as rows of numbers, where what is undefined is NaN.

use anyhow::Result;
use candle_core::Tensor;
use layerwise_similarity::{Centring, Error, Measure, cos, pairwise, pairwise_between};
use ndarray::Array2;

/// All pairs of layers `(samples, width)`. A layer that is the same for all samples, as the embedding of the class token, has no
/// similarity, whatever the measure; nor has any where there are too few samples for a measure.
///
/// # Errors
///
/// As [`pairwise`] otherwise.
pub fn all_pairs(layers: &[Tensor], measure: Measure) -> Result<Vec<Vec<f64>>> {
    let mut kept = telling(layers)?;
    while !kept.is_empty() {
        match pairwise(&pick(layers, &kept), measure) {
            Ok(matrix) => return Ok(spread(&matrix, &kept, &kept, (layers.len(), layers.len()))),
            Err(error) => forget(error, &mut [&mut kept])?,
        }
    }
    Ok(nothing((layers.len(), layers.len())))
}

/// Each layer of `left` (rows) with each of `right`; as [`all_pairs`]. Between layers of different widths, measures that pair
/// coordinates (COS) are undefined.
///
/// # Errors
///
/// As [`pairwise_between`] otherwise.
pub fn between(left: &[Tensor], right: &[Tensor], measure: Measure) -> Result<Vec<Vec<f64>>> {
    let (mut rows, mut columns) = (telling(left)?, telling(right)?);
    while !rows.is_empty() && !columns.is_empty() {
        match pairwise_between(&pick(left, &rows), &pick(right, &columns), measure) {
            Ok(matrix) => return Ok(spread(&matrix, &rows, &columns, (left.len(), right.len()))),
            Err(error) => forget(error, &mut [&mut rows, &mut columns])?,
        }
    }
    Ok(nothing((left.len(), right.len())))
}

/// Each layer with the last one.
///
/// # Errors
///
/// As [`between`]; for an empty stack.
pub fn to_last(layers: &[Tensor], measure: Measure) -> Result<Vec<f64>> {
    let last = &layers[layers.len().saturating_sub(1)..];
    Ok(between(layers, last, measure)?.into_iter().map(|row| row[0]).collect())
}

/// The layers that tell samples apart.
fn telling(layers: &[Tensor]) -> Result<Vec<usize>> {
    let mut kept = Vec::new();
    for (layer, features) in layers.iter().enumerate() {
        // No sample has a direction from the mean: all are the same.
        if cos(features, features, Centring::Samples)? != 0. {
            kept.push(layer);
        }
    }
    Ok(kept)
}

/// Leaves out the layer that has no similarity under this measure, or all where samples are too few or widths differ. In the error,
/// layers of the second list count on from the first.
fn forget(error: Error, kept: &mut [&mut Vec<usize>]) -> Result<()> {
    let Error::Layer { layer: mut at, source } = error else { return Err(error.into()) };
    if matches!(*source, Error::Samples { .. } | Error::Widths { .. }) {
        kept.iter_mut().for_each(|list| list.clear());
        return Ok(());
    }
    let mut stack = 0;
    while stack + 1 < kept.len() && at >= kept[stack].len() {
        at -= kept[stack].len();
        stack += 1;
    }
    if matches!(*source, Error::Degenerate { .. }) {
        kept[stack].remove(at);
        return Ok(());
    }
    let error = anyhow::Error::from(Error::Layer { layer: kept[stack][at], source });
    Err(if stack == 0 { error } else { error.context("the other model") })
}

fn pick(layers: &[Tensor], kept: &[usize]) -> Vec<Tensor> {
    kept.iter().map(|&layer| layers[layer].clone()).collect()
}

fn nothing((rows, columns): (usize, usize)) -> Vec<Vec<f64>> {
    vec![vec![f64::NAN; columns]; rows]
}

fn spread(matrix: &Array2<f64>, rows: &[usize], columns: &[usize], size: (usize, usize)) -> Vec<Vec<f64>> {
    let mut all = nothing(size);
    for ((i, j), value) in matrix.indexed_iter() {
        all[rows[i]][columns[j]] = *value;
    }
    all
}

#[cfg(test)]
mod tests {
    use candle_core::Device::Cpu;
    use layerwise_ops::init;
    use layerwise_similarity::Estimator;

    use super::*;

    #[test]
    fn layers_that_tell_nothing_apart_are_left_out() -> Result<()> {
        let random = |seed, n| init::normal(&mut init::rng(seed), (n, 3), 1., &Cpu);
        let layers = [Tensor::ones((6, 3), candle_core::DType::F32, &Cpu)?, random(0, 6)?, random(1, 6)?];
        for measure in [Measure::Cos(Centring::Samples), Measure::Cka(Estimator::Debiased), Measure::Pnka] {
            let (one, two) = (all_pairs(&layers, measure)?, between(&layers[1..], &layers, measure)?);
            assert!(one[0].iter().all(|x| x.is_nan()) && one[1][0].is_nan());
            assert_eq!((two.len(), two[0].len()), (2, 3));
            assert!(two[0][0].is_nan() && two[1][0].is_nan());
            for (i, j) in [(1, 1), (1, 2), (2, 1), (2, 2)] {
                assert!((one[i][j] - two[i - 1][j]).abs() < 1e-12, "{measure:?} {i} {j}");
            }
        }
        assert_eq!(to_last(&layers, Measure::Pnka)?[1], between(&layers, &layers, Measure::Pnka)?[1][2]);
        let wide = [init::normal(&mut init::rng(2), (6, 5), 1., &Cpu)?];
        assert!(between(&layers, &wide, Measure::Cos(Centring::Samples))?.iter().all(|row| row[0].is_nan()));
        assert!(between(&layers, &wide, Measure::Cka(Estimator::Biased))?[1][0].is_finite());
        let few = [random(0, 3)?, random(1, 3)?];
        let debiased = all_pairs(&few, Measure::Cka(Estimator::Debiased))?;
        assert!(debiased.iter().flatten().all(|x| x.is_nan()));
        // The layer as the caller counts: the constant one is not measured.
        let error = between(&layers, &few, Measure::Cos(Centring::Samples)).unwrap_err();
        assert!(format!("{error:#}").starts_with("the other model: layer 0: "), "{error:#}");
        let mixed = [layers[0].clone(), random(3, 6)?, random(4, 5)?];
        let error = all_pairs(&mixed, Measure::Pnka).unwrap_err().to_string();
        assert!(error.starts_with("layer 2: "), "{error}");
        Ok(())
    }
}
