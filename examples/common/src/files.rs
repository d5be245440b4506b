//! Files that are either the old one or the new one, whole, whenever the program ends.

use std::fs::{self, File};
use std::path::Path;

use anyhow::{Context, Result};
use layerwise_models::write_whole;

/// Creates a folder and its parents.
///
/// # Errors
///
/// When it cannot be created or written to; the message names it.
pub fn create_folder(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("{}: cannot create this folder", folder.display()))?;
    let probe = folder.join(".writable");
    let writable = File::create(&probe).and_then(|_| fs::remove_file(&probe));
    writable.with_context(|| format!("{}: cannot write to this folder", folder.display()))
}

/// Writes a file in one piece: the old one or the new one is there, whole, whenever the program ends.
///
/// # Errors
///
/// When the file cannot be written; the message names it.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<()> {
    write_whole(path, bytes).with_context(|| format!("{}: cannot write this file", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_what_cannot_be_written() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let file = folder.path().join("a file");
        fs::write(&file, "")?;
        let below = file.join("below");
        let error = create_folder(&below).unwrap_err().to_string();
        assert!(error.contains(&below.display().to_string()), "{error}");
        let error = write_atomic(&below, b"").unwrap_err().to_string();
        assert!(error.contains(&below.display().to_string()), "{error}");
        Ok(())
    }
}
