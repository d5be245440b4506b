use std::{
    fs::File,
    io::Read,
    path::{Path, PathBuf},
};

use crate::{Error, Result, error::io};

/// The first of `names` that exists in `folder`.
pub(crate) fn find(folder: &Path, names: &[String]) -> Result<PathBuf> {
    if !folder.is_dir() {
        return Err(Error::NotFound { folder: folder.to_owned(), expected: "a folder".into() });
    }
    let found = names.iter().map(|name| folder.join(name)).find(|path| path.is_file());
    found.ok_or_else(|| Error::NotFound { folder: folder.to_owned(), expected: names.join(" or ") })
}

/// A file to read from, un-gzipped when its name ends in `.gz`.
pub(crate) fn open(path: &Path) -> Result<Box<dyn Read>> {
    let file = File::open(path).map_err(io(path))?;
    Ok(match path.extension().is_some_and(|extension| extension == "gz") {
        true => Box::new(flate2::read::MultiGzDecoder::new(file)),
        false => Box::new(file),
    })
}

/// Up to `limit` of the bytes left in `reader`, which reads `path`.
pub(crate) fn read(reader: &mut dyn Read, limit: usize, path: &Path) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    reader.take(limit as u64).read_to_end(&mut bytes).map_err(io(path))?;
    Ok(bytes)
}
