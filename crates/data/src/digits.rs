use std::io::Read;

use crate::{Error, ImageSet, Result, Shape};

const COUNT: usize = 1797;
const PACKED: &[u8] = include_bytes!("../assets/digits.bin.gz");

/// The UCI optical digits: 1,797 real images of 8x8 pixels in `0..=16`, ten classes; embedded, needs no file.
///
/// E. Alpaydin and C. Kaynak, *Optical Recognition of Handwritten Digits*, UCI Machine Learning Repository, CC BY 4.0.
///
/// # Errors
///
/// None in a build whose asset is whole.
pub fn digits() -> Result<ImageSet> {
    let mut bytes = Vec::new();
    flate2::read::GzDecoder::new(PACKED)
        .read_to_end(&mut bytes)
        .map_err(|source| Error::Io { path: "embedded digits".into(), source })?;
    let pixels = bytes.split_off(COUNT.min(bytes.len()));
    let labels = bytes.into_iter().map(u32::from).collect();
    let shape = Shape { channels: 1, height: 8, width: 8 };
    ImageSet::new(pixels, labels, shape, 16, (0..10).map(|digit| digit.to_string()).collect())
}
