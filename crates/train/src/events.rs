use std::sync::atomic::AtomicBool;

use layerwise_exit::LayerScores;
use serde::{Deserialize, Serialize};

/// One optimiser step, as `metrics.jsonl` has it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepRecord {
    /// From 1.
    pub step: usize,
    /// From 1.
    pub epoch: usize,
    /// Learning rate, before the scale of a parameter group.
    pub lr: f64,
    /// Loss of the step's objective.
    pub loss: f64,
    /// Mean cross-entropy (of numbers, squared error) of each exit, over the samples for which the step weighed it.
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
    /// Scores every exit: usually [`layerwise_exit::evaluate`] on the `frozen()` model, which sees every update.
    pub evaluate: Option<Evaluate<'a>>,
    /// Set from elsewhere (Ctrl-C): the step in progress is finished, a checkpoint written, and the run returns; an
    /// evaluation that was due is done when the run goes on.
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
