//! Images in Hugging Face's parquet layout: columns `img` or `image` `{bytes, path}` and `label`.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    path::{Path, PathBuf},
};

use parquet::{
    file::reader::{FileReader, SerializedFileReader},
    record::{Field, Row},
};

use crate::{
    ImageSet, Result, Shape, Split,
    error::{format, io},
    images::decode,
};

/// Files `train-*.parquet` of a folder, or `test-*.parquet`, or without any of these `validation-*.parquet`; in the order of
/// their names.
///
/// Warns of those that the names count but the folder lacks.
pub(crate) fn shards(folder: &Path, split: Split) -> Result<Vec<PathBuf>> {
    if !folder.is_dir() {
        return Ok(Vec::new());
    }
    let prefixes: &[&str] = match split {
        Split::Train => &["train-"],
        Split::Test => &["test-", "validation-"],
    };
    let mut names = BTreeSet::new();
    for entry in fs::read_dir(folder).map_err(io(folder))? {
        names.insert(entry.map_err(io(folder))?.file_name().to_string_lossy().into_owned());
    }
    names.retain(|name| name.ends_with(".parquet"));
    let starting = |prefix: &&str| -> Vec<&str> {
        names.iter().map(String::as_str).filter(|name| name.starts_with(prefix)).collect()
    };
    let found = prefixes.iter().map(starting).find(|found| !found.is_empty()).unwrap_or_default();
    let missing = missing(&found);
    if !missing.is_empty() {
        tracing::warn!(folder = %folder.display(), ?missing, "shards are missing: this is a part of the data set");
    }
    Ok(found.into_iter().map(|name| folder.join(name)).collect())
}

/// What `found` lacks by its own count: `train-00000-of-00002.parquet` is one of two.
fn missing(found: &[&str]) -> BTreeSet<String> {
    let (mut present, mut series) = (BTreeSet::new(), BTreeSet::new());
    for name in found {
        // After the number there may be a checksum.
        let Some((shard, rest)) = name.split_once("-of-") else { continue };
        let (Some((split, _)), Some(count)) = (shard.rsplit_once('-'), rest.get(..5)) else { continue };
        present.insert(format!("{shard}-of-{count}"));
        series.insert((split, count));
    }
    let numbers = |count: &str| 0..count.parse::<usize>().unwrap_or(0);
    let all = series.iter().flat_map(|(split, count)| {
        numbers(count).map(move |number| format!("{split}-{number:05}-of-{count}"))
    });
    all.filter(|shard| !present.contains(shard)).collect()
}

/// Decodes every row of `shards`; all images must have `shape`.
pub(crate) fn load(shards: &[PathBuf], shape: Shape, classes: Vec<String>) -> Result<ImageSet> {
    let (mut pixels, mut labels) = (Vec::new(), Vec::new());
    for path in shards {
        let broken = |e: parquet::errors::ParquetError| format(path, e.to_string());
        let reader = SerializedFileReader::new(File::open(path).map_err(io(path))?).map_err(broken)?;
        for (i, row) in reader.get_row_iter(None).map_err(broken)?.enumerate() {
            let row = row.map_err(broken)?;
            let (Some(bytes), Some(label)) = (image_bytes(&row), label(&row)) else {
                let what = format!("row {i}: expected columns `img` or `image` {{bytes, path}} and `label`");
                return Err(format(path, what));
            };
            let Some(label) = u32::try_from(label).ok().filter(|&label| (label as usize) < classes.len())
            else {
                let what = format!("row {i}: label {label}, expected 0 to {}", classes.len() - 1);
                return Err(format(path, what));
            };
            let image = decode(bytes).map_err(|e| format(path, format!("row {i}: {e}")))?;
            if (image.width(), image.height()) != (shape.width as u32, shape.height as u32) {
                let (w, h) = (image.width(), image.height());
                let what = format!("row {i}: {w}x{h} pixels, expected {}x{}", shape.width, shape.height);
                return Err(format(path, what));
            }
            for c in 0..3 {
                pixels.extend(image.pixels().map(|pixel| pixel.0[c]));
            }
            labels.push(label);
        }
    }
    if let (true, Some(path)) = (labels.is_empty(), shards.first()) {
        return Err(format(path, "no rows, expected images"));
    }
    ImageSet::new(pixels, labels, shape, 255, classes)
}

fn image_bytes(row: &Row) -> Option<&[u8]> {
    let column = |row: &'_ Row, names: &[&str]| {
        row.get_column_iter().position(|(name, _)| names.contains(&name.as_str()))
    };
    let Field::Group(image) = field(row, column(row, &["img", "image"])?)? else { return None };
    match field(image, column(image, &["bytes"])?)? {
        Field::Bytes(bytes) => Some(bytes.data()),
        _ => None,
    }
}

fn label(row: &Row) -> Option<i64> {
    let (_, field) = row.get_column_iter().find(|(name, _)| *name == "label")?;
    match field {
        Field::Long(label) => Some(*label),
        Field::Int(label) => Some(i64::from(*label)),
        _ => None,
    }
}

fn field(row: &Row, at: usize) -> Option<&Field> {
    row.get_column_iter().nth(at).map(|(_, field)| field)
}
