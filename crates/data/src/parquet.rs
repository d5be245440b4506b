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
    Error, ImageSet, Result, Shape, Split,
    error::{format, io},
    images::decode,
    shards::missing_shards,
};

/// Missing files that a warning names at most: a name may count billions.
const MANY: usize = 20;

/// Files `train-*.parquet` of a folder, or `test-*.parquet`, or without any of these `validation-*.parquet` or
/// `valid-*.parquet`; in the order of their names.
///
/// Warns where the names count one that the folder lacks.
pub(crate) fn shards(folder: &Path, split: Split) -> Result<Vec<PathBuf>> {
    if !folder.is_dir() {
        return Ok(Vec::new());
    }
    let prefixes: &[&str] = match split {
        Split::Train => &["train-"],
        Split::Test => &["test-", "validation-", "valid-"],
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
    let missing: Vec<String> = missing_shards(found.iter().copied()).take(MANY).collect();
    if !missing.is_empty() {
        tracing::warn!(folder = %folder.display(), ?missing, "shards are missing: this is a part of the data set");
    }
    Ok(found.into_iter().map(|name| folder.join(name)).collect())
}

/// Decodes every row of `shards`; all images must have one shape, this one if it is known.
pub(crate) fn load(shards: &[PathBuf], shape: Option<Shape>, classes: Vec<String>) -> Result<ImageSet> {
    let (mut pixels, mut labels, mut shape) = (Vec::new(), Vec::new(), shape);
    for path in shards {
        let reader = open(path)?;
        let broken = |e: parquet::errors::ParquetError| format(path, e.to_string());
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
            let (width, height) = (image.width() as usize, image.height() as usize);
            let expected = *shape.get_or_insert(Shape { channels: 3, height, width });
            if (height, width) != (expected.height, expected.width) {
                let what = format!(
                    "row {i}: {width}x{height} pixels, expected {}x{}",
                    expected.width, expected.height
                );
                return Err(format(path, what));
            }
            for c in 0..3 {
                pixels.extend(image.pixels().map(|pixel| pixel.0[c]));
            }
            labels.push(label);
        }
    }
    match (shape, shards.first()) {
        (Some(shape), _) if !labels.is_empty() => ImageSet::new(pixels, labels, shape, 255, classes),
        (_, Some(path)) => Err(format(path, "no rows, expected images")),
        (_, None) => Err(Error::Empty { what: "shards".into() }),
    }
}

/// Names of the classes, as Hugging Face's `datasets` writes them into the schema of a file.
pub(crate) fn classes(path: &Path) -> Result<Vec<String>> {
    let reader = open(path)?;
    let entries = reader.metadata().file_metadata().key_value_metadata().into_iter().flatten();
    let text = entries.filter(|entry| entry.key == "huggingface").find_map(|entry| entry.value.as_deref());
    let document: serde_json::Value = serde_json::from_str(text.unwrap_or("null"))
        .map_err(|e| format(path, format!("huggingface: {e}")))?;
    let names = document["info"]["features"]["label"]["names"].as_array();
    let names: Option<Vec<String>> =
        names.map(|names| names.iter().filter_map(|name| Some(name.as_str()?.to_owned())).collect());
    names.filter(|names| !names.is_empty()).ok_or_else(|| {
        format(
            path,
            "expected the names of the classes in its metadata: `huggingface`, info.features.label.names",
        )
    })
}

fn open(path: &Path) -> Result<SerializedFileReader<File>> {
    let file = File::open(path).map_err(io(path))?;
    SerializedFileReader::new(file).map_err(|e| format(path, e.to_string()))
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
