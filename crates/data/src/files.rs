use std::{
    fs::File,
    io::Read,
    path::{Path, PathBuf},
};

use crate::{
    Error, Result,
    error::{format, io},
};

/// The first of `names` that exists in `folder`.
pub(crate) fn find(folder: &Path, names: &[String]) -> Result<PathBuf> {
    if !folder.is_dir() {
        return Err(Error::NotFound { folder: folder.to_owned(), expected: "a folder".into() });
    }
    let found = names.iter().map(|name| folder.join(name)).find(|path| path.is_file());
    found.ok_or_else(|| Error::NotFound { folder: folder.to_owned(), expected: names.join(" or ") })
}

/// The bytes of a file, un-gzipped when its name ends in `.gz`, at most `limit` of them.
pub(crate) fn read(path: &Path, limit: usize) -> Result<Vec<u8>> {
    let file = File::open(path).map_err(io(path))?;
    let reader: Box<dyn Read> = match path.extension().is_some_and(|extension| extension == "gz") {
        true => Box::new(flate2::read::GzDecoder::new(file)),
        false => Box::new(file),
    };
    let mut bytes = Vec::new();
    reader.take(limit as u64 + 1).read_to_end(&mut bytes).map_err(io(path))?;
    if bytes.len() > limit {
        return Err(format(path, format!("more than {limit} bytes")));
    }
    Ok(bytes)
}
