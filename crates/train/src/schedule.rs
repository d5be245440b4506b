use std::f64::consts::PI;

use serde::{Deserialize, Serialize};

/// Learning rate over the run, as a factor of the optimiser's.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Schedule {
    /// Always 1.
    #[default]
    Constant,
    /// Linear from 0 over the first `warmup` steps, then half a cosine down to `floor` at the end.
    WarmupCosine {
        /// Steps.
        warmup: usize,
        /// Factor at the end, in `[0, 1]`.
        floor: f64,
    },
    /// Multiplied by `gamma` at each of these steps.
    MultiStep {
        /// Steps, counted from 0.
        milestones: Vec<usize>,
        /// Factor of each.
        gamma: f64,
    },
    /// Half a cosine up from 1/25 over the first 30 % of the run, then half a cosine down to 1/250,000: the defaults of
    /// PyTorch's `OneCycleLR`.
    OneCycle,
}

impl Schedule {
    /// Factor at `step` (from 0) of a run of `steps`.
    #[must_use]
    pub fn factor(&self, step: usize, steps: usize) -> f64 {
        let cosine = |from: f64, to: f64, at: f64| to + (from - to) * (1. + (PI * at).cos()) / 2.;
        match self {
            Self::Constant => 1.,
            Self::WarmupCosine { warmup, .. } if step < *warmup => (step + 1) as f64 / *warmup as f64,
            Self::WarmupCosine { warmup, floor } => {
                let rest = steps.saturating_sub(*warmup).max(1);
                cosine(1., *floor, ((step - warmup) as f64 / rest as f64).min(1.))
            }
            Self::MultiStep { milestones, gamma } => {
                gamma.powi(milestones.iter().filter(|milestone| **milestone <= step).count() as i32)
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
