use ndarray::{Array1, Array2};
use rayon::prelude::*;

use crate::{
    Centring, Error, Measure, Representation, Result,
    error::in_layer,
    frame::{check_samples, frames, norms, unit_rows},
    mean::rounding,
    pairwise::similarity,
};

/// How far apart two samples are to [`rsa`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Distance {
    /// 1 minus the Pearson correlation of their features (Kriegeskorte et al. 2008). A sample with equal features correlates with
    /// nothing.
    #[default]
    Correlation,
    /// Euclidean.
    Euclidean,
    /// 1 minus their cosine.
    Cosine,
}

/// Representational similarity analysis (Kriegeskorte et al. 2008): Spearman's rank correlation of the distances between samples.
///
/// ```text
/// RSA(X, Y) = corr(rank(D_X), rank(D_Y)),  D over all pairs of samples i < j
/// ```
///
/// `x` is `(n, d)`, `y` is `(n, d')`; in `[-1, 1]`. Distances that are equal but for rounding (1e-13 of them, 1e-15 of the median
/// length of a sample) share their mean rank. Time is `O(n^2 d)` a layer and memory `10 n^2` bytes, of which `4 n^2` are kept for
/// each layer of a stack: take a subset of some thousand samples; more than 92,681 are refused.
///
/// Unchanged by a scaling of either. Besides, with [`Distance::Euclidean`] by a rotation and a shift of either; with
/// [`Distance::Cosine`] by a rotation of either and a scale of each sample; with [`Distance::Correlation`] by a scale of each sample
/// and a number added to all features of each, not by a rotation or a shift.
///
/// # Errors
///
/// [`Error::Rows`] when `n` differs, [`Error::Samples`] below 3 samples, [`Error::Setting`] above 92,681, [`Error::NotFinite`] for a
/// NaN, [`Error::Degenerate`] when all samples are equally far apart.
///
/// # Example
///
/// ```
/// use layerwise_similarity::{Distance, rsa};
/// use ndarray::array;
///
/// let x = array![[0.], [1.], [3.], [7.]];
/// let curved = x.mapv(|x: f64| x * x + x); // no distance overtakes another
/// assert!((rsa(&x, &curved, Distance::Euclidean)? - 1.).abs() < 1e-12);
/// # Ok::<(), layerwise_similarity::Error>(())
/// ```
pub fn rsa(x: &dyn Representation, y: &dyn Representation, distance: Distance) -> Result<f64> {
    similarity(x, y, Measure::Rsa(distance))
}

/// About as many as have 2^32 pairs.
const SAMPLES: usize = 92_681;

/// Share of a distance by which another may be less and still count as equal.
const ROUNDING: f64 = 1e-13;

/// RSA of each of `pairs` of layers.
pub(crate) fn scores(
    layers: &[&dyn Representation],
    pairs: &[(usize, usize)],
    distance: Distance,
) -> Result<Vec<f64>> {
    let centring = match distance {
        Distance::Correlation => Centring::Features,
        Distance::Euclidean => Centring::Samples,
        Distance::Cosine => Centring::None,
    };
    check_samples(layers, 3)?;
    let (samples, _) = layers[0].dims()?;
    if samples > SAMPLES {
        let (value, expected) = (samples as f64, "at most 92,681 for RSA: it ranks all pairs");
        return Err(Error::Setting { name: "samples", value, expected });
    }
    let frames = frames(layers, centring)?;
    let ranks = frames.iter().enumerate().map(|(layer, frame)| {
        let ranks = || {
            let mut xs = frame.all()?;
            if distance != Distance::Euclidean {
                unit_rows(&mut xs);
            }
            let mut norms: Vec<f64> = norms(&xs).collect();
            norms.sort_unstable_by(f64::total_cmp);
            centred_ranks(distances(&xs, distance), rounding(norms[norms.len() / 2]))
        };
        in_layer(layer, ranks())
    });
    let ranks = ranks.collect::<Result<Vec<_>>>()?;
    Ok(pairs.par_iter().map(|&(i, j)| ranks[i].dot(&ranks[j]).clamp(-1., 1.)).collect())
}

/// A distance that orders as the one that is meant, of all pairs `i < j`. Differences are taken first, so that equal samples are
/// exactly 0 apart.
fn distances(xs: &Array2<f64>, distance: Distance) -> Vec<f64> {
    let n = xs.nrows();
    let zero: Vec<bool> = xs.rows().into_iter().map(|row| row.iter().all(|x| *x == 0.)).collect();
    let from = |i: usize| {
        let (x, zero) = (xs.row(i), &zero);
        (i + 1..n).map(move |j| {
            if distance != Distance::Euclidean && (zero[i] || zero[j]) {
                // No direction: as far as a right angle, where directions are sqrt(2) apart.
                return 2f64.sqrt();
            }
            x.iter().zip(xs.row(j)).map(|(x, y)| (x - y) * (x - y)).sum::<f64>().sqrt()
        })
    };
    let rows: Vec<Vec<f64>> = (0..n).into_par_iter().map(|i| from(i).collect()).collect();
    rows.concat()
}

/// Ranks, ties sharing their mean, centred and scaled to length 1. Values that differ by up to `rounding` are ties, too.
fn centred_ranks(values: Vec<f64>, rounding: f64) -> Result<Array1<f64>> {
    let mut order: Vec<u32> = (0..values.len() as u32).collect();
    order.par_sort_unstable_by(|&i, &j| values[i as usize].total_cmp(&values[j as usize]));
    let mut ranks = Array1::zeros(values.len());
    let middle = (values.len() - 1) as f64 / 2.;
    let mut start = 0;
    while start < order.len() {
        let value = |&i: &u32| values[i as usize];
        let least = value(&order[start]);
        let tie = |i: &&u32| value(i) - least <= ROUNDING * value(i) + rounding;
        let tied = order[start..].iter().take_while(tie).count();
        let rank = start as f64 + (tied - 1) as f64 / 2. - middle;
        order[start..start + tied].iter().for_each(|&i| ranks[i as usize] = rank);
        start += tied;
    }
    let length = ranks.dot(&ranks).sqrt();
    if length > 0. { Ok(ranks / length) } else { Err(Error::Degenerate { spread: 0. }) }
}
