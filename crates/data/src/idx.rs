//! The idx files of MNIST and Fashion-MNIST.

use std::path::Path;

use crate::{
    ImageSet, Result, Shape, Split,
    error::format,
    files::{find, read},
};

/// Larger files are no MNIST.
const LIMIT: usize = 1 << 30;

/// MNIST or anything in its format from `folder`: `train-images-idx3-ubyte` and so on, plain or `.gz`, with `-` or `.`
/// before `idx`.
///
/// # Errors
///
/// [`Error::NotFound`](crate::Error::NotFound) naming the files looked for; [`Error::Format`](crate::Error::Format) for a
/// wrong magic number, a truncated file, or numbers of images and labels that differ.
pub fn load(folder: &Path, split: Split) -> Result<ImageSet> {
    let prefix = match split {
        Split::Train => "train",
        Split::Test => "t10k",
    };
    let names = |what: &str, rank: u8| -> Vec<String> {
        let stem = |dot: &str| format!("{prefix}-{what}{dot}idx{rank}-ubyte");
        [stem("-"), stem(".")].iter().flat_map(|stem| [stem.clone(), format!("{stem}.gz")]).collect()
    };
    let images_path = find(folder, &names("images", 3))?;
    let labels_path = find(folder, &names("labels", 1))?;
    let (dims, pixels) = parse::<3>(&images_path, &read(&images_path, LIMIT)?)?;
    let (count, labels) = parse::<1>(&labels_path, &read(&labels_path, LIMIT)?)?;
    let [n, height, width] = dims;
    if count != [n] {
        return Err(format(&labels_path, format!("{} labels, expected {n}, one an image", count[0])));
    }
    let labels: Vec<u32> = labels.iter().map(|&label| u32::from(label)).collect();
    if let Some(at) = labels.iter().position(|&label| label > 9) {
        return Err(format(&labels_path, format!("label {} of image {at}, expected 0 to 9", labels[at])));
    }
    let shape = Shape { channels: 1, height, width };
    ImageSet::new(pixels, labels, shape, 255, (0..10).map(|class| class.to_string()).collect())
}

/// Sizes and bytes of an idx file of `RANK` dimensions of unsigned bytes.
fn parse<const RANK: usize>(path: &Path, bytes: &[u8]) -> Result<([usize; RANK], Vec<u8>)> {
    let header = 4 * (1 + RANK);
    if bytes.len() < header {
        return Err(format(path, format!("{} bytes, expected a header of {header}", bytes.len())));
    }
    let magic = [0, 0, 8, RANK as u8];
    if bytes[..4] != magic {
        return Err(format(path, format!("starts with {:?}, expected {magic:?}", &bytes[..4])));
    }
    let mut dims = [0; RANK];
    for (dim, word) in dims.iter_mut().zip(bytes[4..].chunks_exact(4)) {
        *dim = u32::from_be_bytes([word[0], word[1], word[2], word[3]]) as usize;
    }
    let body = &bytes[header..];
    let expected = dims.iter().try_fold(1usize, |size, dim| size.checked_mul(*dim));
    if expected != Some(body.len()) {
        return Err(format(path, format!("{} bytes after the header, expected {dims:?}", body.len())));
    }
    Ok((dims, body.to_vec()))
}
