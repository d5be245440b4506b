//! Checkpoints of others.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use candle_core::Device;
use layerwise_data::{Preprocess, Size};
use layerwise_models::{Error as ModelError, Head, LoadOptions, Loaded, Vit, VitConfig};

/// A frozen ViT or `DeiT`, without a classifier where the checkpoint has none, and the tensors that it has no use for; a pooler
/// is none of those.
///
/// # Errors
///
/// As [`Vit::load_with`].
pub fn load_vit(folder: &Path, device: &Device) -> Result<(Vit, Vec<String>)> {
    let Loaded { model, mut unexpected, .. } = match Vit::load_with(folder, &LoadOptions::default(), device) {
        Err(ModelError::Tensors { missing, shapes, .. })
            if shapes.is_empty() && missing.iter().all(|name| name.starts_with("classifier.")) =>
        {
            let options = LoadOptions { head: Head::None, ..Default::default() };
            Vit::load_with(folder, &options, device)?
        }
        loaded => loaded?,
    };
    unexpected.retain(|name| !name.starts_with("vit.pooler."));
    Ok((model.frozen(), unexpected))
}

/// How a checkpoint's images are prepared: by its `preprocessor_config.json`, or by Hugging Face's defaults at the model's own size.
///
/// # Errors
///
/// When the file cannot be read.
pub fn preprocess_of(folder: &Path, config: &VitConfig) -> Result<Preprocess> {
    let channels = config.num_channels;
    Ok(Preprocess::load(folder)?.unwrap_or_else(|| Preprocess {
        size: Size::Square(config.image_size),
        image_mean: vec![0.5; channels],
        image_std: vec![0.5; channels],
        ..Default::default()
    }))
}

/// What to call the models of folders: the folders' own names, with as many of those above as tell them apart. One in the hub's
/// cache is called after its repository.
///
/// # Errors
///
/// When a folder is not there; the message names it.
pub fn model_names(folders: &[&Path]) -> Result<Vec<String>> {
    let whole = |folder: &&Path| {
        Ok(repository(&folder.canonicalize().with_context(|| folder.display().to_string())?))
    };
    let folders = folders.iter().map(whole).collect::<Result<Vec<PathBuf>>>()?;
    let name = |folder: &PathBuf, parts: usize| -> String {
        let all: Vec<_> = folder.iter().collect();
        let end: PathBuf = all[all.len().saturating_sub(parts)..].iter().collect();
        end.to_string_lossy().into_owned()
    };
    let tells_apart = |parts: &usize| {
        let of = |folder| name(folder, *parts);
        folders.iter().all(|one| folders.iter().all(|other| one == other || of(one) != of(other)))
    };
    let longest = folders.iter().map(|folder| folder.iter().count()).max().unwrap_or(1);
    let parts = (1..longest).find(tells_apart).unwrap_or(longest);
    Ok(folders.iter().map(|folder| name(folder, parts)).collect())
}

/// The folder, or for one like `hub/models--OWNER--NAME/snapshots/COMMIT` `hub/OWNER/NAME`.
fn repository(folder: &Path) -> PathBuf {
    let cached = folder.ancestors().find_map(|above| {
        let snapshots = above.file_name()? == "snapshots";
        let name = above.parent().filter(|_| snapshots)?.file_name()?.to_str()?;
        let (_, id) = name.split_once("--").filter(|(kind, _)| ["models", "datasets"].contains(kind))?;
        Some(above.parent()?.with_file_name(id.replace("--", "/")))
    });
    cached.unwrap_or_else(|| folder.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_models_apart() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let at = |name: &str| folder.path().join(name);
        for name in ["a/model", "b/model", "b/other"] {
            std::fs::create_dir_all(at(name))?;
        }
        let names = |folders: &[PathBuf]| model_names(&folders.iter().map(|f| &**f).collect::<Vec<_>>());
        assert_eq!(names(&[at("b/model"), at("b/other")])?, ["model", "other"]);
        let (deit, set) =
            ("models--facebook--deit/snapshots/1a2b", "datasets--uoft-cs--cifar10/snapshots/3c4d/plain_text");
        for folder in [deit, set] {
            std::fs::create_dir_all(at(folder))?;
        }
        assert_eq!(names(&[at(deit), at(set), at("b/model")])?, ["deit", "cifar10", "model"]);
        assert_eq!(names(&[at("a/model"), at("b/model")])?, ["a/model", "b/model"]);
        assert_eq!(names(&[at("a/model"), at("a/../a/model")])?, ["model", "model"]);
        let error = names(&[at("absent")]).unwrap_err().to_string();
        assert!(error.contains("absent"), "{error}");
        Ok(())
    }
}
