/// What can go wrong when representations are compared.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The two do not describe the same samples.
    #[error("representations have {left} and {right} rows; they must describe the same samples")]
    Rows {
        /// Rows of the first.
        left: usize,
        /// Rows of the second.
        right: usize,
    },
    /// A measure that pairs coordinates got different widths, or an accumulator another width than it was made for.
    #[error("representations are {left} and {right} wide; this measure needs equal widths")]
    Widths {
        /// Width of the first.
        left: usize,
        /// Width of the second.
        right: usize,
    },
    /// Too few samples for the measure.
    #[error("{samples} samples; this measure needs at least {needed}")]
    Samples {
        /// How many there are.
        samples: usize,
        /// How many are needed.
        needed: usize,
    },
    /// A stack without layers, or without the second one that a relation of neighbours needs.
    #[error("a stack of {found} layers; there must be at least {needed}")]
    TooFewLayers {
        /// How many there are.
        found: usize,
        /// How many are needed.
        needed: usize,
    },
    /// A batch with another number of layers than its accumulator was made for.
    #[error("a batch of {found} layers; the accumulator has {expected}")]
    Layers {
        /// How many there are.
        found: usize,
        /// How many were expected.
        expected: usize,
    },
    /// A representation without features.
    #[error("representation of width 0")]
    Width,
    /// A NaN or an infinity.
    #[error("row {row}, column {column} is not finite")]
    NotFinite {
        /// Sample.
        row: usize,
        /// Feature.
        column: usize,
    },
    /// A number whose fourth power an accumulator could not add up.
    #[error("row {row}, column {column} is larger than {limit:.1e}; divide the representation by a constant")]
    Magnitude {
        /// Sample.
        row: usize,
        /// Feature.
        column: usize,
        /// The largest absolute value that is accepted.
        limit: f64,
    },
    /// Numbers whose second and fourth powers have no f64; a representation of that size can be multiplied by a constant.
    #[error(
        "no number is larger than {largest:.1e}, too small for sums of fourth powers; multiply the representation by a constant"
    )]
    Tiny {
        /// The largest absolute value.
        largest: f64,
    },
    /// A representation that is the same for all samples or, to a debiased measure, keeps all of them equally far apart.
    #[error("a representation that does not tell samples apart (their spread is {spread:.1e})")]
    Degenerate {
        /// How much there is of what the measure looks at: the HSIC with itself, the squared norm, the variance of distances or the
        /// largest difference of directions.
        spread: f64,
    },
    /// A parameter of a measure outside of its range.
    #[error("{name} is {value}; expected {expected}")]
    Setting {
        /// Which one.
        name: &'static str,
        /// What it is.
        value: f64,
        /// What it must be.
        expected: &'static str,
    },
    /// What was asked for does not exist for this measure.
    #[error("{measure} has no {what}")]
    Unsupported {
        /// Name of the measure.
        measure: &'static str,
        /// What it does not have.
        what: &'static str,
    },
    /// Another number of labels than of samples.
    #[error("{labels} labels for {samples} samples")]
    Labels {
        /// How many labels there are.
        labels: usize,
        /// How many samples there are.
        samples: usize,
    },
    /// A label that names no class.
    #[error("label {label} of row {row} is not below the number of classes, {classes}")]
    Label {
        /// Sample.
        row: usize,
        /// Its label.
        label: usize,
        /// Number of classes.
        classes: usize,
    },
    /// A class without samples, or too few classes.
    #[error("{found} classes have samples; expected {expected}")]
    Classes {
        /// How many classes have samples.
        found: usize,
        /// How many should.
        expected: usize,
    },
    /// Two accumulators that were not made for the same layers.
    #[error("accumulators differ in {what}; only equal ones can be merged")]
    Mismatch {
        /// In what.
        what: &'static str,
    },
    /// Bytes that hold no state of this accumulator.
    #[error("no accumulator state: {0}")]
    State(String),
    /// A decomposition did not converge.
    #[error("the {0} did not converge")]
    Convergence(&'static str),
    /// One layer of a stack failed.
    #[error("layer {layer}: {source}")]
    Layer {
        /// Index in the stack, from 0.
        layer: usize,
        /// Why.
        source: Box<Error>,
    },
    /// A tensor that is no matrix of floats.
    #[error("tensor of shape {shape:?} and type {dtype}; expected a float matrix (samples, width)")]
    Tensor {
        /// Its shape.
        shape: Vec<usize>,
        /// Its element type.
        dtype: String,
    },
    /// candle failed.
    #[error("{0}")]
    Candle(String),
}

/// Results of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Names the layer that a result belongs to.
pub(crate) fn in_layer<T>(layer: usize, result: Result<T>) -> Result<T> {
    result.map_err(|source| Error::Layer { layer, source: Box::new(source) })
}
