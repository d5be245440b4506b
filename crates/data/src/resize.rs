use std::fmt::Display;

use fast_image_resize::{self as fir, FilterType, ResizeAlg, ResizeOptions, Resizer};
use image::{Rgb, RgbImage, imageops};

use crate::{Error, Result};

/// Pixels of a side; more is no model's input.
const LARGEST: usize = 1 << 14;

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
    sized("image", dims(image))?;
    sized("size", (height, width))?;
    // Pillow's order. It decides what is cut off where a filter overshoots: bytes lie between the two passes.
    let wide = pass(image, (image.height(), width as u32), algorithm)?;
    pass(&wide, (height as u32, width as u32), algorithm)
}

fn pass(image: &RgbImage, (height, width): (u32, u32), algorithm: ResizeAlg) -> Result<RgbImage> {
    let failed = |e: &dyn Display| Error::Setting {
        field: "resize",
        value: e.to_string(),
        expected: "an image that can be resampled".into(),
    };
    let (from, pixel) = ((image.width(), image.height()), fir::PixelType::U8x3);
    let source = fir::images::ImageRef::new(from.0, from.1, image.as_raw(), pixel).map_err(|e| failed(&e))?;
    let mut target = fir::images::Image::new(width, height, pixel);
    let options = ResizeOptions::new().resize_alg(algorithm);
    Resizer::new().resize(&source, &mut target, &options).map_err(|e| failed(&e))?;
    RgbImage::from_raw(width, height, target.into_vec()).ok_or_else(|| failed(&"wrong number of bytes"))
}

/// The centre of an image; black where it is smaller than the cut.
pub(crate) fn center_crop(image: &RgbImage, (height, width): (usize, usize)) -> RgbImage {
    let mut out = RgbImage::new(width as u32, height as u32);
    let top = (i64::from(image.height()) - height as i64).div_euclid(2);
    let left = (i64::from(image.width()) - width as i64).div_euclid(2);
    imageops::replace(&mut out, image, -left, -top);
    out
}

/// Luma (ITU-R 601) in all three channels, rounded as Pillow does it; a grey image stays as it is.
pub(crate) fn grey(image: &RgbImage) -> RgbImage {
    let mut image = image.clone();
    for pixel in image.pixels_mut() {
        let [r, g, b] = pixel.0.map(u32::from);
        *pixel = Rgb([((19595 * r + 38470 * g + 7471 * b + 0x8000) >> 16) as u8; 3]);
    }
    image
}

/// `(height, width)`.
pub(crate) fn dims(image: &RgbImage) -> (usize, usize) {
    (image.height() as usize, image.width() as usize)
}

pub(crate) fn sized(field: &'static str, (height, width): (usize, usize)) -> Result<(usize, usize)> {
    if (1..=LARGEST).contains(&height) && (1..=LARGEST).contains(&width) {
        return Ok((height, width));
    }
    let expected = format!("1x1 to {LARGEST}x{LARGEST}");
    Err(Error::Setting { field, value: format!("{height}x{width}"), expected })
}
