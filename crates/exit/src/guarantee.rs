use serde::{Deserialize, Serialize};

use crate::{
    Error, HeldOut, Outcome, Result, Thresholds,
    p_value::{binomial_cdf, hoeffding_bentkus, samples_for},
};

/// What must seldom happen to a sample that leaves early.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Risk {
    /// The last layer would have been right and the exit is wrong. Bounds the accuracy that is lost: exits that are right where
    /// the last layer is wrong are not set against it. Needs labels.
    #[default]
    Accuracy,
    /// The exit answers otherwise than the last layer would. Needs no labels, and bounds the accuracy that is lost, too.
    Disagreement,
}

/// How the null hypothesis "the risk is above the tolerance" is tested.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Test {
    /// `P(Bin(n, tolerance) <= k)` for `k` bad samples: exact, as both risks count samples.
    #[default]
    ExactBinomial,
    /// Hoeffding-Bentkus (Angelopoulos et al. 2021): valid for any loss between 0 and 1, so a little weaker here.
    HoeffdingBentkus,
}

/// A promise: with probability `1 - delta` over the calibration samples, the risk of samples drawn like them is at most
/// `tolerance`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Guarantee {
    /// What is bounded.
    pub risk: Risk,
    /// How it is tested.
    pub test: Test,
    /// Fraction of all samples, between 0 and 1; 0.01, one point of accuracy.
    pub tolerance: f64,
    /// Probability that the promise does not hold, between 0 and 1; 0.05.
    pub delta: f64,
}

impl Default for Guarantee {
    fn default() -> Self {
        Self { risk: Risk::default(), test: Test::default(), tolerance: 0.01, delta: 0.05 }
    }
}

impl Guarantee {
    /// The fewest calibration samples with which anything could be promised: no bad one among them would do.
    ///
    /// # Errors
    ///
    /// [`Error::Setting`] for a tolerance or a delta that is not between 0 and 1.
    pub fn samples_needed(&self) -> Result<usize> {
        for (field, value) in [("tolerance", self.tolerance), ("delta", self.delta)] {
            if !(value > 0. && value < 1.) {
                return Err(Error::Setting { field, value: value.to_string(), expected: "between 0 and 1" });
            }
        }
        Ok(samples_for(self.tolerance, self.delta))
    }

    fn p_value(&self, bad: usize, samples: usize) -> f64 {
        match self.test {
            Test::ExactBinomial => binomial_cdf(bad, samples, self.tolerance),
            Test::HoeffdingBentkus => hoeffding_bentkus(bad as f64 / samples as f64, samples, self.tolerance),
        }
    }
}

/// The boldest thresholds of `path` for which the promise holds (Learn then Test, Angelopoulos et al. 2021, by fixed-sequence testing),
/// and what they give on these samples.
///
/// `path` goes from cautious to bold and must not depend on these samples ([`HeldOut::path`] does not): each of its thresholds is tested
/// in turn at level `delta`, up to the first for which the risk cannot be ruled out. If that is the first of all, nobody leaves early.
///
/// The promise is about samples drawn like the calibration samples, which must be drawn independently and used for nothing else, such
/// as training or the choice of the signal. It is about all samples together, and says nothing of a class or of other data:
/// see [`Monitor`](crate::Monitor).
///
/// # Errors
///
/// [`Error::TooFewSamples`], which says how many are needed; [`Error::Setting`] for a tolerance or delta that is not between 0 and 1;
/// [`Error::NoLabels`] for [`Risk::Accuracy`] without labels; otherwise as [`HeldOut::outcome`].
///
/// # Example
///
/// ```
/// use candle_core::{Device::Cpu, Tensor};
/// use layerwise_exit::{Guarantee, HeldOut, Risk, Signal, guaranteed};
///
/// // Three layers that always agree, and are ever surer.
/// let layer = |sure: f32| Tensor::new(&[sure, 0.], &Cpu)?.repeat((400, 1));
/// let held_out = HeldOut::from_logits(Signal::MaxProbability, &[layer(1.)?, layer(3.)?, layer(9.)?])?;
/// let promise = Guarantee { risk: Risk::Disagreement, ..Default::default() };
/// let (thresholds, outcome) = guaranteed(&held_out, &held_out.path(&[1, 2], 50)?, &promise)?;
/// assert_eq!((thresholds.at.len(), outcome.layers), (2, 1.));
/// # Ok::<(), layerwise_exit::Error>(())
/// ```
pub fn guaranteed(
    held_out: &HeldOut,
    path: &[Thresholds],
    promise: &Guarantee,
) -> Result<(Thresholds, Outcome)> {
    let needed = promise.samples_needed()?;
    let samples = held_out.samples();
    if samples < needed {
        let Guarantee { tolerance, delta, .. } = *promise;
        return Err(Error::TooFewSamples { samples, needed, tolerance, delta });
    }
    let mut last = Thresholds::none();
    for thresholds in path {
        if promise.p_value(promise.risk.count(held_out, thresholds)?, samples) > promise.delta {
            break;
        }
        last = thresholds.clone();
    }
    let outcome = held_out.outcome(&last)?;
    Ok((last, outcome))
}

impl Risk {
    /// Samples to which it happens at these thresholds.
    ///
    /// # Errors
    ///
    /// [`Error::NoLabels`] where they are needed; otherwise as [`HeldOut::exits`].
    pub fn count(self, held_out: &HeldOut, thresholds: &Thresholds) -> Result<usize> {
        let layers = held_out.exits(thresholds)?;
        let answers = held_out.answers();
        let last = &answers[held_out.depth() - 1];
        let labels = match self {
            Risk::Accuracy => Some(held_out.labels().ok_or(Error::NoLabels)?),
            Risk::Disagreement => None,
        };
        let bad = |&(sample, &layer): &(usize, &usize)| {
            let differs = answers[layer - 1][sample] != last[sample];
            differs && labels.is_none_or(|labels| last[sample] == labels[sample])
        };
        Ok(layers.iter().enumerate().filter(bad).count())
    }
}
