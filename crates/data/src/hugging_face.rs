//! Any image classification data set in the layout of Hugging Face's hub: parquet files with the columns `image` or `img`
//! `{bytes, path}` and `label`, and the names of the classes in their metadata.

use std::path::Path;

use crate::{Error, ImageSet, Result, Split, parquet};

/// The images of `folder`, whose files are `train-00000-of-0000N.parquet` and so on, also in `data` or `plain_text`;
/// `validation-` or `valid-` counts as the test set where there is no `test-`.
///
/// All images must have one size. A part of the files is loaded as it is, with a warning to `tracing` that names what is missing.
///
/// # Errors
///
/// [`Error::NotFound`] naming what was looked for; [`Error::Format`] for a file that is damaged, does not name its classes, or
/// whose images differ in size.
pub fn load(folder: &Path, split: Split) -> Result<ImageSet> {
    let prefix = match split {
        Split::Train => "train",
        Split::Test => "test",
    };
    for folder in [folder.to_owned(), folder.join("data"), folder.join("plain_text")] {
        let shards = parquet::shards(&folder, split)?;
        if let Some(first) = shards.first() {
            let classes = parquet::classes(first)?;
            return parquet::load(&shards, None, classes);
        }
    }
    Err(Error::NotFound {
        folder: folder.to_owned(),
        expected: format!("{prefix}-00000-of-0000N.parquet and so on"),
    })
}
