//! Folders that are not there, from the Hugging Face hub: for examples that are built with the feature `hub`.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

use crate::progress;

/// Gives the folder of a model or a data set by its id, `owner/name`.
pub type Get = fn(&str) -> Result<PathBuf>;

/// How to get what the hub has; nothing in a program that was built without the feature.
#[derive(Clone, Copy, Debug, Default)]
pub struct Hub {
    /// Models.
    pub model: Option<Get>,
    /// Data sets.
    pub data_set: Option<Get>,
}

/// A [`Hub`] by the example's own feature `hub`.
#[macro_export]
macro_rules! hub {
    () => {{
        #[cfg(feature = "hub")]
        let hub = $crate::hub::Hub {
            model: Some(|id| Ok(layerwise::hub::model(id)?)),
            data_set: Some(|id| Ok(layerwise::hub::data_set(id)?)),
        };
        #[cfg(not(feature = "hub"))]
        let hub = $crate::hub::Hub::default();
        hub
    }};
}

/// The folder of a flag: as it is, or fetched where no such folder is there and its name is one that the hub may know.
///
/// # Errors
///
/// When it would have to be fetched and the program cannot; what fetching reports.
pub fn fetched(flag: &str, folder: &Path, get: Option<Get>) -> Result<PathBuf> {
    let Some(id) = id(folder).filter(|_| !folder.exists()) else { return Ok(folder.to_owned()) };
    let Some(get) = get else {
        bail!("{flag} {id}: no such folder; to get it from the Hugging Face hub, build with --features hub")
    };
    progress::line(&format!("{flag} {id}: from the Hugging Face hub, or its cache"));
    get(id)
}

/// `owner/name`, if a path is written like that.
fn id(folder: &Path) -> Option<&str> {
    let text = folder.to_str()?;
    let (owner, name) = text.split_once('/')?;
    let word = |part: &str| {
        let mut characters = part.chars();
        characters.next().is_some_and(char::is_alphanumeric)
            && characters.all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
    };
    (word(owner) && word(name)).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_stay_and_ids_are_fetched() -> Result<()> {
        let get: Get = |id| Ok(Path::new("cache").join(id));
        let of = |path: &str, get| fetched("--data", Path::new(path), get);
        // There, or no id.
        for path in ["src", "/no/such", "./no/such", "a/b/c", "no-such", "../x", "a/", "a//b", "~/data"] {
            assert_eq!(of(path, Some(get))?, Path::new(path));
            assert_eq!(of(path, None)?, Path::new(path));
        }
        assert_eq!(of("uoft-cs/cifar10", Some(get))?, Path::new("cache/uoft-cs/cifar10"));
        let error = of("uoft-cs/cifar10", None).unwrap_err().to_string();
        assert!(error.contains("--data uoft-cs/cifar10") && error.contains("--features hub"), "{error}");
        Ok(())
    }
}
