//! The idx files of MNIST and of the sets in its format: Fashion-MNIST, Kuzushiji-MNIST, EMNIST.

use std::path::Path;

use crate::{
    ImageSet, Result, Shape, Split,
    error::format,
    files::{find, open, read},
};

/// Bytes of a file's values; larger files are no MNIST.
const LIMIT: usize = 1 << 30;

/// MNIST or anything in its format from `folder`: `train-images-idx3-ubyte` and so on, plain or `.gz`, with `-` or `.`
/// before `idx`.
///
/// The classes are the numbers from 0 to the largest label, and at least ten: a set of letters has more. So the two splits
/// agree on them only if each has a sample of the last one.
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
    let ([n, height, width], pixels) = parse::<3>(&images_path)?;
    let ([count], labels) = parse::<1>(&labels_path)?;
    if count != n {
        return Err(format(&labels_path, format!("{count} labels, expected {n}, one an image")));
    }
    let labels: Vec<u32> = labels.into_iter().map(u32::from).collect();
    let classes = labels.iter().max().map_or(0, |last| last + 1).max(10);
    let shape = Shape { channels: 1, height, width };
    ImageSet::new(pixels, labels, shape, 255, (0..classes).map(|class| class.to_string()).collect())
}

/// Sizes and bytes of an idx file of `RANK` dimensions of unsigned bytes.
///
/// Reads no more than its header announces and one byte, however much a compressed file holds.
fn parse<const RANK: usize>(path: &Path) -> Result<([usize; RANK], Vec<u8>)> {
    let mut reader = open(path)?;
    let header = read(&mut reader, 4 * (1 + RANK), path)?;
    let (words, _) = header.as_chunks::<4>();
    let magic = [0, 0, 8, RANK as u8];
    if words.first().is_some_and(|word| *word != magic) {
        return Err(format(path, format!("starts with {:?}, expected {magic:?}", words[0])));
    }
    if words.len() < 1 + RANK {
        return Err(format(path, format!("{} bytes, expected a header of {}", header.len(), 4 * (1 + RANK))));
    }
    let mut dims = [0; RANK];
    for (dim, word) in dims.iter_mut().zip(&words[1..]) {
        *dim = u32::from_be_bytes(*word) as usize;
    }
    let size = dims.iter().try_fold(1usize, |size, dim| size.checked_mul(*dim));
    let Some(size) = size.filter(|size| (1..=LIMIT).contains(size)) else {
        return Err(format(path, format!("holds {dims:?} bytes, expected 1 to {LIMIT}")));
    };
    let body = read(&mut reader, size + 1, path)?;
    if body.len() != size {
        let found = if body.len() > size { "more".to_owned() } else { body.len().to_string() };
        return Err(format(path, format!("{found} bytes after the header, expected {dims:?} = {size}")));
    }
    Ok((dims, body))
}
