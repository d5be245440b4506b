//! The data sets of the examples, split and augmented as they are trained on.

use std::path::Path;

use anyhow::{Result, ensure};
use candle_core::Device;
use layerwise_data::{Augment, Split, cifar10, digits, hugging_face, idx};

use crate::{Preset, checkpoint::model_names, images::Images, progress};

/// The folder of `--data`, or none where the embedded digits stand in: with [`Preset::Smoke`], which is said on stderr.
///
/// # Errors
///
/// Without a folder otherwise; `expected` says which.
pub fn folder_or_digits<'a>(
    data: Option<&'a Path>,
    preset: Preset,
    expected: &str,
) -> Result<Option<&'a Path>> {
    if data.is_none() {
        let smoke = preset == Preset::Smoke;
        ensure!(smoke, "--data DIR: expected {expected}; only --preset smoke does without");
        progress::line("no --data: the embedded digits stand in");
    }
    Ok(data)
}

/// The embedded digits: 80 %, or at most `limit`, to train on, turned by up to 10 degrees; 20 % held out, the same in every
/// run.
///
/// # Errors
///
/// When `limit` is 0.
pub fn embedded_digits(limit: usize, device: &Device) -> Result<Images> {
    let (train, test) = digits()?.split(0.2, 0)?;
    // Of the paper's recipe what 8x8 digits bear: mirrored they are others, and a pixel is an eighth of them.
    let augment = Augment { crop_padding: 0, flip: 0., rotation_degrees: 10. };
    Ok(Images::new("digits", (train.take(limit)?, test), augment, device))
}

/// CIFAR-10 of a folder, under the paper's augmentation; at most `limit` images of each part.
///
/// # Errors
///
/// When the folder does not hold CIFAR-10; the message names it and what was expected.
pub fn cifar10_of(folder: &Path, limit: usize, device: &Device) -> Result<Images> {
    let part = |split| anyhow::Ok(cifar10::load(folder, split)?.take(limit)?);
    Ok(Images::new("cifar10", (part(Split::Train)?, part(Split::Test)?), Augment::default(), device))
}

/// Any data set of a folder in Hugging Face's parquet layout, called after the folder, under the paper's augmentation; at most
/// `limit` images of each part.
///
/// # Errors
///
/// When the folder does not hold one; the message names it and what was expected.
pub fn parquet_of(folder: &Path, limit: usize, device: &Device) -> Result<Images> {
    let part = |split| anyhow::Ok(hugging_face::load(folder, split)?.take(limit)?);
    let name = model_names(&[folder])?.concat();
    Ok(Images::new(&name, (part(Split::Train)?, part(Split::Test)?), Augment::default(), device))
}

/// MNIST of a folder, not augmented; at most `limit` images of each part.
///
/// # Errors
///
/// When the folder does not hold MNIST; the message names it and what was expected.
pub fn mnist_of(folder: &Path, limit: usize, device: &Device) -> Result<Images> {
    let part = |split| anyhow::Ok(idx::load(folder, split)?.take(limit)?);
    let augment = Augment { crop_padding: 0, flip: 0., rotation_degrees: 0. };
    Ok(Images::new("mnist", (part(Split::Train)?, part(Split::Test)?), augment, device))
}
