//! Measures of second moments of representations that can be read again.

use ndarray::Array2;
use rayon::prelude::*;

use crate::{
    Centring, Error, Measure, Representation, Result,
    error::in_layer,
    frame::{Frame, SAFE, check_samples, safe_scale, size_of},
    linalg::qr,
    moments::{CHUNK, MomentAccumulator},
    representation::{chunks, finite_rows},
};

/// Numbers of f64 that the sums of pairs may take at a time: half a gigabyte.
const BUDGET: usize = 1 << 26;

/// The measure of each of `pairs` of checked layers, of as many pairs at a time as fit into [`BUDGET`].
pub(crate) fn by_moments<'a>(
    all: &[&dyn Representation],
    pairs: &[(usize, usize)],
    measure: Measure,
    features: &(dyn Fn(usize) -> Option<&'a Array2<f64>> + Sync),
) -> Result<Vec<f64>> {
    let widths = all.iter().map(|xs| Ok(xs.dims()?.1)).collect::<Result<Vec<_>>>()?;
    let mut scores = Vec::new();
    let mut rest = pairs;
    while !rest.is_empty() {
        let mut used = 0;
        let fits = rest.iter().take_while(|&&(i, j)| {
            used += widths[i] * widths[j];
            used <= BUDGET
        });
        let (part, after) = rest.split_at(fits.count().max(1));
        rest = after;
        let mut layers: Vec<usize> = part.iter().flat_map(|&(i, j)| [i, j]).collect();
        layers.sort_unstable();
        layers.dedup();
        let place = |layer: usize| layers.partition_point(|&other| other < layer);
        let part: Vec<_> = part.iter().map(|&(i, j)| (place(i), place(j))).collect();
        let read: Vec<_> = layers.iter().map(|&layer| all[layer]).collect();
        let found = moments_of(&read, &part)
            .and_then(|mut moments| moments.scores_of(&part, measure, &|layer| features(layers[layer])));
        scores.extend(found.map_err(|error| match error {
            Error::Layer { layer, source } => Error::Layer { layer: layers[layer], source },
            other => other,
        })?);
    }
    Ok(scores)
}

/// The sums of all samples. Numbers whose powers leave the range of f64 are noticed afterwards, and added up again on a scale of
/// their own.
fn moments_of(layers: &[&dyn Representation], pairs: &[(usize, usize)]) -> Result<MomentAccumulator> {
    let moments = scaled_moments(layers, pairs, &vec![1.; layers.len()])?;
    if moments.sizes().all(|size| size == 0. || SAFE.contains(&size)) {
        return Ok(moments);
    }
    let scale = |(layer, &xs)| Ok(safe_scale(in_layer(layer, size_of(xs))?));
    scaled_moments(layers, pairs, &layers.iter().enumerate().map(scale).collect::<Result<Vec<_>>>()?)
}

fn scaled_moments(
    layers: &[&dyn Representation],
    pairs: &[(usize, usize)],
    scales: &[f64],
) -> Result<MomentAccumulator> {
    let dims = layers.iter().map(|xs| xs.dims()).collect::<Result<Vec<_>>>()?;
    let widths: Vec<usize> = dims.iter().map(|(_, width)| *width).collect();
    let mut moments = MomentAccumulator::of_pairs(&widths, pairs, None)?;
    #[cfg(feature = "candle")]
    moments.products_on(crate::on_device::gpu_of(layers))?;
    for rows in chunks(dims[0].0, CHUNK) {
        let read = |(&xs, &scale)| {
            let mut xs = finite_rows(xs, rows.clone())?;
            if scale != 1. {
                xs *= scale;
            }
            Ok(xs)
        };
        let batch: Vec<Result<Array2<f64>>> = layers.par_iter().zip(scales).map(read).collect();
        let batch = batch.into_iter().enumerate().map(|(layer, xs)| in_layer(layer, xs));
        moments.push_checked(&batch.collect::<Result<Vec<_>>>()?);
    }
    Ok(moments)
}

/// CCA, SVCCA, PWCCA or Procrustes of each of `pairs` of layers.
///
/// A layer wider than it has samples is replaced by its coordinates `Z`, `(n, n)`, in a basis of the span of its samples:
/// `X = Z B` with orthonormal rows in `B`, `(n, d)`. Inner products of samples and of directions in sample space stay what they are.
pub(crate) fn spectral_of(
    layers: &[&dyn Representation],
    pairs: &[(usize, usize)],
    measure: Measure,
) -> Result<Vec<f64>> {
    check_samples(layers, 2)?;
    let narrow = |(layer, &xs): (usize, &&dyn Representation)| {
        let narrow = || {
            let (samples, width) = xs.dims()?;
            if width <= samples {
                return Ok(None);
            }
            let (q, r) = qr(&Frame::new(xs, Centring::Samples)?.all()?.reversed_axes());
            Ok(Some((r.reversed_axes(), q.reversed_axes())))
        };
        in_layer(layer, narrow())
    };
    let narrow: Vec<_> = layers.par_iter().enumerate().map(narrow).collect();
    let narrow = narrow.into_iter().collect::<Result<Vec<_>>>()?;
    let both = layers.iter().zip(&narrow).map(|(&xs, narrow)| match narrow {
        Some((coordinates, _)) => coordinates as &dyn Representation,
        None => xs,
    });
    by_moments(&both.collect::<Vec<_>>(), pairs, measure, &|layer| {
        narrow[layer].as_ref().map(|(_, basis)| basis)
    })
}
