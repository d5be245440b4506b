use std::{
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    time::Instant,
};

use layerwise_exit::LayerScores;
use layerwise_models::{Params, Pass, Tapped};
use rand::RngCore;
use serde::{Deserialize, Serialize};
use tracing::{debug, info};

use crate::{
    AdamW, AdamWConfig, Error, Gradients, Objective, Result, Samples, Schedule,
    audit::audit,
    checkpoint::RunFolder,
    loss::{Loss, loss},
    optimiser::{accumulate, clip, global_norm, take_gradients},
    samples::{Stream, epoch_order, stream},
};

/// Settings of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrainConfig {
    /// What is minimised.
    pub objective: Objective,
    /// Passes over the samples (paper: 200 for images).
    pub epochs: usize,
    /// Samples an optimiser step (paper: 256 for images).
    pub batch_size: usize,
    /// Micro-batches that a step's samples are cut into; the gradient is that of the whole batch.
    pub accumulation: usize,
    /// AdamW's constants.
    pub optimiser: AdamWConfig,
    /// Learning rate over the run.
    pub schedule: Schedule,
    /// Largest Euclidean norm of the gradient; not in the paper's image recipe, 1 in the authors' GPT-2 code.
    pub clip_norm: Option<f64>,
    /// In `[0, 1)`; not in the paper, so 0.
    pub label_smoothing: f64,
    /// Fixes the order of samples, augmentation and dropout.
    pub seed: u64,
    /// Every exit is evaluated after this many epochs, and at the end; 0: only at the end.
    pub evaluate_every: usize,
    /// A checkpoint is written after this many steps, and at the end; 0: only at the end.
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

/// One optimiser step, as `metrics.jsonl` has it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepRecord {
    /// From 1.
    pub step: usize,
    /// From 1.
    pub epoch: usize,
    /// Learning rate.
    pub lr: f64,
    /// Loss of the step's objective.
    pub loss: f64,
    /// Mean cross-entropy of each exit that the step weighed.
    pub per_layer: Vec<Option<f64>>,
    /// Norm of the gradient, before clipping.
    pub grad_norm: f64,
    /// Seconds that the step took.
    pub seconds: f64,
}

/// Scores of every exit during training, as `metrics.jsonl` has them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// Steps taken before.
    pub step: usize,
    /// Epochs completed before.
    pub epoch: usize,
    /// Accuracy and loss of each layer.
    pub evaluation: LayerScores,
}

/// What a run tells while it goes on.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Event {
    /// Training begins, or continues after `done` steps.
    Started {
        /// Steps that a checkpoint had already.
        done: usize,
        /// Steps of the whole run.
        steps: usize,
    },
    /// An optimiser step was taken.
    Step(StepRecord),
    /// Every exit was evaluated.
    Evaluated(Evaluation),
    /// A checkpoint was written after this many steps.
    Checkpoint(usize),
}

/// Scores every exit of the model in training.
pub type Evaluate<'a> = Box<dyn FnMut() -> layerwise_exit::Result<LayerScores> + 'a>;

/// Hears of progress.
pub type OnEvent<'a> = Box<dyn FnMut(&Event) + 'a>;

/// What the caller does while a run goes on; all optional.
#[derive(Default)]
pub struct Hooks<'a> {
    /// Scores every exit: usually [`layerwise_exit::evaluate`] on a frozen twin of the model.
    pub evaluate: Option<Evaluate<'a>>,
    /// Set from elsewhere (Ctrl-C): the step in progress is finished, a checkpoint written, and the run returns.
    pub stop: Option<&'a AtomicBool>,
    /// Told of progress.
    pub on_event: Option<OnEvent<'a>>,
}

impl std::fmt::Debug for Hooks<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hooks").field("evaluate", &self.evaluate.is_some()).field("stop", &self.stop).finish()
    }
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq)]
pub struct TrainReport {
    /// Steps taken in all, those of earlier pieces of the run included.
    pub steps: usize,
    /// Whether it was asked to stop before its end.
    pub stopped: bool,
    /// Seconds of this piece.
    pub seconds: f64,
    /// Evaluations, those of earlier pieces included.
    pub evaluations: Vec<Evaluation>,
}

