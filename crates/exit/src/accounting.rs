use layerwise_models::Flops;

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
    let depth = histogram.len();
    let full = flops.embed + depth as f64 * flops.block + flops.exit;
    let (mut samples, mut done) = (0., 0.);
    let mut exits = 0.;
    for (i, &count) in histogram.iter().enumerate() {
        let layer = i + 1;
        // Where the head is not read to decide, it answers those who leave.
        let read = layer < depth && policy.reads(layer, depth) == Reads::Logits;
        exits += f64::from(u8::from(read));
        let answer = f64::from(u8::from(!read));
        let each = flops.embed + layer as f64 * flops.block + (exits + answer) * flops.exit;
        samples += count as f64;
        done += count as f64 * each;
    }
    samples * full / done
}

/// The value below which a share `q` of `values` lies, by linear interpolation; NaN without values.
#[must_use]
pub(crate) fn quantile(values: &mut [f64], q: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let Some(last) = values.len().checked_sub(1) else { return f64::NAN };
    let at = q * last as f64;
    let (below, above) = (values[at.floor() as usize], values[at.ceil() as usize]);
    below + (above - below) * at.fract()
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
