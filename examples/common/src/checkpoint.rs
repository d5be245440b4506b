//! Checkpoints of others.

use std::path::Path;

use anyhow::Result;
use candle_core::Device;
use layerwise_models::{Error as ModelError, Head, LoadOptions, Loaded, Vit};

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

/// What to call the model of a folder: the folder's own name.
///
/// # Errors
///
/// When the folder is not there.
pub fn model_name(folder: &Path) -> Result<String> {
    Ok(folder.canonicalize()?.file_name().unwrap_or_default().to_string_lossy().into_owned())
}
