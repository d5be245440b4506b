use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};

/// Writes a file so that a kill at any moment leaves the old one or the new one, whole: under a temporary name beside it
/// (`.tmp` appended), synced, then renamed.
///
/// # Errors
///
/// When the file cannot be written or take its place; the old one is then untouched.
pub fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    Complete::write(path, bytes)?.replace()?;
    sync_folder(path.parent().unwrap_or(Path::new("")))
}

/// A file that is complete but for its name. It does not stay unless it [`replace`](Complete::replace)s the old one.
pub(crate) struct Complete {
    temporary: PathBuf,
    path: PathBuf,
}

impl Complete {
    pub(crate) fn write(path: &Path, bytes: &[u8]) -> io::Result<Self> {
        if path.is_dir() {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        let complete = Self { temporary: path.with_added_extension("tmp"), path: path.to_owned() };
        let mut file = File::create(&complete.temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        Ok(complete)
    }

    pub(crate) fn replace(self) -> io::Result<()> {
        fs::rename(&self.temporary, &self.path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Complete {
    fn drop(&mut self) {
        // After a rename there is nothing of that name.
        let _ = fs::remove_file(&self.temporary);
    }
}

/// Makes new names last; not every system lets a folder be opened.
pub(crate) fn sync_folder(folder: &Path) -> io::Result<()> {
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    if cfg!(unix) { File::open(folder)?.sync_all() } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replaces_whole_files_and_leaves_nothing_else() -> io::Result<()> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("config.json");
        write_whole(&path, b"a longer first version")?;
        write_whole(&path, b"second")?;
        assert_eq!(fs::read(&path)?, b"second");
        drop(Complete::write(&path, b"third")?);
        assert_eq!(fs::read(&path)?, b"second");
        assert_eq!(fs::read_dir(folder.path())?.count(), 1);
        assert!(write_whole(folder.path(), b"").is_err());
        assert!(write_whole(&path.join("below"), b"").is_err());
        Ok(())
    }
}
