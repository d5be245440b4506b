use std::time::Instant;

use candle_core::DType;
use layerwise_models::{Batch, Pass, Tapped};
use serde::{Deserialize, Serialize};

use crate::{Error, Result, accounting::quantile};

/// A depth that a model could be cut at, and what it costs on a device.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Depth {
    /// Blocks kept.
    pub depth: usize,
    /// Accuracy of its exit, or any other measure of worth; more is better.
    pub accuracy: f64,
    /// Latency of a batch on the device, seconds.
    pub latency_s: f64,
    /// Memory that it needs, bytes.
    pub bytes: u64,
}

/// What a device allows; `None` for no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DeviceLimits {
    /// Longest latency of a batch, seconds.
    pub latency_s: Option<f64>,
    /// Most memory, bytes.
    pub bytes: Option<u64>,
}

/// The best depth within a device's limits: of the highest accuracy and, of equals, the shallowest. `None` when none fits.
///
/// ```
/// use layerwise_exit::{Depth, DeviceLimits, best_depth};
///
/// let depth = |depth, accuracy, latency_s, bytes| Depth { depth, accuracy, latency_s, bytes };
/// let depths = [depth(4, 0.71, 2e-3, 30), depth(8, 0.80, 4e-3, 60), depth(12, 0.81, 6e-3, 90)];
/// let slow = DeviceLimits { latency_s: Some(5e-3), ..Default::default() };
/// assert_eq!(best_depth(&depths, &slow).map(|best| best.depth), Some(8));
/// ```
#[must_use]
pub fn best_depth<'a>(depths: &'a [Depth], limits: &DeviceLimits) -> Option<&'a Depth> {
    let fits = |depth: &&Depth| {
        limits.latency_s.is_none_or(|most| depth.latency_s <= most)
            && limits.bytes.is_none_or(|most| depth.bytes <= most)
    };
    depths.iter().filter(fits).filter(|depth| !depth.accuracy.is_nan()).reduce(|best, other| {
        let better = (other.accuracy, best.depth) > (best.accuracy, other.depth);
        if better { other } else { best }
    })
}

/// Median seconds that this batch takes in the model cut after each layer `1..=L`: what ran up to there, and the exit.
///
/// One pass of the whole model measures all depths, `rounds` times after one to warm up.
///
/// # Errors
///
/// [`Error::Setting`] for 0 rounds, [`Error::Empty`] for a batch without rows, and what the model reports.
pub fn depth_latencies<M: Tapped + ?Sized>(model: &M, batch: &Batch, rounds: usize) -> Result<Vec<f64>> {
    if rounds == 0 {
        return Err(Error::Setting { field: "rounds", value: "0".into(), expected: "at least 1" });
    }
    if batch.rows()? == 0 {
        return Err(Error::Empty);
    }
    let mut seconds = vec![Vec::with_capacity(rounds); model.depth()];
    for round in 0..=rounds {
        let mut start = Instant::now();
        let mut hidden = model.embed(batch, Pass::EVAL)?.detach();
        let mut blocks_s = 0.;
        for (i, seconds) in seconds.iter_mut().enumerate() {
            hidden = model.block(i + 1, &hidden, Pass::EVAL)?.detach();
            hidden.xs.device().synchronize()?;
            let before_exit = start.elapsed().as_secs_f64();
            let logits = model.answer(i + 1, &hidden)?;
            // Answers count when they are here.
            logits.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
            if round > 0 {
                seconds.push(blocks_s + start.elapsed().as_secs_f64());
            }
            blocks_s += before_exit;
            start = Instant::now();
        }
    }
    Ok(seconds.iter().map(|seconds| quantile(seconds, 0.5)).collect())
}
