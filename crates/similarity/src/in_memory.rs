//! Measures of second moments of representations that can be read again.

use ndarray::Array2;
use rayon::prelude::*;

use crate::{
    Centring, Error, Measure, Representation, Result,
    error::in_layer,
    frame::{Frame, centred},
    linalg::qr,
    moments::{CHUNK, MomentAccumulator},
    representation::chunks,
};

/// Numbers of f64 that the sums of pairs may take at a time: half a gigabyte.
const BUDGET: usize = 1 << 26;

/// The measure of each of `pairs` of centred layers, of as many pairs at a time as fit into [`BUDGET`].
pub(crate) fn by_moments<'a>(
    frames: &[Frame<'_>],
    pairs: &[(usize, usize)],
    measure: Measure,
    features: &(dyn Fn(usize) -> Option<&'a Array2<f64>> + Sync),
) -> Result<Vec<f64>> {
    let mut scores = Vec::new();
    let mut rest = pairs;
    while !rest.is_empty() {
        let mut used = 0;
        let fits = rest.iter().take_while(|&&(i, j)| {
            used += frames[i].width * frames[j].width;
            used <= BUDGET
        });
        let (part, after) = rest.split_at(fits.count().max(1));
        rest = after;
        let mut layers: Vec<usize> = part.iter().flat_map(|&(i, j)| [i, j]).collect();
        layers.sort_unstable();
        layers.dedup();
        let place = |layer: usize| layers.partition_point(|&other| other < layer);
        let part: Vec<_> = part.iter().map(|&(i, j)| (place(i), place(j))).collect();
        let frames: Vec<_> = layers.iter().map(|&layer| &frames[layer]).collect();
        let found = moments_of(&frames, &part)
            .and_then(|mut moments| moments.scores_of(&part, measure, &|layer| features(layers[layer])));
        scores.extend(found.map_err(|error| match error {
            Error::Layer { layer, source } => Error::Layer { layer: layers[layer], source },
            other => other,
        })?);
    }
    Ok(scores)
}

fn moments_of(frames: &[&Frame<'_>], pairs: &[(usize, usize)]) -> Result<MomentAccumulator> {
    let widths: Vec<usize> = frames.iter().map(|frame| frame.width).collect();
    let mut moments = MomentAccumulator::of_pairs(&widths, pairs, None)?;
    for rows in chunks(frames[0].samples, CHUNK) {
        let batch: Vec<_> = frames.par_iter().map(|frame| frame.rows(rows.clone())).collect();
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
    let frames = centred(layers, pairs, 2)?;
    let narrow = |(layer, frame): (usize, &Frame<'_>)| {
        if frame.width <= frame.samples {
            return Ok(None);
        }
        let xs = in_layer(layer, frame.all())?;
        let (q, r) = qr(&xs.reversed_axes());
        Ok(Some((r.reversed_axes(), q.reversed_axes())))
    };
    let narrow: Vec<_> = frames.par_iter().enumerate().map(narrow).collect();
    let narrow = narrow.into_iter().collect::<Result<Vec<_>>>()?;
    let both = frames.into_iter().zip(&narrow).map(|(frame, narrow)| match narrow {
        Some((coordinates, _)) => Frame::new(coordinates, Centring::None),
        None => Ok(frame),
    });
    let frames = both.collect::<Result<Vec<_>>>()?;
    by_moments(&frames, pairs, measure, &|layer| narrow[layer].as_ref().map(|(_, basis)| basis))
}
