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
    /// The model or candle failed.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
}

/// Results of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;
