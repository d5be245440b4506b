use serde::{Deserialize, Serialize};

use crate::{AdamWConfig, Error, Objective, Result, Schedule};

/// Settings of a run.
///
/// The defaults are the paper's recipe for images where it gives one: objective, epochs, batch size, weight decay, and where
/// the learning rate steps down. Learning rate, warm-up, clipping and what weight decay [spares](crate::decays) are ours.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrainConfig {
    /// What is minimised.
    pub objective: Objective,
    /// Passes over the samples (paper: 200 for images).
    pub epochs: usize,
    /// Samples an optimiser step (paper: 256 for images).
    pub batch_size: usize,
    /// Micro-batches of nearly equal size that a step's samples are cut into, or as many as there are samples; the gradient
    /// is that of the whole batch ([`Objective::Balanced`] weighs each micro-batch by itself).
    pub accumulation: usize,
    /// AdamW's constants and parameter groups.
    pub optimiser: AdamWConfig,
    /// Learning rate over the run (paper: steps at 1/2 and 3/4 of it, to which we add a warm-up).
    pub schedule: Schedule,
    /// Largest Euclidean norm of the gradient; the paper has none for images, so 1 is ours (and the authors' GPT-2 code's).
    pub clip_norm: Option<f64>,
    /// In `[0, 1)`; not in the paper, so 0.
    pub label_smoothing: f64,
    /// Fixes the order of samples, augmentation and dropout.
    pub seed: u64,
    /// Every exit is evaluated after this many epochs, and at the end; 0: only at the end.
    pub evaluate_every: usize,
    /// A checkpoint is written after this many steps, before each evaluation, and at the end; 0: only those two.
    pub checkpoint_every: usize,
    /// Names of parameters that may go without a gradient.
    pub idle: Vec<String>,
}

impl Default for TrainConfig {
    fn default() -> Self {
        Self {
            objective: Objective::default(),
            epochs: 200,
            batch_size: 256,
            accumulation: 1,
            optimiser: AdamWConfig::default(),
            schedule: Schedule::default(),
            clip_norm: Some(1.),
            label_smoothing: 0.,
            seed: 0,
            evaluate_every: 1,
            checkpoint_every: 500,
            idle: Vec::new(),
        }
    }
}

impl TrainConfig {
    /// The first setting outside its range, as an error.
    pub(crate) fn check(&self) -> Result<()> {
        let wrong = |field, value: String, expected: String| Err(Error::Setting { field, value, expected });
        let counts =
            [("epochs", self.epochs), ("batch_size", self.batch_size), ("accumulation", self.accumulation)];
        if let Some((field, _)) = counts.into_iter().find(|(_, value)| *value == 0) {
            return wrong(field, "0".into(), "at least 1".into());
        }
        let AdamWConfig { lr, beta1, beta2, eps, weight_decay, ref groups } = self.optimiser;
        let not_negative = |x: f64| (x.is_finite() && x >= 0., "finite and not negative");
        let positive = |x: f64| (x.is_finite() && x > 0., "finite and above 0");
        let below_one = |x: f64| ((0. ..1.).contains(&x), "in [0, 1)");
        let fraction = |x: f64| ((0. ..=1.).contains(&x), "in [0, 1]");
        let mut checks = vec![
            ("optimiser.lr", lr, not_negative(lr)),
            ("optimiser.beta1", beta1, below_one(beta1)),
            ("optimiser.beta2", beta2, below_one(beta2)),
            ("optimiser.eps", eps, positive(eps)),
            ("optimiser.weight_decay", weight_decay, not_negative(weight_decay)),
            ("label_smoothing", self.label_smoothing, below_one(self.label_smoothing)),
        ];
        if let Some(max) = self.clip_norm {
            checks.push(("clip_norm", max, positive(max)));
        }
        for group in groups {
            checks.push(("optimiser.groups.lr_scale", group.lr_scale, not_negative(group.lr_scale)));
            if let Some(decay) = group.weight_decay {
                checks.push(("optimiser.groups.weight_decay", decay, not_negative(decay)));
            }
        }
        match self.schedule {
            Schedule::Constant | Schedule::OneCycle => {}
            Schedule::WarmupCosine { warmup, floor } => {
                checks.push(("schedule.warmup", warmup, fraction(warmup)));
                checks.push(("schedule.floor", floor, fraction(floor)));
            }
            Schedule::WarmupLinear { warmup } => checks.push(("schedule.warmup", warmup, fraction(warmup))),
            Schedule::MultiStep { warmup, ref milestones, gamma } => {
                checks.push(("schedule.warmup", warmup, fraction(warmup)));
                checks.extend(milestones.iter().map(|&at| ("schedule.milestones", at, fraction(at))));
                checks.push(("schedule.gamma", gamma, positive(gamma)));
            }
        }
        match checks.into_iter().find(|(_, _, (fits, _))| !fits) {
            Some((field, value, (_, expected))) => wrong(field, value.to_string(), expected.into()),
            None => Ok(()),
        }
    }
}
