//! What clients send: a data set's images as PNG files.

use std::{io::Cursor, path::Path};

use anyhow::{Context, Result};
use image::{ImageFormat, Rgb, RgbImage};
use layerwise::data::ImageSet;
use layerwise_example_common::input::test_set;

/// An image in a file's bytes, and its class.
pub(crate) struct Request {
    pub(crate) png: Vec<u8>,
    pub(crate) label: usize,
}

/// The first `most` images of the data set's test part, or of the embedded digits.
pub(crate) fn requests(data: Option<&Path>, most: usize) -> Result<Vec<Request>> {
    let set = test_set(data)?.take(most)?;
    (0..set.len()).map(|i| Ok(Request { png: png(&set, i)?, label: set.labels()[i] as usize })).collect()
}

fn png(set: &ImageSet, index: usize) -> Result<Vec<u8>> {
    let (shape, pixels) = (set.shape(), set.image(index).context("an image of the set")?);
    let image = RgbImage::from_fn(shape.width as u32, shape.height as u32, |x, y| {
        let at = y as usize * shape.width + x as usize;
        let plane = |channel: usize| channel.min(shape.channels - 1) * shape.height * shape.width;
        let level = |x: u8| (f64::from(x) * 255. / f64::from(set.max())).round() as u8;
        Rgb([0, 1, 2].map(|channel| level(pixels[plane(channel) + at])))
    });
    let mut bytes = Cursor::new(Vec::new());
    image.write_to(&mut bytes, ImageFormat::Png)?;
    Ok(bytes.into_inner())
}
