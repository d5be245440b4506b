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
    /// A measure that pairs coordinates got different widths.
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
    /// A stack without layers.
    #[error("a stack of 0 layers; there must be at least one")]
    NoLayers,
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
    /// A representation that is the same for all samples or, debiased, keeps all of them equally far apart.
    #[error("a representation that does not tell samples apart (HSIC with itself is {hsic:.1e}) has no CKA")]
    Degenerate {
        /// Its HSIC with itself.
        hsic: f64,
    },
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
