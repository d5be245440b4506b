use std::{
    fs::{self, File},
    io::{self, Write},
    path::Path,
};

/// Writes a file so that a kill at any moment leaves the old one or the new one, whole: under a temporary name beside it
/// (`.tmp` appended), synced, then renamed. What fails leaves the old file, and no other.
pub(crate) fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let temporary = path.with_added_extension("tmp");
    let write = || {
        let mut file = File::create(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    };
    write().inspect_err(|_| drop(fs::remove_file(&temporary)))?;
    // Makes the new name last; not every system lets a folder be opened.
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if cfg!(unix) { File::open(folder)?.sync_all() } else { Ok(()) }
}
