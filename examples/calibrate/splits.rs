//! Promises tried on many random splits of real logits.

use std::sync::atomic::Ordering;

use anyhow::Result;
use layerwise::{
    exit::{Guarantee, HeldOut, Risk, Test, Thresholds, guaranteed},
    ops::init,
};
use layerwise_example_common::{interrupt, progress, run::Interrupted};
use rand::{Rng, seq::SliceRandom};
use rayon::prelude::*;
use serde::Serialize;

use crate::{
    STEPS,
    choose::{above, plain},
    samples::risk_of,
};

const TOLERANCES: [f64; 3] = [0.005, 0.01, 0.02];
const DELTAS: [f64; 2] = [0.05, 0.1];

/// How one promise did over all splits. Risks are what is promised of: right answers of the last layer that the exit gets wrong, or
/// answers that differ.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Tried {
    pub(crate) risk: Risk,
    pub(crate) test: Test,
    pub(crate) tolerance: f64,
    pub(crate) delta: f64,
    pub(crate) splits: usize,
    /// Risk on all samples at the boldest thresholds: a promise above it cannot be broken.
    pub(crate) boldest: f64,
    /// Of calibration samples drawn from all samples one by one, those draws for which the risk on all samples, which is then the true one, is
    /// above the tolerance: what the promise is about.
    pub(crate) broken: usize,
    /// Splits into halves in which the risk of the other half is above the tolerance.
    pub(crate) seen_broken: usize,
    /// Of the same halves, with the boldest thresholds that kept the tolerance on the first.
    pub(crate) plain_broken: usize,
    /// Mean layers of a sample in the other half.
    pub(crate) layers: f64,
    pub(crate) plain_layers: f64,
}

/// Each promise on `splits` random splits of all samples.
pub(crate) fn splits(held_out: &HeldOut, layers: &[usize], splits: usize, seed: u64) -> Result<Vec<Tried>> {
    let stop = interrupt::stop_flag()?;
    let mut tried = Vec::new();
    for (risk, test) in [
        (Risk::Accuracy, Test::ExactBinomial),
        (Risk::Accuracy, Test::HoeffdingBentkus),
        (Risk::Disagreement, Test::ExactBinomial),
    ] {
        for tolerance in TOLERANCES {
            for delta in DELTAS {
                if stop.load(Ordering::Relaxed) {
                    return Err(Interrupted("stopped; no results were written").into());
                }
                let promise = Guarantee { risk, test, tolerance, delta };
                if promise.samples_needed()? > held_out.samples() / 2 {
                    progress::line(&format!("too few samples for {tolerance}, {delta}: left out"));
                    continue;
                }
                tried.push(one(held_out, layers, &promise, splits, seed)?);
            }
        }
    }
    Ok(tried)
}

/// Whether one split broke the promise; and in its other half, with the promise and without, whether more was lost, and the mean layers.
struct Split {
    broken: bool,
    seen: (bool, f64),
    plain: (bool, f64),
}

fn one(held_out: &HeldOut, layers: &[usize], promise: &Guarantee, splits: usize, seed: u64) -> Result<Tried> {
    let path = held_out.path(layers, STEPS)?;
    let runs = (0..splits as u64).into_par_iter().map(|split| {
        let mut rng = init::rng(seed.wrapping_mul(1_000_003).wrapping_add(split));
        let (samples, half) = (held_out.samples(), held_out.samples() / 2);
        // Drawn one by one: all samples are the distribution, and the risk on them the true one.
        let drawn: Vec<usize> = (0..half).map(|_| rng.random_range(0..samples)).collect();
        let (thresholds, _) = guaranteed(&held_out.select(&drawn)?, &path, promise)?;
        let risk = risk_of(held_out, &thresholds, promise.risk)?;
        let mut order: Vec<usize> = (0..samples).collect();
        order.shuffle(&mut rng);
        let (first, other) = (held_out.select(&order[..half])?, held_out.select(&order[half..])?);
        let in_other = |thresholds: &Thresholds| {
            let broken = above(risk_of(&other, thresholds, promise.risk)?, promise.tolerance);
            anyhow::Ok((broken, other.outcome(thresholds)?.layers))
        };
        let seen = in_other(&guaranteed(&first, &path, promise)?.0)?;
        let plain = in_other(&plain(&first, &path, promise.tolerance, promise.risk)?)?;
        anyhow::Ok(Split { broken: above(risk, promise.tolerance), seen, plain })
    });
    let runs = runs.collect::<Result<Vec<_>>>()?;
    let mean = |layers: fn(&Split) -> f64| runs.iter().map(layers).sum::<f64>() / splits as f64;
    let Guarantee { risk, test, tolerance, delta } = *promise;
    Ok(Tried {
        risk,
        test,
        tolerance,
        delta,
        splits,
        boldest: path.last().map_or(Ok(0.), |boldest| risk_of(held_out, boldest, risk))?,
        broken: runs.iter().filter(|run| run.broken).count(),
        seen_broken: runs.iter().filter(|run| run.seen.0).count(),
        plain_broken: runs.iter().filter(|run| run.plain.0).count(),
        layers: mean(|run| run.seen.1),
        plain_layers: mean(|run| run.plain.1),
    })
}
