//! Hugging Face's `preprocessor_config.json`.

use std::{borrow::Cow, fs, path::Path};

use candle_core::{Device, Tensor};
use image::{Rgb, RgbImage};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{
    Error, ImageSet, Normalise, Result, Shape,
    error::{format, io},
    resize::{center_crop, dims, grey, resize, sized},
    whole_file::write_whole,
};

const FILE: &str = "preprocessor_config.json";

/// How an image becomes a model's input, as Hugging Face image processors do it.
///
/// The number of values in `image_mean`, 1 or 3, is the model's number of channels.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
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
    /// Size of the cut; never a shortest edge.
    #[serde(skip_serializing_if = "Option::is_none")]
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(
    untagged,
    deny_unknown_fields,
    expecting = "expected a number, {height, width} or {shortest_edge} alone"
)]
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
            Self::ShortestEdge { shortest_edge: s } if height <= width => {
                (s, s.saturating_mul(width) / height)
            }
            Self::ShortestEdge { shortest_edge: s } => (s.saturating_mul(height) / width, s),
        }
    }
}

impl Preprocess {
    /// Reads `preprocessor_config.json` of a model's folder; `None` when the folder has none.
    ///
    /// What is absent or null has its default value; keys that are no field here are ignored.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`] without folder, [`Error::Format`] when the file is not what it should be.
    pub fn load(folder: &Path) -> Result<Option<Self>> {
        if !folder.is_dir() {
            return Err(Error::NotFound { folder: folder.to_owned(), expected: "a folder".into() });
        }
        let path = folder.join(FILE);
        if !path.exists() {
            return Ok(None);
        }
        let text = fs::read_to_string(&path).map_err(io(&path))?;
        let document: Map<String, Value> =
            serde_json::from_str(&text).map_err(|e| format(&path, e.to_string()))?;
        let document = without_nulls(document);
        let parse = |document| serde_json::from_value::<Self>(Value::Object(document));
        // One by one first, so that the error names the field.
        for (key, value) in &document {
            let alone = Map::from_iter([(key.clone(), value.clone())]);
            parse(alone).map_err(|e| format(&path, format!("{key}: {e}")))?;
        }
        let config = parse(document).map_err(|e| format(&path, e.to_string()))?;
        config.check().map_err(|e| format(&path, e.to_string()))?;
        Ok(Some(config))
    }