/// Trains the `params` of `model` on `data`.
///
/// The first thing it does is one backward pass over all exits that the objective weighs, to
/// [audit](crate::audit) that every parameter gets a gradient. With a `run` folder it writes `config.json`,
/// `metrics.jsonl` and `state.safetensors` there and continues where the folder's state stands, with the same bits as a run
/// that was not interrupted: order, augmentation and dropout are functions of the seed and the step.
///
/// # Errors
///
/// [`Error::Audit`] before the first step; [`Error::Loss`] and [`Error::Gradient`] when a number is not finite;
/// [`Error::Config`] and [`Error::Checkpoint`] for a folder of another run or a damaged state; [`Error::Empty`],
/// [`Error::Setting`], [`Error::Label`] for bad input.
pub fn train<M: Tapped>(
    model: &M,
    params: &Params,
    data: &impl Samples,
    config: &TrainConfig,
    run: Option<&Path>,
    mut hooks: Hooks<'_>,
) -> Result<TrainReport> {
    check(config)?;
    if data.is_empty() {
        return Err(Error::Empty);
    }
    let start = Instant::now();
    let per_epoch = data.len().div_ceil(config.batch_size);
    let steps = per_epoch * config.epochs;
    let mut optimiser = AdamW::new(params, config.optimiser.clone())?;
    let folder = run.map(|path| RunFolder::open(path, config)).transpose()?;
    if let Some(folder) = &folder {
        folder.restore(params, &mut optimiser)?;
    }
    let done = optimiser.step_count();
    let (mut metrics, mut evaluations) = match &folder {
        Some(folder) => {
            let (metrics, evaluations) = folder.metrics(done)?;
            (Some(metrics), evaluations)
        }
        None => (None, Vec::new()),
    };
    let mut tell = |event: Event| {
        debug!(?event);
        if let Some(on_event) = &mut hooks.on_event {
            on_event(&event);
        }
    };
    info!(done, steps, "training");
    tell(Event::Started { done, steps });
    if done < steps {
        audit_first_batch(model, params, data, config)?;
    }

    let mut order = Vec::new();
    let mut stopped = false;
    for step in done..steps {
        let (epoch, within) = (step / per_epoch, step % per_epoch);
        if within == 0 || order.is_empty() {
            order = epoch_order(data.len(), config.seed, epoch);
        }
        let from = within * config.batch_size;
        let indices = &order[from..data.len().min(from + config.batch_size)];
        let record =
            one_step(model, params, data, config, &mut optimiser, StepAt { step, epoch, steps }, indices)?;
        if let Some(metrics) = &mut metrics {
            metrics.write(&record)?;
        }
        tell(Event::Step(record));

        let last = step + 1 == steps;
        let epochs_done = (step + 1) / per_epoch;
        let epoch_ends = (step + 1) % per_epoch == 0;
        let due =
            config.evaluate_every > 0 && epoch_ends && epochs_done.is_multiple_of(config.evaluate_every);
        if let Some(evaluate) = hooks.evaluate.as_mut().filter(|_| due || last) {
            let evaluation = Evaluation { step: step + 1, epoch: epochs_done, evaluation: evaluate()? };
            if let Some(metrics) = &mut metrics {
                metrics.write(&evaluation)?;
            }
            evaluations.push(evaluation.clone());
            tell(Event::Evaluated(evaluation));
        }
        stopped = !last && hooks.stop.is_some_and(|stop| stop.load(Ordering::Relaxed));
        let due = config.checkpoint_every > 0 && (step + 1).is_multiple_of(config.checkpoint_every);
        if let Some(folder) = folder.as_ref().filter(|_| due || last || stopped) {
            folder.save(params, &optimiser)?;
            tell(Event::Checkpoint(step + 1));
        }
        if stopped {
            break;
        }
    }
    let seconds = start.elapsed().as_secs_f64();
    Ok(TrainReport { steps: optimiser.step_count(), stopped, seconds, evaluations })
}

#[derive(Clone, Copy)]
struct StepAt {
    step: usize,
    epoch: usize,
    steps: usize,
}

