//! Checkpoints of others.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use candle_core::Device;
use layerwise_data::{Preprocess, Size};
use layerwise_models::{Bert, Error as ModelError, Head, LoadOptions, Loaded, Tapped, Vit, VitConfig};
use serde_json::{Value, json};

use crate::{
    encoded::{EncodedTexts, encoder_of, first, texts_of},
    input::Input,
    layers::Source,
    progress,
};

/// A frozen model of one of the kinds that examples open, without a classifier where the checkpoint has none.
#[derive(Clone, Debug)]
pub enum Checkpoint {
    /// A ViT or `DeiT`: takes images.
    Vit(Vit),
    /// A BERT: takes texts.
    Bert(Bert),
}

impl Checkpoint {
    /// Opens a Hugging Face folder, and returns the tensors, too, that the model has no use for; a pooler before no classifier
    /// is none of those.
    ///
    /// # Errors
    ///
    /// As [`Vit::load_with`].
    pub fn open(folder: &Path, device: &Device) -> Result<(Self, Vec<String>)> {
        match model_type(folder).as_deref() {
            Some("bert") => {
                let bert = headed(|options| Bert::load_with(folder, options, device))?;
                Ok((Self::Bert(bert.model.frozen()), bert.unexpected))
            }
            Some("vit" | "deit") | None => {
                let (model, unexpected) = load_vit(folder, device)?;
                Ok((Self::Vit(model), unexpected))
            }
            Some(other) => {
                bail!(
                    "{}: model_type {other:?}, expected vit, deit or bert",
                    folder.join("config.json").display()
                )
            }
        }
    }

    /// Samples as the model takes them. For a ViT: a folder of images or of a data set, or, without one, the embedded digits. For a BERT: a text
    /// file, one line a sample, or a folder of GLUE with the name of its task; of `one_width`, all texts are filled up to the longest.
    ///
    /// # Errors
    ///
    /// When it is none of these; the message names it.
    pub fn samples(
        &self,
        folder: &Path,
        input: Option<&Path>,
        limit: Option<usize>,
        one_width: bool,
    ) -> Result<Box<dyn Source>> {
        match self {
            Self::Vit(vit) => Ok(Box::new(Input::open(input, limit, folder, vit.config())?)),
            Self::Bert(bert) => {
                let input = input.with_context(|| {
                    format!("{}: a BERT, which takes texts; expected a text file", folder.display())
                })?;
                let texts = first(texts_of(input)?, limit.unwrap_or(usize::MAX))?;
                let texts = EncodedTexts::new(encoder_of(folder, bert.config())?, &texts)?;
                if texts.truncated() > 0 {
                    progress::line(&format!(
                        "{}: {} of {} texts have more than {} tokens and are cut",
                        input.display(),
                        texts.truncated(),
                        texts.samples(),
                        texts.max_tokens()
                    ));
                }
                Ok(Box::new(if one_width { texts.of_one_width() } else { texts }))
            }
        }
    }

    /// To run it.
    #[must_use]
    pub fn tapped(&self) -> &dyn Tapped {
        match self {
            Self::Vit(vit) => vit,
            Self::Bert(bert) => bert,
        }
    }

    /// The same model for serving.
    ///
    /// # Errors
    ///
    /// When the device cannot allocate.
    pub fn packed(&self) -> Result<Self> {
        Ok(match self {
            Self::Vit(vit) => Self::Vit(vit.packed()?),
            Self::Bert(bert) => Self::Bert(bert.packed()?),
        })
    }

    /// What its samples are.
    #[must_use]
    pub fn takes(&self) -> &'static str {
        match self {
            Self::Vit(_) => "images",
            Self::Bert(_) => "texts",
        }
    }

    /// Names of the classes; one for a model that answers with a number, none without a classifier.
    #[must_use]
    pub fn labels(&self) -> Vec<String> {
        match self {
            Self::Vit(vit) => (0..vit.config().num_labels).map(|id| vit.config().label(id)).collect(),
            Self::Bert(bert) => (0..bert.config().num_labels).map(|id| bert.config().label(id)).collect(),
        }
    }

    /// The configuration, for `results.json`.
    #[must_use]
    pub fn config(&self) -> Value {
        match self {
            Self::Vit(vit) => json!(vit.config()),
            Self::Bert(bert) => json!(bert.config()),
        }
    }
}

/// `model_type` in a folder's `config.json`, where that can be told; whoever loads the model says what is wrong.
fn model_type(folder: &Path) -> Option<String> {
    let config: Value = serde_json::from_slice(&std::fs::read(folder.join("config.json")).ok()?).ok()?;
    Some(config["model_type"].as_str()?.to_owned())
}

/// A frozen ViT or `DeiT`, without a classifier where the checkpoint has none, and the tensors that it has no use for; a pooler
/// is none of those.
///
/// # Errors
///
/// As [`Vit::load_with`].
pub fn load_vit(folder: &Path, device: &Device) -> Result<(Vit, Vec<String>)> {
    let Loaded { model, mut unexpected, .. } = headed(|options| Vit::load_with(folder, options, device))?;
    unexpected.retain(|name| !name.starts_with("vit.pooler."));
    Ok((model.frozen(), unexpected))
}

/// Without a head where only that is missing.
fn headed<M>(load: impl Fn(&LoadOptions) -> Result<Loaded<M>, ModelError>) -> Result<Loaded<M>> {
    Ok(match load(&LoadOptions::default()) {
        Err(ModelError::Tensors { missing, shapes, .. }) if shapes.is_empty() && only_head(&missing) => {
            load(&LoadOptions { head: Head::None, ..Default::default() })?
        }
        loaded => loaded?,
    })
}

/// A classifier, and perhaps the pooler before it.
fn only_head(missing: &[String]) -> bool {
    let classifier = |name: &String| name.starts_with("classifier.");
    missing.iter().any(classifier)
        && missing.iter().all(|name| classifier(name) || name.starts_with("bert.pooler."))
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