    /// Writes `preprocessor_config.json` for the Hugging Face processor that does what these settings say:
    /// `BitImageProcessor` for a shortest edge, else `DeiTImageProcessor` where the centre is cut out, else
    /// `ViTImageProcessor`.
    ///
    /// # Errors
    ///
    /// [`Error::Setting`] for settings that no image could be prepared with, [`Error::Io`].
    pub fn save(&self, folder: &Path) -> Result<()> {
        #[derive(Serialize)]
        struct Document<'a> {
            image_processor_type: &'static str,
            do_convert_rgb: bool,
            #[serde(flatten)]
            settings: &'a Preprocess,
        }
        let do_convert_rgb = self.check()? == 3;
        let path = folder.join(FILE);
        let image_processor_type = match self.size {
            Size::ShortestEdge { .. } => "BitImageProcessor",
            _ if self.do_center_crop => "DeiTImageProcessor",
            _ => "ViTImageProcessor",
        };
        let document = Document { image_processor_type, do_convert_rgb, settings: self };
        let mut text = serde_json::to_string_pretty(&document).map_err(|e| format(&path, e.to_string()))?;
        text.push('\n');
        fs::create_dir_all(folder).map_err(io(folder))?;
        write_whole(&path, text.as_bytes()).map_err(io(&path))
    }

    /// The same for square images of `side` pixels: what is resampled is resampled to that, and nothing is cut off.
    #[must_use]
    pub fn resized(self, side: usize) -> Self {
        Self { do_resize: true, size: Size::Square(side), do_center_crop: false, crop_size: None, ..self }
    }

    /// `(channels, height, width)`, f32.
    ///
    /// An image that has its target size already is not resampled. For a model of one channel an image becomes grey before
    /// anything else, as by Pillow's `convert("L")`.
    ///
    /// # Errors
    ///
    /// [`Error::Setting`] for settings that do not do, or an image without pixels.
    pub fn apply(&self, image: &RgbImage, device: &Device) -> Result<Tensor> {
        let channels = self.check()?;
        let (height, width) = self.target(dims(image))?;
        Ok(Tensor::from_vec(self.values(image, 255)?, (channels, height, width), device)?)
    }

    /// The images `indices` of a data set as `(n, channels, height, width)`, f32.
    ///
    /// White is 255 to these settings whatever it is to the set: a value `v` counts as `v * 255 / max`, which is rounded only
    /// where an image is resampled or made grey. So the digits come out as exactly `v / 16`, then normalised. Grey images are
    /// repeated for a model of three channels.
    ///
    /// # Errors
    ///
    /// [`Error::Index`] for an image that is not there, [`Error::Setting`] for settings that do not do.
    ///
    /// # Example
    ///
    /// ```
    /// use candle_core::Device::Cpu;
    /// use layerwise_data::{Preprocess, digits};
    ///
    /// let images = Preprocess::default().apply_set(&digits()?, &[0, 1], &Cpu)?; // a ViT's: 224 x 224, in colour
    /// assert_eq!(images.dims(), [2, 3, 224, 224]);
    /// # Ok::<(), layerwise_data::Error>(())
    /// ```
    pub fn apply_set(&self, set: &ImageSet, indices: &[usize], device: &Device) -> Result<Tensor> {
        let channels = self.check()?;
        let from = set.shape();
        let size = (from.height, from.width);
        let (height, width) = self.target(size)?;
        let as_bytes = self.resampled(size).is_some() || (channels == 1 && from.channels == 3);
        let white = if as_bytes { 255 } else { set.max() };
        let level = |x: u8| (f64::from(x) * f64::from(white) / f64::from(set.max())).round() as u8;

        let mut values = Vec::with_capacity(indices.len() * channels * height * width);
        for &index in indices {
            let image = set.image(index).ok_or(Error::Index { index, len: set.len() })?;
            let image = RgbImage::from_fn(from.width as u32, from.height as u32, |x, y| {
                let pixel = y as usize * from.width + x as usize;
                let plane = |c: usize| c.min(from.channels - 1) * from.height * from.width;
                Rgb([0, 1, 2].map(|c| level(image[plane(c) + pixel])))
            });
            values.append(&mut self.values(&image, white)?);
        }
        Ok(Tensor::from_vec(values, (indices.len(), channels, height, width), device)?)
    }

    /// `(channels, height, width)` of an image in which white is `white`.
    fn values(&self, image: &RgbImage, white: u8) -> Result<Vec<f32>> {
        let channels = self.image_mean.len();
        let mut image = Cow::Borrowed(image);
        if channels == 1 {
            image = Cow::Owned(grey(&image));
        }
        if let Some(size) = self.resampled(dims(&image)) {
            image = Cow::Owned(resize(&image, size, self.resample)?);
        }
        if let Some(size) = self.cropped(dims(&image)) {
            image = Cow::Owned(center_crop(&image, size));
        }
        // In f64 as Hugging Face does it; 255 / 16 is exact there.
        let rescale = if self.do_rescale { self.rescale_factor } else { 1. };
        let value = |x: u8| (f64::from(x) * (255. / f64::from(white)) * rescale) as f32;
        let mut values: Vec<f32> =
            (0..channels).flat_map(|c| image.pixels().map(move |pixel| value(pixel.0[c]))).collect();
        if self.do_normalize {
            let (height, width) = dims(&image);
            self.normalise().apply(&mut values, Shape { channels, height, width });
        }
        Ok(values)
    }

    /// Where an image of this height and width is resampled to, if it is.
    fn resampled(&self, from: (usize, usize)) -> Option<(usize, usize)> {
        let to = self.size.of(from);
        (self.do_resize && to != from).then_some(to)
    }

    /// What is cut out of an image of this height and width, if anything is.
    fn cropped(&self, from: (usize, usize)) -> Option<(usize, usize)> {
        self.crop_size.filter(|_| self.do_center_crop).map(|size| size.of(from))
    }

    /// Height and width of what an image of this height and width becomes.
    fn target(&self, from: (usize, usize)) -> Result<(usize, usize)> {
        let mut size = sized("image", from)?;
        if let Some(resampled) = self.resampled(size) {
            size = sized("size", resampled)?;
        }
        match self.cropped(size) {
            Some(cropped) => sized("crop_size", cropped),
            None => Ok(size),
        }
    }

    /// The number of channels, when the settings belong together.
    fn check(&self) -> Result<usize> {
        let bad = |field, value: String, expected: &str| {
            Err(Error::Setting { field, value, expected: expected.into() })
        };
        let channels = self.image_mean.len();
        if !matches!(channels, 1 | 3) {
            return bad("image_mean", format!("{:?}", self.image_mean), "1 or 3 values, one a channel");
        }
        if let Err(Error::Setting { field, value, expected }) = self.normalise().check(channels) {
            return bad(if field == "std" { "image_std" } else { "image_mean" }, value, &expected);
        }
        if self.resample > 3 {
            return bad("resample", self.resample.to_string(), "0 to 3");
        }
        let unusable = match self.crop_size {
            None => Some("missing"),
            Some(Size::ShortestEdge { .. }) => Some("a shortest edge"),
            Some(_) => None,
        };
        if let (true, Some(value)) = (self.do_center_crop, unusable) {
            let expected = "a number or {height, width}, as do_center_crop is set";
            return bad("crop_size", value.into(), expected);
        }
        Ok(channels)
    }

    fn normalise(&self) -> Normalise {
        Normalise { mean: self.image_mean.clone(), std: self.image_std.clone() }
    }
}

/// `document` without the keys that hold a null, also those of a size.
fn without_nulls(document: Map<String, Value>) -> Map<String, Value> {
    let entries = document.into_iter().filter(|(_, value)| !value.is_null());
    let inside = |value| match value {
        Value::Object(object) => Value::Object(without_nulls(object)),
        other => other,
    };
    entries.map(|(key, value)| (key, inside(value))).collect()
}
