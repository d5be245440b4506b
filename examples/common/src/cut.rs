//! Cutting a model, and checking that the shallower one in the folder answers as the exit it was cut at.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use candle_core::{D, DType, Device, Tensor};
use layerwise_data::Preprocess;
use layerwise_models::{Batch, Pass, Vit, tap};
use serde::Serialize;

/// A shallower model in a folder, read back and checked.
#[derive(Clone, Debug, Serialize)]
pub struct Cut {
    /// Its blocks.
    pub depth: usize,
    /// Its accuracy on the images held out.
    pub accuracy: f64,
    /// Bytes of its weights file.
    pub bytes: u64,
}

/// Cuts `model` after layer `depth`, saves it as a Hugging Face folder and reads it back.
///
/// # Errors
///
/// When its logits differ from those of the exit in a single bit; when the folder cannot be written or read.
pub fn cut_and_check(
    model: &Vit,
    depth: usize,
    preprocess: &Preprocess,
    batches: impl Iterator<Item = candle_core::Result<(Batch, Tensor)>>,
    folder: &Path,
    device: &Device,
) -> Result<Cut> {
    save(&model.cut(depth)?, preprocess, folder)?;
    let (whole, reloaded) = (model.frozen(), Vit::load(folder, device)?.frozen());
    let (mut hits, mut samples) = (0., 0.);
    for batch in batches {
        let (images, labels) = batch?;
        let want = &tap::layer_logits(&whole, &images, Pass::EVAL)?[depth - 1];
        let got = tap::forward(&reloaded, &images, Pass::EVAL)?;
        ensure!(
            got.to_vec2::<f32>()? == want.to_vec2::<f32>()?,
            "{}: the reloaded model's logits differ from exit {depth}'s",
            folder.display()
        );
        hits += got.argmax(D::Minus1)?.eq(&labels)?.to_dtype(DType::F64)?.sum_all()?.to_scalar::<f64>()?;
        samples += labels.elem_count() as f64;
    }
    Ok(Cut { depth, accuracy: hits / samples, bytes: weights_size(folder)? })
}

/// A Hugging Face folder: the model, and how its images are prepared.
///
/// # Errors
///
/// When a file cannot be written.
pub fn save(model: &Vit, preprocess: &Preprocess, folder: &Path) -> Result<()> {
    model.save(folder)?;
    Ok(preprocess.save(folder)?)
}

/// Bytes of a folder's weights.
///
/// # Errors
///
/// When they are not there.
pub fn weights_size(folder: &Path) -> Result<u64> {
    let file = folder.join("model.safetensors");
    Ok(std::fs::metadata(&file).with_context(|| file.display().to_string())?.len())
}
