use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use hf_hub::{RepoType, RepoTypeAny};

use super::error::{Result, io};

/// A repository's folder in the cache, as `huggingface_hub` lays it out: `refs/<branch>` holds the name of
/// a commit, `snapshots/<commit>` its files.
#[derive(Clone, Debug)]
pub(super) struct Repository {
    pub(super) cache: PathBuf,
    pub(super) folder: PathBuf,
}

impl Repository {
    pub(super) fn new(cache: &Path, kind: RepoTypeAny, id: &str) -> Self {
        let name = format!("{}--{}", kind.plural(), id.replace('/', "--"));
        Self { cache: cache.to_owned(), folder: cache.join(name) }
    }

    /// The commit that `revision` was at when it was last asked for.
    pub(super) fn commit(&self, revision: &str) -> Option<String> {
        if is_commit(revision) {
            return Some(revision.to_owned());
        }
        let commit = fs::read_to_string(self.reference(revision)).ok()?;
        Some(commit.trim().to_owned()).filter(|commit| is_commit(commit))
    }

    pub(super) fn set_commit(&self, revision: &str, commit: &str) -> Result<()> {
        if is_commit(revision) {
            return Ok(());
        }
        let path = self.reference(revision);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(io(parent))?;
        }
        fs::write(&path, commit).map_err(io(&path))
    }

    pub(super) fn snapshot(&self, commit: &str) -> PathBuf {
        self.folder.join("snapshots").join(commit)
    }

    fn reference(&self, revision: &str) -> PathBuf {
        self.folder.join("refs").join(revision)
    }
}

pub(super) fn is_commit(revision: &str) -> bool {
    revision.len() == 40 && revision.bytes().all(|b| b.is_ascii_hexdigit())
}

/// Size of a file; of a link, of what it points to.
pub(super) fn size(path: &Path) -> Option<u64> {
    fs::metadata(path).ok().filter(|file| file.is_file()).map(|file| file.len())
}

/// All files below a folder with their sizes, under their names in the repository: none when there is no
/// such folder.
pub(super) fn files(folder: &Path) -> BTreeMap<String, u64> {
    let mut found = BTreeMap::new();
    let mut folders = vec![(folder.to_owned(), String::new())];
    while let Some((folder, prefix)) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let Ok(name) = entry.file_name().into_string() else { continue };
            let name = format!("{prefix}{name}");
            // A link to a folder is not followed: it may lead in a circle.
            if entry.file_type().is_ok_and(|t| t.is_dir()) {
                folders.push((entry.path(), format!("{name}/")));
            } else if let Some(size) = size(&entry.path()) {
                found.insert(name, size);
            }
        }
    }
    found
}
