//! CIFAR-10, from the official binary files or from Hugging Face's parquet files.

use std::path::Path;

use crate::{
    Error, ImageSet, Result, Shape, Split,
    error::format,
    files::{find, open, read},
};

/// The ten classes, in the order of their labels.
pub const CLASSES: [&str; 10] =
    ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"];

/// Bytes of a binary file, which officially has 30,730,000.
const LIMIT: usize = 1 << 28;

const SHAPE: Shape = Shape { channels: 3, height: 32, width: 32 };

/// CIFAR-10 from `folder`: `data_batch_1.bin` and so on, also in `cifar-10-batches-bin`; or, with the feature `parquet`,
/// `train-00000-of-0000N.parquet` and so on, also in `plain_text`; `validation-` counts as the test set where there is no
/// `test-`.
///
/// A folder need not have all N: a part is loaded as it is, with a warning to `tracing` that names what is missing.
///
/// # Errors
///
/// [`Error::NotFound`] naming what was looked for, [`Error::Format`] for a file that is truncated or holds something else.
pub fn load(folder: &Path, split: Split) -> Result<ImageSet> {
    if !folder.is_dir() {
        return Err(Error::NotFound { folder: folder.to_owned(), expected: "a folder".into() });
    }
    #[cfg(feature = "parquet")]
    for folder in [folder.to_owned(), folder.join("plain_text")] {
        let shards = crate::parquet::shards(&folder, split)?;
        if !shards.is_empty() {
            return crate::parquet::load(&shards, Some(SHAPE), CLASSES.map(String::from).to_vec());
        }
    }
    binary(folder, split)
}

fn binary(folder: &Path, split: Split) -> Result<ImageSet> {
    let names: Vec<String> = match split {
        Split::Train => (1..=5).map(|i| format!("data_batch_{i}.bin")).collect(),
        Split::Test => vec!["test_batch.bin".into()],
    };
    let (mut pixels, mut labels) = (Vec::new(), Vec::new());
    for name in names {
        let path = find(folder, &[name.clone(), format!("cifar-10-batches-bin/{name}")])?;
        let bytes = read(&mut open(&path)?, LIMIT + 1, &path)?;
        let record = 1 + SHAPE.len();
        if bytes.is_empty() || bytes.len() > LIMIT || !bytes.len().is_multiple_of(record) {
            let expected = format!("expected a multiple of {record}, up to {LIMIT}");
            return Err(format(&path, format!("{} bytes, {expected}", bytes.len())));
        }
        for (i, record) in bytes.chunks_exact(record).enumerate() {
            if record[0] > 9 {
                return Err(format(&path, format!("label {} of image {i}, expected 0 to 9", record[0])));
            }
            labels.push(u32::from(record[0]));
            pixels.extend_from_slice(&record[1..]);
        }
    }
    ImageSet::new(pixels, labels, SHAPE, 255, CLASSES.map(String::from).to_vec())
}