/// Gradient of the samples `indices`, micro-batch by micro-batch, and one update.
fn one_step<M: Tapped>(
    model: &M,
    params: &Params,
    data: &impl Samples,
    config: &TrainConfig,
    optimiser: &mut AdamW,
    at: StepAt,
    indices: &[usize],
) -> Result<StepRecord> {
    let start = Instant::now();
    let depth = model.depth();
    let mut gradients = Gradients::new();
    let mut total = 0.;
    let mut per_layer: Vec<Option<f64>> = vec![None; depth];
    for (i, part) in indices.chunks(indices.len().div_ceil(config.accumulation)).enumerate() {
        let micro_batch = at.step * config.accumulation + i;
        let weights = config.objective.turn(depth, at.step, micro_batch)?;
        let counter = micro_batch as u64;
        let (batch, labels) = data.batch(part, &mut stream(config.seed, Stream::Augmentation, counter))?;
        let pass = Pass::train(stream(config.seed, Stream::Dropout, counter).next_u64());
        let Loss { total: value, per_layer: values } =
            loss(model, &batch, &labels, &weights, config.label_smoothing, pass)?;
        // A mean over the whole batch, whatever the sizes of its parts.
        let share = part.len() as f64 / indices.len() as f64;
        let value = (value * share)?;
        total += f64::from(value.to_dtype(candle_core::DType::F32)?.to_scalar::<f32>()?);
        for (sum, value) in per_layer.iter_mut().zip(values) {
            if let Some(value) = value {
                *sum = Some(sum.unwrap_or(0.) + value * share);
            }
        }
        if !total.is_finite() {
            return Err(Error::Loss { step: at.step + 1, loss: total });
        }
        accumulate(&mut gradients, take_gradients(value.backward()?, params))?;
    }
    let grad_norm = global_norm(&gradients)?;
    if !grad_norm.is_finite() {
        return Err(Error::Gradient { step: at.step + 1, loss: total, norm: grad_norm });
    }
    if let Some(max) = config.clip_norm {
        clip(&mut gradients, grad_norm, max)?;
    }
    let factor = config.schedule.factor(at.step, at.steps);
    optimiser.step(params, &gradients, factor)?;
    Ok(StepRecord {
        step: at.step + 1,
        epoch: at.epoch + 1,
        lr: config.optimiser.lr * factor,
        loss: total,
        per_layer,
        grad_norm,
        seconds: start.elapsed().as_secs_f64(),
    })
}

/// All exits that the objective ever weighs must send a gradient to every parameter.
fn audit_first_batch<M: Tapped>(
    model: &M,
    params: &Params,
    data: &impl Samples,
    config: &TrainConfig,
) -> Result<()> {
    let order = epoch_order(data.len(), config.seed, 0);
    let first = &order[..config.batch_size.div_ceil(config.accumulation).min(data.len())];
    let (batch, labels) = data.batch(first, &mut stream(config.seed, Stream::Augmentation, 0))?;
    // Turn 1 is the aligned one where the objective alternates.
    let weights = config.objective.turn(model.depth(), 1, 1)?;
    audit(model, params, &batch, &labels, &weights, &config.idle)
}

fn check(config: &TrainConfig) -> Result<()> {
    let at_least_one =
        [("epochs", config.epochs), ("batch_size", config.batch_size), ("accumulation", config.accumulation)];
    for (field, value) in at_least_one {
        if value == 0 {
            return Err(Error::Setting { field, value: "0".into(), expected: "at least 1".into() });
        }
    }
    let AdamWConfig { lr, beta1, beta2, eps, weight_decay } = config.optimiser;
    let ranges = [
        ("optimiser.lr", lr, 0. ..f64::INFINITY),
        ("optimiser.beta1", beta1, 0. ..1.),
        ("optimiser.beta2", beta2, 0. ..1.),
        ("optimiser.eps", eps, 0. ..f64::INFINITY),
        ("optimiser.weight_decay", weight_decay, 0. ..f64::INFINITY),
        ("label_smoothing", config.label_smoothing, 0. ..1.),
        ("clip_norm", config.clip_norm.unwrap_or(1.), f64::MIN_POSITIVE..f64::INFINITY),
    ];
    for (field, value, range) in ranges {
        if !range.contains(&value) {
            return Err(Error::Setting {
                field,
                value: value.to_string(),
                expected: format!("in {range:?}"),
            });
        }
    }
    Ok(())
}
