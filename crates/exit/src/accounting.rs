use layerwise_models::Flops;
use layerwise_similarity::quantiles;
use ndarray::ArrayView1;

use crate::{Policy, Reads};

/// Samples that left after layer `1..=depth`.
///
/// Layers outside that range are not counted.
#[must_use]
pub fn histogram(layers: &[usize], depth: usize) -> Vec<usize> {
    let mut counts = vec![0; depth];
    for &layer in layers {
        if let Some(count) = layer.checked_sub(1).and_then(|i| counts.get_mut(i)) {
            *count += 1;
        }
    }
    counts
}

/// The paper's layer speed-up (section 4): `L N / sum_l l m_l`, with `m_l` the samples that left after layer `l`.
///
/// A ratio of layer counts, not of time: heads, batching and read-backs cost nothing in it. 1 when nobody left early; NaN
/// without samples.
#[must_use]
pub fn layer_ratio(histogram: &[usize]) -> f64 {
    let samples: usize = histogram.iter().sum();
    let run: usize = histogram.iter().enumerate().map(|(i, count)| (i + 1) * count).sum();
    (histogram.len() * samples) as f64 / run as f64
}

/// Floating-point operations of the full model over those that were done, heads counted: an inner exit costs its operations for
/// every row that `policy` has it computed for, whether the row leaves there or not.
///
/// `histogram` are the samples that left after layer `1..=L`. NaN without samples.
#[must_use]
pub fn flop_ratio(histogram: &[usize], policy: &dyn Policy, flops: &Flops) -> f64 {
    let Flops { embed, block, exit } = *flops;
    let full = embed + histogram.len() as f64 * block + exit;
    full / (embed + mean_cost(histogram, policy, block, exit))
}

/// What blocks and exits cost a sample on average: of each layer it runs the block, and the exit where `policy` reads its logits; where it does
/// not, the head answers those who leave. NaN without samples.
pub(crate) fn mean_cost(histogram: &[usize], policy: &dyn Policy, block: f64, exit: f64) -> f64 {
    let depth = histogram.len();
    let (mut spent, mut total, mut samples) = (0., 0., 0.);
    for (i, &count) in histogram.iter().enumerate() {
        let layer = i + 1;
        let read = layer == depth || policy.reads(layer, depth) == Reads::Logits;
        spent += block + if read { exit } else { 0. };
        let answer = if read { 0. } else { exit };
        total += count as f64 * (spent + answer);
        samples += count as f64;
    }
    total / samples
}

/// The value below which a share `q` of `values` lies; NaN without values.
pub(crate) fn quantile(values: &[f64], q: f64) -> f64 {
    quantiles(ArrayView1::from(values), &[q]).map_or(f64::NAN, |at| at[0])
}

/// The smallest layer, from 1, whose accuracy is within `tolerance` of the best; both are fractions.
///
/// The model can be cut there without training it again. `None` when no accuracy is a number, or the tolerance is none or
/// negative.
///
/// ```
/// assert_eq!(layerwise_exit::minimal_depth(&[0.5, 0.93, 0.95, 0.94], 0.02), Some(2));
/// ```
#[must_use]
pub fn minimal_depth(accuracy: &[f64], tolerance: f64) -> Option<usize> {
    let best = accuracy.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    // Fractions of a number of samples: 0.7 is within 0.1 of 0.8, which rounding denies.
    let rounding = 1e-12;
    accuracy.iter().position(|&a| a >= best - tolerance - rounding).map(|i| i + 1)
}
