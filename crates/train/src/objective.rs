use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// How the exits' losses are weighed against each other; the weights sum to 1.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum LayerWeights {
    /// `lambda_l = 2 l / (L (L + 1))` (paper, eq. 3).
    #[default]
    Linear,
    /// `1 / L`.
    Uniform,
    /// Proportional to `sqrt(l)`.
    Sqrt,
    /// Half of it on the last layer, the other half as [`Linear`](Self::Linear): what [`Objective::Alternating`] weighs on average.
    HalfLast,
    /// One value a layer, not negative; normalised.
    List(Vec<f64>),
}

impl LayerWeights {
    /// Weights of layers `1..=depth`.
    ///
    /// # Errors
    ///
    /// [`Error::Setting`] when a list has another length than `depth`, a negative or non-finite value, or sums to 0.
    pub fn weights(&self, depth: usize) -> Result<Vec<f64>> {
        let layers = (1..=depth).map(|l| l as f64);
        let raw: Vec<f64> = match self {
            Self::Linear => layers.collect(),
            Self::Uniform => layers.map(|_| 1.).collect(),
            Self::Sqrt => layers.map(f64::sqrt).collect(),
            Self::HalfLast => {
                let sum = (depth * (depth + 1)) as f64 / 2.;
                layers.map(|l| if l == depth as f64 { l + sum } else { l }).collect()
            }
            Self::List(list) if list.len() == depth => list.clone(),
            Self::List(list) => {
                let value = format!("{} weights", list.len());
                return Err(Error::Setting {
                    field: "weights",
                    value,
                    expected: format!("{depth}, one a layer"),
                });
            }
        };
        let sum: f64 = raw.iter().sum();
        if raw.iter().any(|w| !w.is_finite() || *w < 0.) || sum <= 0. {
            let expected = "finite weights, none negative, not all 0".into();
            return Err(Error::Setting { field: "weights", value: format!("{raw:?}"), expected });
        }
        Ok(raw.iter().map(|w| w / sum).collect())
    }
}

/// What alternates in [`Objective::Alternating`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    /// Optimiser steps, as `BERxiT` does.
    #[default]
    Step,
    /// Micro-batches, as the authors' GPT-2 code does; under accumulation this is a fixed sum of both losses.
    MicroBatch,
}

/// What training minimises.
///
/// `CE_l` is the cross-entropy of the exit after layer `l`, `lambda_l` a [`LayerWeights`]. The baseline with one classifier per
/// layer (multi-exit/classifiers) is `Alternating` on a model with a head per exit.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Objective {
    /// `CE(W h^L + b, y)`.
    Standard,
    /// `sum_l lambda_l CE(W h^l + b, y)` (paper, eq. 3).
    Aligned {
        /// `lambda_l`.
        weights: LayerWeights,
    },
    /// Standard and aligned in turn, standard first (paper, appendix C).
    Alternating {
        /// `lambda_l` of the aligned turns.
        weights: LayerWeights,
        /// What a turn is.
        unit: Unit,
    },
    /// CE-reg: `CE_L + beta sum_l lambda_l (1 - cos(h^l, h^L))`, features before the exit norm, not centred (paper, appendix C).
    CosineRegularised {
        /// `beta`, not negative.
        beta: f64,
        /// `lambda_l`.
        weights: LayerWeights,
    },
    /// Standard for the first `share` of the steps, then another objective (ours): the last layer is learned before the others
    /// are aligned to it. What follows counts its steps from there; micro-batches go on being counted over the whole run.
    StandardFirst {
        /// Fraction of the steps, in `[0, 1]`.
        share: f64,
        /// What follows.
        then: Box<Objective>,
    },
    /// Aligned, where inner exits learn from the last one as well:
    /// `lambda_L CE_L + sum_(l<L) lambda_l ((1 - share) CE_l + share T^2 KL(p_L || p_l))`, `p = softmax(logits / T)`; no gradient
    /// flows into `p_L` (self-distillation, Zhang et al. 2019, "Be Your Own Teacher"; `T^2` keeps the size of its gradient, Hinton
    /// et al. 2015).
    Distilled {
        /// `lambda_l`.
        weights: LayerWeights,
        /// Share of an inner exit's weight that is distillation, in `[0, 1]`.
        share: f64,
        /// `T`, above 0.
        temperature: f64,
    },
    /// Aligned, where no exit pulls harder for its weight than the last one (ours): `lambda_l` times
    /// `min(1, |dCE_L/dz_L| / |dCE_l/dz_l|)`, Euclidean norms of the gradients at a micro-batch's logits `z`; the factor is a
    /// constant to the gradient.
    Balanced {
        /// `lambda_l`.
        weights: LayerWeights,
    },
    /// Aligned, one in `period` of the inner exits a step, by turns, each with `period` times its weight, and the last one always:
    /// `period` steps weigh as many of `Aligned` do, and compute fewer exits (as LayerSkip's rotating exits, Elhoushi et al.
    /// 2024).
    Rotating {
        /// `lambda_l`.
        weights: LayerWeights,
        /// Steps until it is an exit's turn again, at least 1.
        period: usize,
    },
}

