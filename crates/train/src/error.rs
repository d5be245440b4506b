use std::path::PathBuf;

/// What can go wrong in training.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// There is nothing to train on.
    #[error("no training samples: expected at least one")]
    Empty,
    /// A label that the head has no logit for.
    #[error("row {row}: label {label} is out of range, the head has {classes} classes")]
    Label {
        /// Row within its batch.
        row: usize,
        /// The label.
        label: u32,
        /// Number of logits.
        classes: usize,
    },
    /// Logits and labels of different lengths.
    #[error("{rows} rows of logits and {labels} labels; expected one label a row")]
    Rows {
        /// Rows of logits.
        rows: usize,
        /// Number of labels.
        labels: usize,
    },
    /// Samples whose inputs and labels do not go together.
    #[error("{inputs} inputs and {labels} labels; expected one label an input")]
    Samples {
        /// Number of inputs.
        inputs: usize,
        /// Number of labels.
        labels: usize,
    },
    /// A setting outside its range.
    #[error("{field} is {value}, expected {expected}")]
    Setting {
        /// Which setting.
        field: &'static str,
        /// Its value.
        value: String,
        /// What it may be.
        expected: String,
    },
    /// The gradient audit failed.
    #[error(
        "parameters that do not train: no gradient for {missing:?}; all zero for {zero:?}; not finite for {not_finite:?}"
    )]
    Audit {
        /// Names without a gradient: the loss does not depend on them through differentiable operations.
        missing: Vec<String>,
        /// Names whose gradient is exactly 0.
        zero: Vec<String>,
        /// Names with a NaN or an infinity in their gradient.
        not_finite: Vec<String>,
    },
    /// The loss became NaN or infinite; parameters are those before the step.
    #[error("step {step}: the loss is {loss}; the last checkpoint is untouched")]
    Loss {
        /// Optimiser step, from 1.
        step: usize,
        /// Its value.
        loss: f64,
    },
    /// The norm of the gradient became NaN or infinite; parameters are those before the step.
    #[error("step {step}: the gradient norm is {norm} at loss {loss}; the last checkpoint is untouched")]
    Gradient {
        /// Optimiser step, from 1.
        step: usize,
        /// Its loss.
        loss: f64,
        /// Its norm.
        norm: f64,
    },
    /// A file could not be read or written.
    #[error("{}: {source}", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file holds something else than this run's, or is missing.
    #[error("{}: {what}", .path.display())]
    Checkpoint {
        /// The file.
        path: PathBuf,
        /// What is wrong, with the tensor or field, or what was expected.
        what: String,
    },
    /// Another run has the folder.
    #[error("{}: another run is going on in this folder", .path.display())]
    Busy {
        /// Its lock file.
        path: PathBuf,
    },
    /// The run folder was made with other settings or other data.
    #[error("{}: the run was started with {field} = {saved}, now it is {given}", .path.display())]
    Config {
        /// The run's `config.json`, or its state for the number of samples.
        path: PathBuf,
        /// The first field that differs, or `samples`.
        field: String,
        /// Its value in the file.
        saved: String,
        /// Its value now.
        given: String,
    },
    /// Scoring the exits failed.
    #[error(transparent)]
    Exit(#[from] layerwise_exit::Error),
    /// The model, the data or candle failed.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
}

/// Results of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;
