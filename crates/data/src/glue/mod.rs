//! The nine tasks of GLUE (Wang et al. 2019), from their official TSV files.

mod task;
mod tsv;

use std::path::{Path, PathBuf};

pub use self::task::{Part, Task};
use crate::{Result, TextSet, files::find};

/// A part of a task from its `folder`: `train.tsv`, `dev.tsv`, `test.tsv` (of MNLI `dev_matched.tsv` and so on), plain or `.gz`.
///
/// # Errors
///
/// [`Error::NotFound`](crate::Error::NotFound) naming the files looked for, and as [`load_file`].
pub fn load(task: Task, folder: &Path, part: Part) -> Result<TextSet> {
    load_file(task, &file(task, folder, part)?)
}

/// The file that [`load`] reads.
///
/// # Errors
///
/// [`Error::NotFound`](crate::Error::NotFound) naming the files looked for.
pub fn file(task: Task, folder: &Path, part: Part) -> Result<PathBuf> {
    let name = task.file(part);
    find(folder, &[name.to_owned(), format!("{name}.gz")])
}

/// The samples of one file of a task, plain or `.gz`. A file without a column of labels, or all of whose labels are -1, has samples
/// without targets.
///
/// A byte order mark and carriage returns at the ends of lines are taken away; quotes are what they are. Rows of QQP that are cut
/// short, of which the official files have some, are left out with a `tracing` warning.
///
/// # Errors
///
/// [`Error::Format`](crate::Error::Format) naming file and line of what is no UTF-8, an empty line, a missing column, a label that
/// the task does not have or a score outside of its range; [`Error::Empty`](crate::Error::Empty) for a file without samples;
/// [`Error::Io`](crate::Error::Io).
pub fn load_file(task: Task, path: &Path) -> Result<TextSet> {
    tsv::load(task, path)
}
