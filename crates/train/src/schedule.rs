use std::f64::consts::PI;

use serde::{Deserialize, Serialize};

/// Learning rate over the run, as a factor of the optimiser's.
///
/// Warm-ups and milestones are fractions of the run, in `[0, 1]`, taken to the nearest step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Schedule {
    /// Always 1.
    Constant,
    /// Linear from 0 to 1 over the warm-up, then half a cosine down to `floor` at the end.
    WarmupCosine {
        /// Fraction of the run.
        warmup: f64,
        /// Factor at the end, in `[0, 1]`.
        floor: f64,
    },
    /// Linear from 0 to 1 over the warm-up, then linear down to 0 after the last step: `get_linear_schedule_with_warmup` of Python's
    /// transformers, whose warm-up is one step behind (its first step has a rate of 0).
    WarmupLinear {
        /// Fraction of the run.
        warmup: f64,
    },
    /// Linear from 0 to 1 over the warm-up; multiplied by `gamma` at each milestone.
    MultiStep {
        /// Fraction of the run.
        warmup: f64,
        /// Fractions of the run.
        milestones: Vec<f64>,
        /// Factor of each.
        gamma: f64,
    },
    /// Half a cosine up from 1/25 over the first 30 % of the run, then half a cosine down to 1/250,000: the learning rates of
    /// PyTorch's `OneCycleLR` at its defaults. That also cycles `beta1` between 0.95 and 0.85; ours stays as it is.
    OneCycle,
}

impl Default for Schedule {
    /// The paper's for images: steps at 100 and 150 of 200 epochs. It does not say how far they go down: a tenth each,
    /// PyTorch's default. The warm-up is ours.
    fn default() -> Self {
        Self::MultiStep { warmup: 0.05, milestones: vec![0.5, 0.75], gamma: 0.1 }
    }
}

impl Schedule {
    /// Factor at `step` (from 0) of a run of `steps`.
    #[must_use]
    pub fn factor(&self, step: usize, steps: usize) -> f64 {
        let at = |fraction: f64| (fraction * steps as f64).round() as usize;
        let rise = |warmup: usize| ((step + 1) as f64 / warmup as f64).min(1.);
        let cosine = |from: f64, to: f64, at: f64| to + (from - to) * (1. + (PI * at).cos()) / 2.;
        match self {
            Self::Constant => 1.,
            Self::WarmupCosine { warmup, floor } => {
                let warmup = at(*warmup);
                let rest = steps.saturating_sub(warmup).max(1);
                let down = step.saturating_sub(warmup) as f64 / rest as f64;
                rise(warmup) * cosine(1., *floor, down.min(1.))
            }
            Self::WarmupLinear { warmup } => {
                let warmup = at(*warmup);
                let rest = steps.saturating_sub(warmup).max(1) as f64;
                rise(warmup).min(steps.saturating_sub(step) as f64 / rest)
            }
            Self::MultiStep { warmup, milestones, gamma } => {
                let passed = milestones.iter().filter(|milestone| at(**milestone) <= step).count();
                rise(at(*warmup)) * gamma.powi(passed as i32)
            }
            Self::OneCycle => {
                let (start, end) = (1. / 25., 1. / 25. / 1e4);
                let peak = 0.3 * steps as f64 - 1.;
                let last = (steps as f64 - 1.).max(peak);
                let step = step as f64;
                if step <= peak {
                    cosine(start, 1., if peak > 0. { step / peak } else { 1. })
                } else {
                    let down = last - peak;
                    cosine(1., end, if down > 0. { ((step - peak) / down).min(1.) } else { 1. })
                }
            }
        }
    }
}
