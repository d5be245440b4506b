use std::path::{Path, PathBuf};

/// What can go wrong with data.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file or folder could not be read.
    #[error("{}: {source}", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// None of the files that a data set may consist of is there.
    #[error("{}: expected {expected}", .folder.display())]
    NotFound {
        /// Where they were looked for.
        folder: PathBuf,
        /// What would have done.
        expected: String,
    },
    /// A file does not hold what its format promises.
    #[error("{}: {what}", .path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong and what was expected.
        what: String,
    },
    /// There is no sample.
    #[error("{what}: no samples")]
    Empty {
        /// The data set.
        what: String,
    },
    /// A label with no class.
    #[error("sample {sample}: label {label} is out of range, there are {classes} classes")]
    Label {
        /// Index of the sample.
        sample: usize,
        /// Its label.
        label: u32,
        /// Number of classes.
        classes: usize,
    },
    /// A sample that is not there.
    #[error("sample {index} is out of range, there are {len}")]
    Index {
        /// The index.
        index: usize,
        /// Number of samples.
        len: usize,
    },
    /// A tokenizer that is not the model's.
    #[error("{}: {pieces} pieces, and a model with a vocabulary of {vocabulary}: not its tokenizer", .path.display())]
    Vocabulary {
        /// The tokenizer.
        path: PathBuf,
        /// Ids that it gives.
        pieces: usize,
        /// Rows of the model's table.
        vocabulary: usize,
    },
    /// Sizes that do not belong together.
    #[error("{field} is {value}, expected {expected}")]
    Setting {
        /// What.
        field: &'static str,
        /// Its value.
        value: String,
        /// What it may be.
        expected: String,
    },
    /// candle failed.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
}

/// Results of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

pub(crate) fn format(path: &Path, what: impl Into<String>) -> Error {
    Error::Format { path: path.to_owned(), what: what.into() }
}

pub(crate) fn io(path: &Path) -> impl Fn(std::io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Io { path: path.clone(), source }
}

/// What is wrong in a line, counted from 1.
pub(crate) fn at_line(path: &Path, line: usize, what: impl std::fmt::Display) -> Error {
    format(path, format!("line {line}: {what}"))
}
