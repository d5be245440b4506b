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
/// The baseline with one classifier per layer (multi-exit/classifiers) is `Alternating` on a model with a head per exit.
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
}

impl Default for Objective {
    /// What the paper's experiments use: alternating steps, linear weights.
    fn default() -> Self {
        Self::Alternating { weights: LayerWeights::Linear, unit: Unit::Step }
    }
}

impl Objective {
    /// Weight of the exit after each layer in one turn; all but the last are 0 in a standard turn.
    ///
    /// `step` counts optimiser steps from 0, `micro_batch` micro-batches from 0 over the whole run; each step begins at a
    /// multiple of [`accumulation`](crate::TrainConfig::accumulation), even where a step before it had fewer.
    ///
    /// # Errors
    ///
    /// As [`LayerWeights::weights`].
    pub fn turn(&self, depth: usize, step: usize, micro_batch: usize) -> Result<Vec<f64>> {
        let last_only = || (1..=depth).map(|l| if l == depth { 1. } else { 0. }).collect();
        match self {
            Self::Standard => Ok(last_only()),
            Self::Aligned { weights } => weights.weights(depth),
            Self::Alternating { weights, unit } => {
                let turn = match unit {
                    Unit::Step => step,
                    Unit::MicroBatch => micro_batch,
                };
                if turn.is_multiple_of(2) { Ok(last_only()) } else { weights.weights(depth) }
            }
        }
    }
}
