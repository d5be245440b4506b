use ndarray::{Array1, Array2, Zip};

use crate::{
    Centring, Error, Representation, Result,
    cos::{cosine, mean_of_rows, of_rows},
    error::in_layer,
    frame::{Frame, frames, norms, safe_scale, size_of, unit_rows},
    mean::ROWS,
    representation::chunks,
};

/// What each block of a residual stack does to its input; entry `l` is of the block between layers `l` and `l + 1` of the stack.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct BlockRelations {
    /// `COS(h^l, h^(l+1))`, mean over samples, `(L - 1)`.
    pub adjacent_cos: Array1<f64>,
    /// `|h^l| / |f(h^l)|`, mean over the samples that the block changes; infinite when it changes none.
    pub norm_ratio: Array1<f64>,
    /// `COS(h^l, f(h^l))`, mean over samples.
    pub branch_cos: Array1<f64>,
}

/// How the input of each block relates to its output and to what its residual branch adds, `f(h^l) = h^(l+1) - h^l` (the paper,
/// appendix B).
///
/// `layers` are `(n, d)` each, in order, the embedding first or not. Both `h` and `f` are centred as `centring` says. As `f` is a
/// difference, layers have one scale: beside numbers of 1e200, those of 1e-100 count as 0 in what is said of `f`.
///
/// Unchanged by a common scale, by a common rotation except centred over the features and, centred over the samples, by a shift of
/// any layer.
///
/// # Errors
///
/// [`Error::TooFewLayers`] below 2 layers, [`Error::Layer`] around [`Error::Rows`], [`Error::Widths`], [`Error::Width`],
/// [`Error::NotFinite`] or [`Error::Samples`].
///
/// # Example
///
/// ```
/// use layerwise_similarity::{Centring, block_relations};
/// use ndarray::array;
///
/// let layers = [array![[3., 0.]], array![[3., 4.]]]; // the block adds (0, 4)
/// let relations = block_relations(&layers, Centring::None)?;
/// assert!((relations.adjacent_cos[0] - 0.6).abs() < 1e-12);
/// assert!((relations.norm_ratio[0] - 0.75).abs() < 1e-12);
/// assert_eq!(relations.branch_cos[0], 0.);
/// # Ok::<(), layerwise_similarity::Error>(())
/// ```
pub fn block_relations<R: Representation>(layers: &[R], centring: Centring) -> Result<BlockRelations> {
    let adjacent_cos = adjacent_cos(layers, centring)?;
    let frames = on_one_scale(layers, centring)?;
    let blocks = frames.len() - 1;
    let mut relations =
        BlockRelations { adjacent_cos, norm_ratio: Array1::zeros(blocks), branch_cos: Array1::zeros(blocks) };
    for (l, pair) in frames.windows(2).enumerate() {
        let n = pair[0].samples as f64;
        let (mut ratios, mut changed) = (0., 0usize);
        for rows in chunks(pair[0].samples, ROWS) {
            let (before, rounding) = in_layer(l, pair[0].rows_and_rounding(rows.clone()))?;
            let (after, of_after) = in_layer(l + 1, pair[1].rows_and_rounding(rows))?;
            let mut branch = &after - &before;
            // A branch that only adds what centring takes away adds nothing.
            Zip::from(&mut branch).and_broadcast(&(rounding + of_after)).for_each(|x, rounding| {
                *x = if x.abs() <= *rounding { 0. } else { *x };
            });
            for (before, branch) in norms(&before).zip(norms(&branch)).filter(|(_, branch)| *branch > 0.) {
                ratios += before / branch;
                changed += 1;
            }
            relations.branch_cos[l] += sum_of_cosines(before, branch) / n;
        }
        relations.norm_ratio[l] = if changed > 0 { ratios / changed as f64 } else { f64::INFINITY };
    }
    Ok(relations)
}

/// Block influence of Men et al. (2024, "ShortGPT"): how far each block turns its input, `(L - 1)`.
///
/// ```text
/// BI_l = 1 - 1/n sum_i <h_i^l, h_i^(l+1)> / (|h_i^l| |h_i^(l+1)|)
/// ```
///
/// Not centred, as its authors define it. Blocks of little influence are those that they prune; the distance of Gromov et al.
/// for runs of blocks is [`pairwise`](crate::pairwise()) with
/// [`Measure::AngularDistance`](crate::Measure::AngularDistance)`(Centring::None)`.
///
/// # Errors
///
/// As [`block_relations`].
///
/// # Example
///
/// ```
/// use layerwise_similarity::block_influence;
/// use ndarray::array;
///
/// let layers = [array![[3., 0.]], array![[6., 0.]], array![[0., 1.]]];
/// assert_eq!(block_influence(&layers)?, array![0., 1.]);
/// # Ok::<(), layerwise_similarity::Error>(())
/// ```
pub fn block_influence<R: Representation>(layers: &[R]) -> Result<Array1<f64>> {
    Ok(1. - adjacent_cos(layers, Centring::None)?)
}

fn adjacent_cos<R: Representation>(layers: &[R], centring: Centring) -> Result<Array1<f64>> {
    if layers.len() < 2 {
        return Err(Error::TooFewLayers { found: layers.len(), needed: 2 });
    }
    let layers: Vec<_> = layers.iter().map(|layer| layer as &dyn Representation).collect();
    let pairs: Vec<_> = (1..layers.len()).map(|l| (l - 1, l)).collect();
    Ok(mean_of_rows(&frames(&layers, centring)?, &pairs, cosine)?.into())
}

/// So that they can be subtracted.
fn on_one_scale<R: Representation>(layers: &[R], centring: Centring) -> Result<Vec<Frame<'_>>> {
    let mut size = 0f64;
    for (layer, xs) in layers.iter().enumerate() {
        size = size.max(in_layer(layer, size_of(xs))?);
    }
    let frames = layers
        .iter()
        .enumerate()
        .map(|(layer, xs)| in_layer(layer, Frame::scaled(xs, centring, safe_scale(size))));
    frames.collect()
}

fn sum_of_cosines(mut x: Array2<f64>, mut y: Array2<f64>) -> f64 {
    unit_rows(&mut x);
    unit_rows(&mut y);
    of_rows(&x, &y, cosine).sum()
}
