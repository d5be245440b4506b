use std::{collections::BTreeMap, fs, path::PathBuf};

use hf_hub::{
    HFClient, HFClientSync, HFError, HFRepositorySync, HFResult, RepoTypeAny, repository::RepoTreeEntry,
};

use super::{
    cache::{self, Repository},
    error::{self, Error, Result, status},
    is_inside,
};

/// One commit of a repository: the files it has, and where they are.
pub(super) struct Snapshot<'a> {
    id: &'a str,
    cache: &'a Repository,
    commit: String,
    /// Names in the repository, and sizes in bytes.
    files: BTreeMap<String, u64>,
    /// Where to get what is not in the cache; `None`: nowhere.
    remote: Option<HFRepositorySync<RepoTypeAny>>,
}

impl<'a> Snapshot<'a> {
    /// What the cache has.
    pub(super) fn cached(id: &'a str, revision: &str, cache: &'a Repository) -> Self {
        let commit = cache.commit(revision).unwrap_or_default();
        let files = if commit.is_empty() { BTreeMap::new() } else { cache::files(&cache.snapshot(&commit)) };
        Self { id, cache, commit, files, remote: None }
    }

    /// What the hub has. Two requests, one if `revision` is a commit.
    pub(super) fn online(
        id: &'a str,
        kind: RepoTypeAny,
        revision: &str,
        endpoint: Option<&str>,
        cache: &'a Repository,
    ) -> Result<Self> {
        let (owner, name) = hf_hub::split_id(id);
        // Three further tries, about a second in all: hf-hub's documentation says so, its code makes five.
        let mut client = HFClient::builder().cache_dir(&cache.cache).retry_max_attempts(3);
        if let Some(endpoint) = endpoint {
            client = client.endpoint(endpoint);
        }
        let client = client.build_sync().map_err(error::hub(id))?;
        let explain = |error: HFError| match status(&error) {
            Some(404) => Error::Repository { id: id.to_owned(), revision: revision.to_owned() },
            _ => error::hub(id)(error),
        };

        let commit = if cache::is_commit(revision) {
            revision.to_owned()
        } else {
            let commit = commit(&client, kind, owner, name, revision).map_err(explain)?;
            commit.filter(|commit| cache::is_commit(commit)).ok_or_else(|| {
                let source = HFError::malformed_response(format!("the commit of {revision}"));
                Error::Hub { id: id.to_owned(), source }
            })?
        };
        let remote = client.repository(kind, owner, name);
        let tree = remote.list_tree().revision(&commit).recursive(true).send().map_err(explain)?;
        let files = tree.into_iter().filter_map(|entry| match entry {
            RepoTreeEntry::File { path, size, .. } => Some((path, size)),
            RepoTreeEntry::Directory { .. } => None,
        });
        Ok(Self { id, cache, commit, files: files.collect(), remote: Some(remote) })
    }

    pub(super) fn folder(&self) -> PathBuf {
        self.cache.snapshot(&self.commit)
    }

    pub(super) fn id(&self) -> &str {
        self.id
    }

    pub(super) fn is_online(&self) -> bool {
        self.remote.is_some()
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.files.keys().map(String::as_str)
    }

    pub(super) fn has(&self, file: &str) -> bool {
        self.files.contains_key(file)
    }

    /// The error of a file that is not there.
    pub(super) fn missing(&self, file: &str) -> Error {
        let (id, file) = (self.id.to_owned(), file.to_owned());
        match self.remote {
            Some(_) => Error::NotFound { id, file },
            None => Error::Offline { id, file, cache: self.cache.folder.clone() },
        }
    }

    /// A file's path, where the file is when this returns.
    pub(super) fn get(&self, file: &str) -> Result<PathBuf> {
        if !is_inside(file) {
            return Err(Error::FileName { id: self.id.to_owned(), file: file.to_owned() });
        }
        let expected = *self.files.get(file).ok_or_else(|| self.missing(file))?;
        let path = self.folder().join(file);
        let Some(remote) = &self.remote else { return Ok(path) };
        if cache::size(&path) == Some(expected) {
            return Ok(path);
        }

        // hf-hub does not look at the status of the answer that it writes into the cache, and takes a file
        // there as it is. So a wrong one is replaced once, and not left to others.
        for force in [false, true] {
            tracing::info!(id = self.id, file, bytes = expected, "downloading");
            let download = remote.download_file().filename(file).revision(&self.commit).force_download(force);
            download.send().map_err(|error| match status(&error) {
                Some(404) => self.missing(file),
                _ => error::hub(self.id)(error),
            })?;
            if cache::size(&path) == Some(expected) {
                return Ok(path);
            }
        }
        let found = cache::size(&path).unwrap_or(0);
        for wrong in [fs::canonicalize(&path), Ok(path)].into_iter().flatten() {
            let _ = fs::remove_file(wrong);
        }
        Err(Error::Size { id: self.id.to_owned(), file: file.to_owned(), expected, found })
    }

    /// Lets `revision` be this commit for who asks the cache alone.
    pub(super) fn remember(&self, revision: &str) -> Result<()> {
        self.cache.set_commit(revision, &self.commit)
    }
}

fn commit(
    client: &HFClientSync,
    kind: RepoTypeAny,
    owner: &str,
    name: &str,
    revision: &str,
) -> HFResult<Option<String>> {
    let only = vec!["sha".to_owned()];
    if kind == RepoTypeAny::Dataset {
        Ok(client.dataset(owner, name).info().revision(revision).expand(only).send()?.sha)
    } else {
        Ok(client.model(owner, name).info().revision(revision).expand(only).send()?.sha)
    }
}
