use std::path::PathBuf;

/// What can go wrong when a model is scored or left early.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// There is nothing to score.
    #[error("no samples: expected at least one")]
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
    /// A NaN or an infinity among the logits (-inf too: a masked class has to be a large negative number).
    #[error("layer {layer}, row {row}: logits are not finite")]
    NotFinite {
        /// Exit, from 1.
        layer: usize,
        /// Row within its batch.
        row: usize,
    },
    /// A model that does not answer each sample with one row of logits.
    #[error("layer {layer}: {answers} rows of logits for {samples} samples; expected one a sample")]
    Answers {
        /// Exit, from 1.
        layer: usize,
        /// Rows of logits.
        answers: usize,
        /// Samples still in the batch.
        samples: usize,
    },
    /// A setting outside its range.
    #[error("{field} is {value}, expected {expected}")]
    Setting {
        /// Which setting.
        field: &'static str,
        /// Its value.
        value: String,
        /// What it may be.
        expected: &'static str,
    },
    /// A layer that the model does not have, or that nobody can leave early.
    #[error("{field}: layer {layer}, expected {first} to {last}; the model has {depth} layers")]
    Layer {
        /// Which setting names it.
        field: &'static str,
        /// The layer.
        layer: usize,
        /// First layer allowed.
        first: usize,
        /// Last layer allowed.
        last: usize,
        /// Layers of the model.
        depth: usize,
    },
    /// Settings made for a model of another depth.
    #[error("made for a model of {made_for} layers, this one has {depth}")]
    Depth {
        /// Layers that the settings were made for.
        made_for: usize,
        /// Layers of the model.
        depth: usize,
    },
    /// Features of another width than a gate reads.
    #[error("the gate reads features of width {gate}, the model's are {width} wide")]
    Width {
        /// Width of the gate.
        gate: usize,
        /// Width of the model.
        width: usize,
    },
    /// The queue of a server is full.
    #[error("the server's queue is full; try again later")]
    Busy,
    /// Nobody waits for the answer any more.
    #[error("the request was dropped by its client")]
    Dropped,
    /// There is no server any more.
    #[error("the server has ended")]
    Closed,
    /// The model panicked.
    #[error("the model panicked: {0}")]
    Panicked(String),
    /// No thresholds are cheap enough.
    #[error("a budget of {asked} cannot be met: the cheapest thresholds take {least}")]
    Budget {
        /// The budget, in its unit.
        asked: f64,
        /// What the cheapest thresholds cost.
        least: f64,
    },
    /// Too few calibration samples for anything to be promised.
    #[error(
        "{samples} calibration samples; a tolerance of {tolerance} with probability 1 - {delta} needs at least {needed}"
    )]
    TooFewSamples {
        /// Samples given.
        samples: usize,
        /// Samples needed, if none of them is a bad one.
        needed: usize,
        /// The tolerance asked for.
        tolerance: f64,
        /// The delta asked for.
        delta: f64,
    },
    /// Labels are needed and there are none.
    #[error("the risk of lost accuracy needs labels; disagreement with the last layer does not")]
    NoLabels,
    /// Thresholds of one signal for the values of another.
    #[error("thresholds of another signal than the one observed")]
    Signal,
    /// A held-out sample that there is not.
    #[error("sample {sample}: there are {samples}")]
    Sample {
        /// The sample, from 0.
        sample: usize,
        /// Number of samples.
        samples: usize,
    },
    /// A model that nobody calibrated.
    #[error("{}: no \"exits\"; the model was not calibrated", .path.display())]
    NotCalibrated {
        /// The model's `layerwise.json`.
        path: PathBuf,
    },
    /// A file that is not what it should be.
    #[error("{}: {source}", .path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: serde_json::Error,
    },
    /// Something wrong with the settings in a file.
    #[error("{}: {source}", .path.display())]
    InFile {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: Box<Error>,
    },
    /// A file that cannot be read or written.
    #[error("{}: {source}", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A policy that does not decide on each row.
    #[error("layer {layer}: a policy decided on, or remembered, {decided} rows of {rows}")]
    Verdict {
        /// The layer.
        layer: usize,
        /// Rows decided on.
        decided: usize,
        /// Rows there were.
        rows: usize,
    },
    /// A request whose parts have different numbers of rows.
    #[error("{part} of {found} rows for inputs of {rows}")]
    Parts {
        /// Mask, token types, or the state that the model made of them.
        part: &'static str,
        /// Its rows.
        found: usize,
        /// Rows of the inputs.
        rows: usize,
    },
    /// A prompt that cannot be read.
    #[error("prompt {prompt}: {source}")]
    Prompt {
        /// Which one, from 0.
        prompt: usize,
        /// What is wrong with it.
        source: candle_core::Error,
    },
    /// Keys of another number than the samples.
    #[error("{keys} keys for {samples} samples; expected one a sample")]
    Keys {
        /// Number of keys.
        keys: usize,
        /// Number of samples.
        samples: usize,
    },
    /// A gate can be learned only where some exits are right and some wrong.
    #[error("{right} of {of} exits are right; a gate is learned from both right and wrong ones")]
    OneSided {
        /// Exits that answer rightly.
        right: usize,
        /// All of them.
        of: usize,
    },
    /// A gate could not be fitted.
    #[error("gate: {0}")]
    Fit(String),
    /// A key that an oracle knows nothing of.
    #[error("sample {key}: the oracle knows {samples} samples")]
    Key {
        /// Key of the sample.
        key: u64,
        /// Samples known.
        samples: usize,
    },
    /// The model or candle failed.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
}

/// Results of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;
