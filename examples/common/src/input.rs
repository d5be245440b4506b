//! Images of a folder, turned into what a checkpoint takes.

use std::{
    ops::Range,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail, ensure};
use candle_core::{Device, Tensor};
use image::RgbImage;
use layerwise_data::{Error, ImageSet, Preprocess, Split, cifar10, digits, idx, image_files, read_image};
use layerwise_models::{Batch, VitConfig};
use serde_json::{Value, json};

use crate::{checkpoint::preprocess_of, layers::Source};

/// Samples in order, and how they are prepared.
#[derive(Debug)]
pub struct Input {
    kind: Kind,
    preprocess: Preprocess,
    /// Channels and edge of the model's images: one that has this edge already is not resampled.
    channels: usize,
    model_size: usize,
}

#[derive(Debug)]
enum Kind {
    Files(Vec<PathBuf>),
    Set(ImageSet),
}

impl Input {
    /// Opens samples for a model of this configuration, whose folder may have a `preprocessor_config.json`: a folder of PNG and
    /// JPEG files, or of MNIST's or CIFAR-10's files, whose test part is taken; without a folder, the embedded digits.
    ///
    /// # Errors
    ///
    /// When it is none of these; the message names it.
    pub fn open(
        input: Option<&Path>,
        limit: Option<usize>,
        model: &Path,
        config: &VitConfig,
    ) -> Result<Self> {
        let limit = limit.unwrap_or(usize::MAX);
        let kind = match kind(input)? {
            Kind::Files(files) => Kind::Files(files.into_iter().take(limit).collect()),
            Kind::Set(set) => Kind::Set(set.take(limit)?),
        };
        let (channels, model_size) = (config.num_channels, config.image_size);
        Ok(Self { kind, preprocess: preprocess_of(model, config)?, channels, model_size })
    }

    /// The images of a set, prepared like this for a model of this configuration.
    #[must_use]
    pub fn of_set(set: ImageSet, preprocess: Preprocess, config: &VitConfig) -> Self {
        let (channels, model_size) = (config.num_channels, config.image_size);
        Self { kind: Kind::Set(set), preprocess, channels, model_size }
    }

    /// How images are prepared.
    #[must_use]
    pub fn preprocess(&self) -> &Preprocess {
        &self.preprocess
    }

    /// What the folder's settings made of an image must be what its model takes.
    fn check(&self, found: &[usize]) -> Result<()> {
        let expected = [self.channels, self.model_size, self.model_size];
        ensure!(
            found == expected,
            "prepared as {found:?}, but the model takes {expected:?} (channels, height, width); does preprocessor_config.json \
             belong to this model?"
        );
        Ok(())
    }
}

impl Source for Input {
    fn samples(&self) -> usize {
        match &self.kind {
            Kind::Files(files) => files.len(),
            Kind::Set(set) => set.len(),
        }
    }

    fn batch(&self, rows: Range<usize>, device: &Device) -> Result<Batch> {
        let prepare = |height, width| for_size(&self.preprocess, self.model_size, (height, width));
        match &self.kind {
            Kind::Files(files) => {
                let images = files[rows].iter().map(|path| {
                    let image = read_image(path)?;
                    let pixels = prepared(&image, &self.preprocess, self.model_size, device);
                    let pixels = pixels.with_context(|| path.display().to_string())?;
                    self.check(pixels.dims()).with_context(|| path.display().to_string())?;
                    Ok(pixels)
                });
                Ok(Tensor::stack(&images.collect::<Result<Vec<_>>>()?, 0)?.into())
            }
            Kind::Set(set) => {
                let indices: Vec<usize> = rows.collect();
                let prepare = prepare(set.shape().height, set.shape().width);
                let pixels = prepare.apply_set(set, &indices, device)?;
                self.check(&pixels.dims()[1..])?;
                Ok(pixels.into())
            }
        }
    }

    fn name(&self, sample: usize) -> String {
        match &self.kind {
            Kind::Files(files) => files[sample].display().to_string(),
            Kind::Set(_) => format!("sample {sample}"),
        }
    }

    fn labels(&self) -> Option<&[u32]> {
        match &self.kind {
            Kind::Files(_) => None,
            Kind::Set(set) => Some(set.labels()),
        }
    }

    fn classes(&self) -> &[String] {
        match &self.kind {
            Kind::Files(_) => &[],
            Kind::Set(set) => set.classes(),
        }
    }

    fn settings(&self) -> Value {
        json!(self.preprocess)
    }

    fn files(&self) -> Option<Vec<String>> {
        let Kind::Files(files) = &self.kind else { return None };
        Some(files.iter().map(|path| path.file_name().unwrap_or_default().to_string_lossy().into()).collect())
    }
}

/// The test part of a folder of MNIST's or CIFAR-10's files; without a folder, the embedded digits' part that the quickstart holds out.
///
/// # Errors
///
/// When it is none of these; the message names it.
pub fn test_set(input: Option<&Path>) -> Result<ImageSet> {
    match kind(input)? {
        Kind::Set(set) => Ok(set),
        Kind::Files(files) => {
            let folder = input.map(|path| path.display().to_string()).unwrap_or_default();
            bail!(
                "{folder}: {} image files without labels; expected CIFAR-10's or MNIST's files",
                files.len()
            )
        }
    }
}

/// How an image of this height and width is prepared for a model of square images: one that has their size already is neither resampled nor
/// cropped.
fn for_size(preprocess: &Preprocess, model_size: usize, from: (usize, usize)) -> Preprocess {
    let fits = from == (model_size, model_size);
    let preprocess = preprocess.clone();
    if fits { Preprocess { do_resize: false, do_center_crop: false, ..preprocess } } else { preprocess }
}

/// An image as a model of square images takes it, `(channels, height, width)`; see [`Input`].
///
/// # Errors
///
/// As [`Preprocess::apply`].
pub fn prepared(
    image: &RgbImage,
    preprocess: &Preprocess,
    model_size: usize,
    device: &Device,
) -> Result<Tensor> {
    let from = (image.height() as usize, image.width() as usize);
    Ok(for_size(preprocess, model_size, from).apply(image, device)?)
}

fn kind(input: Option<&Path>) -> Result<Kind> {
    // The part that the examples' models have not seen.
    let Some(input) = input else { return Ok(Kind::Set(digits()?.split(0.2, 0)?.1)) };
    ensure!(input.is_dir(), "{}: expected a folder", input.display());
    let attempts = [
        image_files(input).map(Kind::Files),
        cifar10::load(input, Split::Test).map(Kind::Set),
        idx::load(input, Split::Test).map(Kind::Set),
    ];
    for attempt in attempts {
        match attempt {
            Err(Error::NotFound { .. }) => {}
            found => return Ok(found?),
        }
    }
    bail!("{}: expected PNG or JPEG files, or the files of MNIST or of CIFAR-10", input.display())
}
