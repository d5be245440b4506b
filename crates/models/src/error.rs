use std::path::PathBuf;

/// What goes wrong with configurations, checkpoints and inputs.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A size that must be at least 1 and at most `max`.
    #[error("{field} is {value}, expected 1 to {max}")]
    Size {
        /// Name of the configuration's field.
        field: &'static str,
        /// Its value.
        value: usize,
        /// Largest value accepted.
        max: usize,
    },
    /// A number outside its range.
    #[error("{field} is {value}, expected {expected}")]
    Range {
        /// Name of the configuration's field.
        field: &'static str,
        /// Its value.
        value: f64,
        /// The range, in words.
        expected: &'static str,
    },
    /// The attention heads do not share the width evenly.
    #[error("{heads_field} = {heads} does not divide {width_field} = {width}")]
    HeadsDivideWidth {
        /// Its field.
        heads_field: &'static str,
        /// Number of heads.
        heads: usize,
        /// Its field.
        width_field: &'static str,
        /// Width of the model.
        width: usize,
    },
    /// The patches do not tile the image.
    #[error("patch_size = {patch} does not divide image_size = {image}")]
    PatchDividesImage {
        /// Edge of a patch.
        patch: usize,
        /// Edge of the image.
        image: usize,
    },
    /// An activation that no model here has.
    #[error("activation {name:?} is not supported; known are gelu, gelu_new, relu and silu")]
    Activation {
        /// Its name in the configuration.
        name: String,
    },
    /// `id2label` does not name every label `0 .. num_labels` once.
    #[error("id2label must name the labels 0 .. {labels}; {problem}")]
    Labels {
        /// Number of labels.
        labels: usize,
        /// What is wrong.
        problem: String,
    },
    /// What a classifier is to start with does not fit it.
    #[error("{name} of {classes} classes cannot start as {outputs:?}: expected a finite number for each")]
    Prior {
        /// The parameter.
        name: String,
        /// Its classes.
        classes: usize,
        /// What it was to become.
        outputs: Vec<f32>,
    },
    /// A model or a variant of one that is not implemented.
    #[error("{what} is not supported; expected {expected}")]
    Unsupported {
        /// What was found.
        what: String,
        /// What would have been accepted.
        expected: &'static str,
    },
    /// A problem of the file `path`.
    #[error("{}: {source}", .path.display())]
    InFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with its content.
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
    /// A file that is not the JSON that was expected.
    #[error("{}: {source}", .path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
    /// A damaged or hostile weights file.
    #[error("{}: not a valid safetensors file: {source}", .path.display())]
    Safetensors {
        /// The file.
        path: PathBuf,
        /// Why.
        source: safetensors::SafeTensorError,
    },
    /// A checkpoint that does not hold the model that its configuration describes.
    #[error("{}: {}", .path.display(), describe(.missing, .shapes, .unexpected))]
    Tensors {
        /// The weights file.
        path: PathBuf,
        /// Tensors that the model has and the file has not.
        missing: Vec<String>,
        /// Tensors of another shape than the model's.
        shapes: Vec<ShapeMismatch>,
        /// Tensors of the file that the model has not: harmless alone, and a hint when some are missing.
        unexpected: Vec<String>,
    },
    /// Two tensors of a checkpoint that mean the same parameter.
    #[error("{}: tensors {first:?} and {second:?} both mean {name:?}", .path.display())]
    Ambiguous {
        /// The weights file.
        path: PathBuf,
        /// The parameter.
        name: String,
        /// One tensor.
        first: String,
        /// The other.
        second: String,
    },
    /// A tensor that does not hold floating-point numbers of 16, 32 or 64 bits.
    #[error("{}: tensor {name:?} is {found}, expected F32, F16, BF16 or F64", .path.display())]
    Dtype {
        /// The weights file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Its type in the file.
        found: String,
    },
    /// A weight that is NaN or infinite.
    #[error("{}: tensor {name:?} is {value} at element {index}, expected finite weights", .path.display())]
    NotFinite {
        /// The weights file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Its first element that is not finite, counted in row-major order.
        index: usize,
        /// That element.
        value: f32,
    },
    /// A shard that lies outside the checkpoint's folder.
    #[error("{}: shard {shard:?} must be a plain file name", .path.display())]
    Shard {
        /// The index file.
        path: PathBuf,
        /// The name it gives.
        shard: String,
    },
    /// A depth at which the model cannot be cut, or a layer that it does not have.
    #[error("layer {layer} does not exist; the model has layers 1 to {depth}")]
    Layer {
        /// What was asked for.
        layer: usize,
        /// Number of blocks.
        depth: usize,
    },
    /// Logits asked of a model that was loaded without a head.
    #[error("the model has no classifier: it was built with num_labels = 0")]
    NoHead,
    /// An id that the model has no row for: it comes from another tokenizer.
    #[error("{field} have the id {id}, expected ids below {limit}: is this the model's tokenizer?")]
    Id {
        /// What the ids are.
        field: &'static str,
        /// The largest of them.
        id: usize,
        /// Rows of the model's table.
        limit: usize,
    },
    /// Inputs that the model was not made for.
    #[error("inputs are {found}, expected {expected}")]
    Inputs {
        /// Shape and type of what came.
        found: String,
        /// Shape and type of what the model takes.
        expected: String,
    },
    /// An error of the tensor library.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
}

/// A [`Result`](std::result::Result) of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A tensor whose shape is not the model's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShapeMismatch {
    /// The tensor.
    pub name: String,
    /// Its shape in the file.
    pub found: Vec<usize>,
    /// The shape that the configuration asks for.
    pub expected: Vec<usize>,
}

impl Error {
    /// Says in which file the error was found.
    pub(crate) fn in_file(self, path: impl Into<PathBuf>) -> Self {
        Self::InFile { path: path.into(), source: Box::new(self) }
    }

    /// The same error where the tap trait wants candle's.
    pub(crate) fn into_candle(self) -> candle_core::Error {
        match self {
            Self::Candle(error) => error,
            other => candle_core::Error::wrap(other),
        }
    }
}

/// Names of one kind that the text of an error lists; the error's fields hold them all.
const LISTED: usize = 20;

fn describe(missing: &[String], shapes: &[ShapeMismatch], unexpected: &[String]) -> String {
    let list = |names: &[String]| match names.len().checked_sub(LISTED) {
        None | Some(0) => format!("{names:?}"),
        Some(more) => format!("{:?} and {more} more", &names[..LISTED]),
    };
    let mut parts = Vec::new();
    if !missing.is_empty() {
        parts.push(format!("missing tensors {}", list(missing)));
    }
    for ShapeMismatch { name, found, expected } in shapes.iter().take(LISTED) {
        parts.push(format!("tensor {name:?} has shape {found:?}, expected {expected:?}"));
    }
    if shapes.len() > LISTED {
        parts.push(format!("{} more of another shape", shapes.len() - LISTED));
    }
    if !unexpected.is_empty() {
        parts.push(format!("unexpected tensors {}", list(unexpected)));
    }
    parts.join("; ")
}