impl Default for Objective {
    /// What the paper's experiments use: alternating steps, linear weights. On CIFAR-10, [`Aligned`](Self::Aligned) kept the last layer
    /// better and made all others better (`docs/experiments/vision.md` in the repository).
    fn default() -> Self {
        Self::Alternating { weights: LayerWeights::Linear, unit: Unit::Step }
    }
}

/// Where a run is, all counted from 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moment {
    /// Optimiser step.
    pub step: usize,
    /// Steps of the whole run; more than `step`.
    pub steps: usize,
    /// Micro-batch, over the whole run; each step begins at a multiple of [`accumulation`](crate::TrainConfig::accumulation),
    /// even where a step before it had fewer.
    pub micro_batch: usize,
}

/// What one turn of an objective minimises:
/// `sum_l a_l CE_l + sum_l b_l T^2 KL(p_L || p_l) + sum_l c_l (1 - cos(h^l, h^L))`.
///
/// Each list has one value a layer `1..=L`; the last two may be empty, for nothing. Exits without weight are not computed.
#[derive(Clone, Debug, PartialEq)]
pub struct Terms {
    /// `a`.
    pub cross_entropy: Vec<f64>,
    /// `b`; see [`Objective::Distilled`].
    pub distillation: Vec<f64>,
    /// `T`.
    pub temperature: f64,
    /// `c`; see [`Objective::CosineRegularised`].
    pub cosine: Vec<f64>,
    /// Whether `a` is scaled as [`Objective::Balanced`] says.
    pub balanced: bool,
}

impl From<Vec<f64>> for Terms {
    /// Cross-entropies with these weights.
    fn from(cross_entropy: Vec<f64>) -> Self {
        Self { cross_entropy, distillation: Vec::new(), temperature: 1., cosine: Vec::new(), balanced: false }
    }
}

impl Terms {
    /// Whether there is something to learn for a model of this depth.
    pub(crate) fn check(&self, depth: usize) -> Result<()> {
        let lists = [
            ("cross_entropy", &self.cross_entropy, false),
            ("distillation", &self.distillation, true),
            ("cosine", &self.cosine, true),
        ];
        for (field, weights, may_be_empty) in lists {
            if weights.len() != depth && !(may_be_empty && weights.is_empty()) {
                let value = format!("{} weights", weights.len());
                return Err(Error::Setting { field, value, expected: format!("{depth}, one a layer") });
            }
        }
        if self.cross_entropy.iter().chain(&self.distillation).all(|weight| *weight == 0.) {
            let value = format!("{:?}", self.cross_entropy);
            return Err(Error::Setting {
                field: "cross_entropy",
                value,
                expected: "weights, not all 0".into(),
            });
        }
        Ok(())
    }
}

