//! Models and data sets of the [Hugging Face hub](https://huggingface.co): their files in a local folder.
//! Feature `hub`.
//!
//! ```no_run
//! use layerwise::hub;
//!
//! let vit = hub::model("facebook/deit-tiny-patch16-224")?;
//! assert!(vit.join("config.json").exists() && vit.join("model.safetensors").exists());
//!
//! let cifar10 = hub::data_set("uoft-cs/cifar10")?;
//! assert!(cifar10.join("train-00000-of-00001.parquet").exists());
//! # Ok::<(), hub::Error>(())
//! ```
//!
//! Files go into the cache that Python's `huggingface_hub` uses, and what is there already is not
//! downloaded again. The hub is asked which commit a branch is at, and which files that commit has; all
//! files come from that one commit, each has the size that the hub states, and a branch points to the new
//! commit only when all are there. When the hub does not answer, the cache has to do.
//!
//! With [`Hub::offline`] or the variable `HF_HUB_OFFLINE=1` no request is made. Set it where a firewall
//! swallows requests, such as on a cluster's compute nodes: to find out that nobody answers takes the
//! system's time limit there, minutes.
//!
//! `HF_TOKEN`, or the file that `hf auth login` writes, opens private and gated repositories. `HF_HOME`,
//! `HF_HUB_CACHE` and `HF_ENDPOINT` mean what they mean in Python. TLS trusts the system's certificates.
//!
//! All functions block. They may be called inside of a tokio runtime too, where they block the worker that
//! runs them. Progress goes to `tracing`, a line at level `INFO` for each download.

mod cache;
mod error;
mod files;
mod snapshot;

use std::path::{Path, PathBuf};

use hf_hub::RepoTypeAny;

pub use error::{Error, Result};
use snapshot::Snapshot;

/// The folder of a model, downloaded where it is not in the cache: [`Hub::model`] with default settings.
///
/// # Errors
///
/// Those of [`Hub::model`].
pub fn model(id: &str) -> Result<PathBuf> {
    Hub::default().model(id)
}

/// The folder of a data set's parquet files, downloaded where they are not in the cache: [`Hub::data_set`]
/// with default settings.
///
/// # Errors
///
/// Those of [`Hub::data_set`].
pub fn data_set(id: &str) -> Result<PathBuf> {
    Hub::default().data_set(id)
}

/// Which hub, which revision, and where files are kept.
///
/// ```
/// use layerwise::hub::{Error, Hub};
///
/// let cache = std::env::temp_dir().join("nothing/is/here");
/// let hub = Hub { cache_dir: Some(cache), offline: true, ..Default::default() };
/// assert!(matches!(hub.model("owner/name"), Err(Error::Offline { file, .. }) if file == "config.json"));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hub {
    /// Folder of the cache; `None`: `HF_HUB_CACHE`, or else `hub` in `HF_HOME`, or else
    /// `~/.cache/huggingface/hub`.
    pub cache_dir: Option<PathBuf>,
    /// Address of the hub; `None`: `HF_ENDPOINT`, or else `https://huggingface.co`.
    pub endpoint: Option<String>,
    /// Branch, tag or commit; `None`: the branch `main`.
    pub revision: Option<String>,
    /// Take what the cache has and make no request. By default what `HF_HUB_OFFLINE` says: `1`, `on`,
    /// `true` or `yes`.
    pub offline: bool,
}

impl Default for Hub {
    fn default() -> Self {
        let offline = std::env::var("HF_HUB_OFFLINE").unwrap_or_default().to_lowercase();
        Self {
            cache_dir: None,
            endpoint: None,
            revision: None,
            offline: matches!(offline.as_str(), "1" | "on" | "true" | "yes"),
        }
    }
}

impl Hub {
    /// The folder that holds a model: `config.json`; `model.safetensors`, or `model.safetensors.index.json`
    /// with the shards it names; and where the repository has them `preprocessor_config.json`,
    /// `tokenizer.json`, `tokenizer_config.json` and `layerwise.json`.
    ///
    /// `id` is `owner/name`, or an old name without owner such as `gpt2`.
    ///
    /// # Errors
    ///
    /// [`Error::Id`] and [`Error::Revision`] when that is no id or revision; [`Error::Repository`] and
    /// [`Error::NotFound`] when the hub has no such repository or file, [`Error::Refused`] when it does not
    /// let you read it; [`Error::Offline`] when a file is not in the cache and no request may be made;
    /// [`Error::Index`] and [`Error::FileName`] when the index of shards is none, or names a file outside
    /// of the folder; [`Error::Size`], [`Error::Io`] and [`Error::Hub`] when the download fails.
    pub fn model(&self, id: &str) -> Result<PathBuf> {
        self.get(RepoTypeAny::Model, id, files::model)
    }

    /// The folder that holds a data set's `*.parquet` files whose names start with `train-`, `validation-`,
    /// `valid-` or `test-`. That is the sub-folder they are in when it is one, such as `plain_text` of
    /// `uoft-cs/cifar10`, else the one above all.
    ///
    /// `id` is `owner/name`, or an old name without owner such as `mnist`.
    ///
    /// # Errors
    ///
    /// [`Error::NoParquet`] when the hub has no such file; else those of [`Hub::model`].
    pub fn data_set(&self, id: &str) -> Result<PathBuf> {
        self.get(RepoTypeAny::Dataset, id, files::data_set)
    }

    fn get(
        &self,
        kind: RepoTypeAny,
        id: &str,
        choose: fn(&Snapshot<'_>) -> Result<PathBuf>,
    ) -> Result<PathBuf> {
        check_id(id)?;
        let revision = self.revision.as_deref().unwrap_or("main");
        if !is_inside(revision) {
            return Err(Error::Revision { revision: revision.to_owned() });
        }
        let cache = self.cache_dir.clone().unwrap_or_else(hf_hub::resolve_cache_dir);
        let cache = cache::Repository::new(&cache, kind, id);

        let cached = || choose(&Snapshot::cached(id, revision, &cache));
        if self.offline {
            return cached();
        }
        let online = || -> Result<PathBuf> {
            let snapshot = Snapshot::online(id, kind, revision, self.endpoint.as_deref(), &cache)?;
            let folder = choose(&snapshot)?;
            snapshot.remember(revision)?;
            Ok(folder)
        };
        match online() {
            Err(error) if error.is_no_answer() => {
                let folder = cached().map_err(|_| error)?;
                tracing::warn!(id, "the hub does not answer, using the cache");
                Ok(folder)
            }
            result => result,
        }
    }
}

/// What `huggingface_hub` lets pass: one or two names of letters, digits, `-`, `_` and `.`, none of which
/// begins or ends with `-` or `.` or has two of one in a row.
fn check_id(id: &str) -> Result<()> {
    let is_name = |name: &str| {
        !name.is_empty()
            && name.len() <= 96
            && name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
            && !name.starts_with(['-', '.'])
            && !name.ends_with(['-', '.'])
            && !name.contains("--")
            && !name.contains("..")
    };
    if id.split('/').count() <= 2 && id.split('/').all(is_name) {
        Ok(())
    } else {
        Err(Error::Id { id: id.to_owned() })
    }
}

/// Whether `path` is one of a file below the folder that it is joined to, on every system.
fn is_inside(path: &str) -> bool {
    !path.is_empty()
        && !path.contains(['\\', ':', '\0'])
        && path.split('/').all(|part| !matches!(part, "" | "." | ".."))
        && Path::new(path).is_relative()
}
