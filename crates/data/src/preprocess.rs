//! Hugging Face's `preprocessor_config.json`.

use std::{fs, path::Path};

use candle_core::{Device, Tensor};
use fast_image_resize::{self as fir, FilterType, ResizeAlg, ResizeOptions, Resizer};
use image::{RgbImage, imageops};
use serde::Deserialize;

use crate::{
    Error, Normalise, Result, Shape,
    error::{format, io},
};

/// How an image becomes a model's input, as Hugging Face image processors do it.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default)]
pub struct Preprocess {
    /// Whether images are resampled to `size`.
    pub do_resize: bool,
    /// Where to.
    pub size: Size,
    /// Pillow's filter: 0 nearest, 1 Lanczos, 2 bilinear, 3 bicubic.
    pub resample: u8,
    /// Whether the centre is cut out after resampling.
    pub do_center_crop: bool,
    /// Size of the cut.
    pub crop_size: Option<Size>,
    /// Whether pixels are multiplied by `rescale_factor`.
    pub do_rescale: bool,
    /// 1/255.
    pub rescale_factor: f64,
    /// Whether `image_mean` and `image_std` apply.
    pub do_normalize: bool,
    /// One value a channel, of rescaled pixels.
    pub image_mean: Vec<f32>,
    /// One value a channel, of rescaled pixels.
    pub image_std: Vec<f32>,
}

impl Default for Preprocess {
    /// Those of `ViTImageProcessor`.
    fn default() -> Self {
        Self {
            do_resize: true,
            size: Size::Exact { height: 224, width: 224 },
            resample: 2,
            do_center_crop: false,
            crop_size: None,
            do_rescale: true,
            rescale_factor: 1. / 255.,
            do_normalize: true,
            image_mean: vec![0.5; 3],
            image_std: vec![0.5; 3],
        }
    }
}

/// A target size, in the ways Hugging Face writes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum Size {
    /// `{"height": h, "width": w}`.
    Exact {
        /// Pixels.
        height: usize,
        /// Pixels.
        width: usize,
    },
    /// `{"shortest_edge": s}`: the aspect ratio is kept.
    ShortestEdge {
        /// Pixels.
        shortest_edge: usize,
    },
    /// `s`: a square.
    Square(usize),
}

impl Size {
    /// `(height, width)` for an image of this height and width.
    fn of(self, (height, width): (usize, usize)) -> (usize, usize) {
        match self {
            Self::Exact { height, width } => (height, width),
            Self::Square(side) => (side, side),
            Self::ShortestEdge { shortest_edge: s } if height <= width => (s, s * width / height),
            Self::ShortestEdge { shortest_edge: s } => (s * height / width, s),
        }
    }
}

impl Preprocess {
    /// Reads `preprocessor_config.json` of a model's folder; `None` when the folder has none.
    ///
    /// # Errors
    ///
    /// [`Error::Format`] when it is not what it should be.
    pub fn load(folder: &Path) -> Result<Option<Self>> {
        let path = folder.join("preprocessor_config.json");
        if !path.exists() {
            return Ok(None);
        }
        let text = fs::read_to_string(&path).map_err(io(&path))?;
        let config: Self = serde_json::from_str(&text).map_err(|e| format(&path, e.to_string()))?;
        if config.resample > 3 {
            return Err(format(&path, format!("resample is {}, expected 0 to 3", config.resample)));
        }
        config.normalise().check(3).map_err(|e| format(&path, format!("image_{e}")))?;
        Ok(Some(config))
    }

    /// `(3, height, width)`, f32.
    ///
    /// An image that has its target size already is not resampled.
    ///
    /// # Errors
    ///
    /// [`Error::Setting`] when a target size is 0.
    pub fn apply(&self, image: &RgbImage, device: &Device) -> Result<Tensor> {
        let mut image = std::borrow::Cow::Borrowed(image);
        let dims = |image: &RgbImage| (image.height() as usize, image.width() as usize);
        if self.do_resize {
            let target = self.size.of(dims(&image));
            if target != dims(&image) {
                image = std::borrow::Cow::Owned(resize(&image, target, self.resample)?);
            }
        }
        if let Some(size) = self.crop_size.filter(|_| self.do_center_crop) {
            image = std::borrow::Cow::Owned(center_crop(&image, size.of(dims(&image))));
        }
        let (height, width) = dims(&image);
        let scale = if self.do_rescale { self.rescale_factor as f32 } else { 1. };
        let mut values: Vec<f32> =
            (0..3).flat_map(|c| image.pixels().map(move |pixel| f32::from(pixel.0[c]) * scale)).collect();
        if self.do_normalize {
            self.normalise().apply(&mut values, Shape { channels: 3, height, width });
        }
        Ok(Tensor::from_vec(values, (3, height, width), device)?)
    }

    fn normalise(&self) -> Normalise {
        Normalise { mean: self.image_mean.clone(), std: self.image_std.clone() }
    }
}

/// Antialiased resampling to `(height, width)`, as Pillow's `resize` does it.
///
/// # Errors
///
/// [`Error::Setting`] for a size of 0 or an unknown filter.
pub fn resize(image: &RgbImage, (height, width): (usize, usize), resample: u8) -> Result<RgbImage> {
    let bad =
        |field, value: String, expected: &str| Error::Setting { field, value, expected: expected.into() };
    let algorithm = match resample {
        0 => ResizeAlg::Nearest,
        1 => ResizeAlg::Convolution(FilterType::Lanczos3),
        2 => ResizeAlg::Convolution(FilterType::Bilinear),
        3 => ResizeAlg::Convolution(FilterType::CatmullRom),
        other => return Err(bad("resample", other.to_string(), "0 to 3")),
    };
    if height == 0 || width == 0 || image.width() == 0 || image.height() == 0 {
        return Err(bad("size", format!("{height}x{width}"), "at least 1x1"));
    }
    let failed = |e: String| bad("resize", e, "an image that can be resampled");
    let source =
        fir::images::ImageRef::new(image.width(), image.height(), image.as_raw(), fir::PixelType::U8x3)
            .map_err(|e| failed(e.to_string()))?;
    let mut target = fir::images::Image::new(width as u32, height as u32, fir::PixelType::U8x3);
    Resizer::new()
        .resize(&source, &mut target, &ResizeOptions::new().resize_alg(algorithm))
        .map_err(|e| failed(e.to_string()))?;
    RgbImage::from_raw(width as u32, height as u32, target.into_vec())
        .ok_or_else(|| failed("wrong number of bytes".into()))
}

/// The centre of an image; black where it is smaller than the cut.
fn center_crop(image: &RgbImage, (height, width): (usize, usize)) -> RgbImage {
    let mut out = RgbImage::new(width as u32, height as u32);
    let top = (i64::from(image.height()) - height as i64).div_euclid(2);
    let left = (i64::from(image.width()) - width as i64).div_euclid(2);
    imageops::replace(&mut out, image, -left, -top);
    out
}
