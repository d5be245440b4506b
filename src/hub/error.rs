use std::path::{Path, PathBuf};

use hf_hub::HFError;

/// What can go wrong on the way to a folder with files of the hub.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Not an id of a repository.
    #[error("{id:?} is no id of the hub, expected owner/name (some old ones are a name only, such as gpt2)")]
    Id {
        /// What was given.
        id: String,
    },
    /// Not a branch, tag or commit.
    #[error("{revision:?} is no branch, tag or commit")]
    Revision {
        /// What was given.
        revision: String,
    },
    /// The hub has no such repository, or no such revision of it.
    #[error("{id}: the hub has no such repository, or it has no revision {revision}")]
    Repository {
        /// The repository.
        id: String,
        /// The revision.
        revision: String,
    },
    /// The repository lacks a file.
    #[error("{id}: the repository has no {file}")]
    NotFound {
        /// The repository.
        id: String,
        /// The file.
        file: String,
    },
    /// A data set that is not kept as parquet files.
    #[error("{id}: no parquet file whose name starts with train-, validation- or test-")]
    NoParquet {
        /// The repository.
        id: String,
    },
    /// A file is not in the cache, and no request may be made.
    #[error("{id}: offline, and {file} is not in {}", .cache.display())]
    Offline {
        /// The repository.
        id: String,
        /// The file.
        file: String,
        /// The repository's folder in the cache.
        cache: PathBuf,
    },
    /// The hub wants to know who asks, or does not let them read.
    #[error("{id}: {source}; the id may be misspelt, or the repository private or gated: then set HF_TOKEN")]
    Refused {
        /// The repository.
        id: String,
        /// The hub's answer.
        source: HFError,
    },
    /// A file's name that leads out of the folder.
    #[error("{id}: {file:?} is no file of the repository")]
    FileName {
        /// The repository.
        id: String,
        /// The name.
        file: String,
    },
    /// An index of shards that does not say which file a tensor is in.
    #[error("{}: {what}", .path.display())]
    Index {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// A download that is not the file.
    #[error("{id}: {found} bytes came as {file}, which has {expected}")]
    Size {
        /// The repository.
        id: String,
        /// The file.
        file: String,
        /// Its size in bytes.
        expected: u64,
        /// What came, in bytes.
        found: u64,
    },
    /// A file could not be read or written.
    #[error("{}: {source}", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The network, or an answer that says something else than what was asked for.
    #[error("{id}: {source}")]
    Hub {
        /// The repository.
        id: String,
        /// What hf-hub says.
        source: HFError,
    },
}

/// Results of this module.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// Whether this says more of the connection than of what was asked for.
    pub(super) fn is_no_answer(&self) -> bool {
        match self {
            Self::Hub { source: HFError::Request { source, .. }, .. } => {
                source.is_connect() || source.is_timeout()
            }
            Self::Hub { source, .. } => status(source).is_some_and(|status| status >= 500),
            _ => false,
        }
    }
}

pub(super) fn hub(id: &str) -> impl Fn(HFError) -> Error {
    let id = id.to_owned();
    move |source| match status(&source) {
        Some(401 | 403) => Error::Refused { id: id.clone(), source },
        _ => Error::Hub { id: id.clone(), source },
    }
}

pub(super) fn io(path: &Path) -> impl Fn(std::io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Io { path: path.clone(), source }
}

/// The status of an answer, whichever variant it came in.
pub(super) fn status(error: &HFError) -> Option<u16> {
    match error {
        HFError::Http { context } | HFError::AuthRequired { context } | HFError::Forbidden { context } => {
            Some(context.status.as_u16())
        }
        HFError::RepoNotFound { .. } | HFError::RevisionNotFound { .. } | HFError::EntryNotFound { .. } => {
            Some(404)
        }
        _ => None,
    }
}