impl Objective {
    /// What a model of `depth` layers minimises at one moment.
    ///
    /// # Errors
    ///
    /// [`Error::Setting`] as [`LayerWeights::weights`], and for a `beta`, `share`, `temperature` or `period` out of range.
    pub fn turn(&self, depth: usize, moment: Moment) -> Result<Terms> {
        let last_only = || (1..=depth).map(|l| if l == depth { 1. } else { 0. }).collect::<Vec<f64>>();
        Ok(match self {
            Self::Standard => last_only().into(),
            Self::Aligned { weights } => weights.weights(depth)?.into(),
            Self::Alternating { weights, unit } => {
                let turn = match unit {
                    Unit::Step => moment.step,
                    Unit::MicroBatch => moment.micro_batch,
                };
                if turn.is_multiple_of(2) { last_only() } else { weights.weights(depth)? }.into()
            }
            Self::CosineRegularised { beta, weights } => {
                within("beta", *beta, beta.is_finite() && *beta >= 0., "finite and not negative")?;
                let cosine = weights.weights(depth)?.iter().map(|weight| beta * weight).collect();
                Terms { cosine, ..last_only().into() }
            }
            Self::StandardFirst { share, then } => {
                within("share", *share, (0. ..=1.).contains(share), "in [0, 1]")?;
                let standard = (share * moment.steps as f64).round() as usize;
                if moment.step < standard {
                    return Ok(last_only().into());
                }
                let [step, steps] = [moment.step, moment.steps].map(|at| at - standard.min(at));
                then.turn(depth, Moment { step, steps, ..moment })?
            }
            Self::Distilled { weights, share, temperature } => {
                within("share", *share, (0. ..=1.).contains(share), "in [0, 1]")?;
                within(
                    "temperature",
                    *temperature,
                    temperature.is_finite() && *temperature > 0.,
                    "finite and above 0",
                )?;
                let mut terms = Terms::from(weights.weights(depth)?);
                terms.distillation = vec![0.; depth];
                let inner = terms.cross_entropy.iter_mut().zip(&mut terms.distillation).take(depth - 1);
                for (hard, soft) in inner {
                    *soft = *hard * share;
                    *hard -= *soft;
                }
                Terms { temperature: *temperature, ..terms }
            }
            Self::Balanced { weights } => Terms { balanced: true, ..weights.weights(depth)?.into() },
            Self::Rotating { weights, period } => {
                within("period", *period, *period > 0, "at least 1")?;
                let mut weights = weights.weights(depth)?;
                for (layer, weight) in weights.iter_mut().enumerate().take(depth - 1) {
                    let its_turn = layer % period == moment.step % period;
                    *weight *= if its_turn { *period as f64 } else { 0. };
                }
                weights.into()
            }
        })
    }

    /// Whether each of the `steps` of a run of a model of `depth` layers has something to minimise.
    ///
    /// # Errors
    ///
    /// As [`turn`](Self::turn); [`Error::Setting`] for a step in which no exit has a weight.
    pub fn check(&self, depth: usize, steps: usize) -> Result<()> {
        // Micro-batches choose between losses that each have a weight.
        (0..steps)
            .try_for_each(|step| self.turn(depth, Moment { step, steps, micro_batch: step })?.check(depth))
    }

    /// Weights of all cross-entropies that it minimises at one time or another; what an [`audit`](crate::audit) has to look at.
    ///
    /// # Errors
    ///
    /// As [`turn`](Self::turn).
    pub fn exits(&self, depth: usize) -> Result<Vec<f64>> {
        let first = self.turn(depth, Moment::default())?;
        // Standard turns weigh the last exit, even where the others do not.
        let with_last = |mut weights: Vec<f64>| {
            if let Some(last) = weights.last_mut().filter(|last| **last == 0.) {
                *last = 1.;
            }
            weights
        };
        Ok(match self {
            Self::Standard | Self::CosineRegularised { .. } => first.cross_entropy,
            Self::Aligned { weights }
            | Self::Distilled { weights, .. }
            | Self::Balanced { weights }
            | Self::Rotating { weights, .. } => weights.weights(depth)?,
            Self::Alternating { weights, .. } => with_last(weights.weights(depth)?),
            Self::StandardFirst { share, then } if *share > 0. => with_last(then.exits(depth)?),
            Self::StandardFirst { then, .. } => then.exits(depth)?,
        })
    }
}

fn within(field: &'static str, value: impl ToString, fits: bool, expected: &str) -> Result<()> {
    if fits {
        Ok(())
    } else {
        Err(Error::Setting { field, value: value.to_string(), expected: expected.into() })
    }
}
