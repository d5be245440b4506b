//! What a model takes, of what a client sends.

use std::{io::Cursor, path::Path};

use anyhow::{Context, Result, ensure};
use candle_core::{DType, Device, Tensor};
use image::{ImageReader, Limits, RgbImage};
use layerwise::{
    data::{Encoder, Padded, Preprocess, Text},
    models::Batch,
};
use layerwise_example_common::{
    checkpoint::{Checkpoint, preprocess_of},
    encoded::encoder_of,
    input::prepared,
};

/// Largest edge of an image, and most memory while it is decoded, bytes.
const MAX_EDGE: u32 = 4096;
const MAX_DECODED: u64 = 96 << 20;
/// Texts are filled up to multiples of so many tokens, so that those of about one length go on together.
const STEP: usize = 16;

/// Bodies in, samples out.
pub(crate) enum Prepare {
    /// PNG and JPEG files.
    Images(Images),
    /// UTF-8, a tab between the texts of a pair.
    Texts(Box<Encoder>),
}

/// One sample.
pub(crate) struct Prepared {
    pub(crate) batch: Batch,
    /// Whether some of a text was left out, as the model takes no more.
    pub(crate) truncated: bool,
}

/// For a model of so many channels and square images of this edge.
pub(crate) struct Images {
    preprocess: Preprocess,
    channels: usize,
    size: usize,
}

impl Prepare {
    /// As the model's folder says.
    ///
    /// # Errors
    ///
    /// When what that makes of a sample is not what the model takes.
    pub(crate) fn of(folder: &Path, model: &Checkpoint, device: &Device) -> Result<Self> {
        match model {
            Checkpoint::Vit(vit) => {
                let config = vit.config();
                let (preprocess, channels) = (preprocess_of(folder, config)?, config.num_channels);
                let images = Images { preprocess, channels, size: config.image_size };
                // Now, and not at the first request.
                images
                    .sample(&RgbImage::new(97, 89), device)
                    .with_context(|| folder.display().to_string())?;
                Ok(Self::Images(images))
            }
            Checkpoint::Bert(bert) => Ok(Self::Texts(Box::new(encoder_of(folder, bert.config())?))),
        }
    }

    /// The sample of a body; what is wrong with it is the client's fault.
    pub(crate) fn sample(&self, body: &[u8], device: &Device) -> Result<Prepared> {
        match self {
            Self::Images(images) => {
                let sample = decoded(body).and_then(|image| images.sample(&image, device));
                let batch = sample.context("expected a PNG or JPEG image in the body")?;
                Ok(Prepared { batch, truncated: false })
            }
            Self::Texts(encoder) => {
                let text = std::str::from_utf8(body).context("expected a text in UTF-8 in the body")?;
                ensure!(!text.trim().is_empty(), "expected a text in the body, which is empty");
                text_sample(encoder, &Text::of_line(text), 0, device)
            }
        }
    }

    /// A sample of each shape that there may be, the first of a usual one.
    pub(crate) fn shapes(&self, device: &Device) -> Result<Vec<Batch>> {
        match self {
            Self::Images(images) => {
                let edge = images.size as u32;
                Ok(vec![images.sample(&RgbImage::new(edge, edge), device)?])
            }
            Self::Texts(encoder) => {
                let most = encoder.max_tokens();
                let mut widths: Vec<usize> = (STEP..most).step_by(STEP).chain([most]).collect();
                let usual = widths.len().min(4) - 1;
                widths.swap(0, usual);
                widths
                    .into_iter()
                    .map(|width| Ok(text_sample(encoder, &"a".into(), width, device)?.batch))
                    .collect()
            }
        }
    }
}

impl Images {
    /// As data sets are prepared: an image that has the model's size already is not resampled.
    fn sample(&self, image: &RgbImage, device: &Device) -> Result<Batch> {
        let pixels = prepared(image, &self.preprocess, self.size, device)?.unsqueeze(0)?;
        let expected = [self.channels, self.size, self.size];
        ensure!(
            pixels.dims()[1..] == expected,
            "preprocessor_config.json makes {:?} of an image, the model takes {expected:?}",
            &pixels.dims()[1..]
        );
        Ok(pixels.into())
    }
}

fn decoded(body: &[u8]) -> Result<RgbImage> {
    let mut reader = ImageReader::new(Cursor::new(body)).with_guessed_format()?;
    let mut limits = Limits::default();
    limits.max_image_width = Some(MAX_EDGE);
    limits.max_image_height = Some(MAX_EDGE);
    limits.max_alloc = Some(MAX_DECODED);
    reader.limits(limits);
    Ok(reader.decode()?.into_rgb8())
}

/// Of at least so many tokens, and always with a mask: texts go on together where they have one shape.
fn text_sample(encoder: &Encoder, text: &Text, tokens: usize, device: &Device) -> Result<Prepared> {
    let encoded = encoder.encode(std::slice::from_ref(text))?.remove(0);
    let tokens = encoded.ids.len().max(tokens).next_multiple_of(STEP).min(encoder.max_tokens());
    let Padded { ids, mask, types } = encoder.pad_to(&[&encoded], tokens, device)?;
    let mask = match mask {
        Some(mask) => mask,
        None => Tensor::ones(ids.shape(), DType::U8, device)?,
    };
    let batch = Batch { inputs: ids, mask: Some(mask), token_types: Some(types) };
    Ok(Prepared { batch, truncated: encoded.truncated })
}
