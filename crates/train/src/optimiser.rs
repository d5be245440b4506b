use std::collections::BTreeMap;

use candle_core::{DType, Tensor, Var, backprop::GradStore};
use layerwise_models::Params;
use layerwise_ops::{AdamWStep, AdamWUpdate, adamw_steps, sum_of_squares};
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// AdamW's constants and parameter groups.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AdamWConfig {
    /// Peak learning rate; the paper's 0.1 does not train a ViT with AdamW, so 1e-3.
    pub lr: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay of the parameters for which [`decays`] holds (paper: 1e-4; PyTorch: 1e-2 on everything).
    pub weight_decay: f64,
    /// Parameters that learn or decay otherwise; of several groups that fit a name the first counts. None by default.
    pub groups: Vec<ParamGroup>,
}

/// The parameters whose names start with `prefix`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ParamGroup {
    /// Start of the names: `"exits."` or `"vit.encoder.layer.0."`.
    pub prefix: String,
    /// Factor of the learning rate; at 0 they stay as they are.
    pub lr_scale: f64,
    /// Weight decay of all of them, biases and norms too. `None`: as without a group.
    pub weight_decay: Option<f64>,
}

impl Default for AdamWConfig {
    fn default() -> Self {
        Self { lr: 1e-3, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 1e-4, groups: Vec::new() }
    }
}

/// Whether weight decay applies to a parameter outside any [`ParamGroup`]: to matrices and filters, not to biases, norms,
/// embedding tables or class and position tokens.
#[must_use]
pub fn decays(name: &str, dims: &[usize]) -> bool {
    const TABLES: [&str; 7] = [
        "word_embeddings",
        "position_embeddings",
        "token_type_embeddings",
        "cls_token",
        "distillation_token",
        "wte",
        "wpe",
    ];
    let spared = name.to_lowercase().contains("norm") || TABLES.iter().any(|table| name.contains(table));
    dims.len() >= 2 && !spared
}

/// Gradients by name, off the graph.
pub type Gradients = BTreeMap<String, Tensor>;

/// AdamW over named parameters, in the order of their names; of [mixed](Params::mixed) ones over their masters. As PyTorch's, it corrects the bias of a parameter's moments by how
/// often that parameter was updated: one without a gradient in some steps has fewer updates than the run has steps.
#[derive(Debug)]
pub struct AdamW {
    config: AdamWConfig,
    states: BTreeMap<String, State>,
    step: usize,
}

/// Moments of one parameter, and what its group makes of the configuration.
#[derive(Debug)]
struct State {
    m: Var,
    v: Var,
    updates: usize,
    lr_scale: f64,
    weight_decay: f64,
}

impl AdamW {
    /// Moments of 0 for every parameter.
    ///
    /// # Errors
    ///
    /// [`Error::Setting`] with the prefix of a group that no parameter belongs to, for a parameter of 16 bits without a master, and for one of f16: its gradients
    /// would vanish without being scaled; when candle cannot allocate.
    pub fn new(params: &Params, config: AdamWConfig) -> Result<Self> {
        let zeros = |var: &Var| Var::zeros(var.shape(), var.dtype(), var.device());
        let mut states = BTreeMap::new();
        let mut used = vec![false; config.groups.len()];
        for (name, var) in params.iter() {
            let var = params.master(name).filter(|_| var.dtype() != DType::F16).unwrap_or(var);
            if [DType::F16, DType::BF16].contains(&var.dtype()) {
                return Err(Error::Setting {
                    field: "params",
                    value: format!("{:?} `{name}`", var.dtype()),
                    expected: "f32, or bf16 rounded from it (`mixed`)".into(),
                });
            }
            let group = config.groups.iter().position(|group| name.starts_with(&group.prefix));
            if let Some(i) = group {
                used[i] = true;
            }
            let group = group.map(|i| &config.groups[i]);
            let lr_scale = group.map_or(1., |group| group.lr_scale);
            let usual = if decays(name, var.dims()) { config.weight_decay } else { 0. };
            let weight_decay = group.and_then(|group| group.weight_decay).unwrap_or(usual);
            let state = State { m: zeros(var)?, v: zeros(var)?, updates: 0, lr_scale, weight_decay };
            states.insert(name.to_owned(), state);
        }
        if let Some(i) = used.iter().position(|used| !used) {
            return Err(Error::Setting {
                field: "optimiser.groups.prefix",
                value: format!("{:?}", config.groups[i].prefix),
                expected: "the start of a parameter's name that no group before it takes".into(),
            });
        }
        Ok(Self { config, states, step: 0 })
    }

    /// Steps taken.
    #[must_use]
    pub fn step_count(&self) -> usize {
        self.step
    }

    /// Updates every parameter that has a gradient, at `scale.lr` times its learning rate and by `scale.gradient` times its
    /// gradient.
    ///
    /// # Errors
    ///
    /// When a gradient has another shape than its parameter.
    pub fn step(&mut self, params: &Params, gradients: &Gradients, scale: StepScale) -> Result<()> {
        self.step += 1;
        let AdamWConfig { lr, beta1, beta2, eps, .. } = self.config;
        for (name, state) in &mut self.states {
            state.updates += usize::from(gradients.contains_key(name));
        }
        let updates = params.iter().filter_map(|(name, var)| {
            let (gradient, state) = (gradients.get(name)?, self.states.get(name)?);
            let State { m, v, updates, lr_scale, weight_decay } = state;
            let (lr, weight_decay) = (lr * scale.lr * lr_scale, *weight_decay);
            let (step, gradient_scale) = (*updates, scale.gradient);
            let by = AdamWStep { lr, beta1, beta2, eps, weight_decay, step, gradient_scale };
            let param = params.master(name)?;
            let rounded = (param.id() != var.id()).then_some(var);
            Some(AdamWUpdate { param, gradient, m, v, rounded, by })
        });
        Ok(adamw_steps(&updates.collect::<Vec<_>>())?)
    }

    /// First and second moments by parameter name.
    pub fn moments(&self) -> impl Iterator<Item = (&str, &Var, &Var)> {
        self.states.iter().map(|(name, state)| (name.as_str(), &state.m, &state.v))
    }

    /// Updates of each parameter that had no gradient in some step.
    pub(crate) fn fewer_updates(&self) -> BTreeMap<String, usize> {
        let fewer = self.states.iter().filter(|(_, state)| state.updates != self.step);
        fewer.map(|(name, state)| (name.clone(), state.updates)).collect()
    }

    /// Continues after `step` steps with these [`fewer_updates`](AdamW::fewer_updates); the moments are set through
    /// [`moments`](AdamW::moments).
    pub(crate) fn set_step(&mut self, step: usize, fewer_updates: &BTreeMap<String, usize>) {
        self.step = step;
        for (name, state) in &mut self.states {
            state.updates = fewer_updates.get(name).copied().unwrap_or(step);
        }
    }
}

/// Factors of one step of [`AdamW`]; 1 by default.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepScale {
    /// Of the learning rates: where the schedule stands.
    pub lr: f64,
    /// Of the gradients: less than 1 where they are clipped.
    pub gradient: f64,
}

impl Default for StepScale {
    fn default() -> Self {
        Self { lr: 1., gradient: 1. }
    }
}

/// Takes the parameters' gradients out of a store, detached at once: a gradient kept on the graph keeps its activations.
///
/// Parameters without a gradient are absent.
#[must_use]
pub fn take_gradients(mut store: GradStore, params: &Params) -> Gradients {
    params
        .iter()
        .filter_map(|(name, var)| Some((name.to_owned(), store.remove(var.as_tensor())?.detach())))
        .collect()
}

/// Adds `more` to `sum`, name by name; bf16 in f32, so that small gradients are not lost beside large ones.
///
/// # Errors
///
/// When shapes differ.
pub fn accumulate(sum: &mut Gradients, more: Gradients) -> Result<()> {
    for (name, gradient) in more {
        let total = match sum.get(&name) {
            Some(before) if gradient.dtype() == DType::BF16 => {
                (before.to_dtype(DType::F32)? + gradient.to_dtype(DType::F32)?)?
            }
            Some(before) => (before + gradient)?,
            None => gradient,
        };
        sum.insert(name, total);
    }
    Ok(())
}

/// Euclidean norm of all gradients together, accumulated in f64 in the order of names. On a GPU one number is read back.
///
/// # Errors
///
/// When candle fails.
pub fn global_norm(gradients: &Gradients) -> Result<f64> {
    Ok(sum_of_squares(gradients.values())?.sqrt())
}

/// By what to scale gradients of this [`global_norm`] so that it is at most `max`; as PyTorch's `clip_grad_norm_`.
#[must_use]
pub fn clip_factor(norm: f64, max: f64) -> f64 {
    (max / (norm + 1e-6)).min(1.)
}
