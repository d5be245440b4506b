//! Which files of a repository a model or a data set needs.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use layerwise_data::missing_shards;
use serde_json::Value;

use super::{
    error::{Error, Result, io},
    snapshot::Snapshot,
};

const CONFIG: &str = "config.json";
const WEIGHTS: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
const OPTIONAL: [&str; 4] =
    ["preprocessor_config.json", "tokenizer.json", "tokenizer_config.json", "layerwise.json"];
const SPLITS: [&str; 4] = ["train-", "validation-", "valid-", "test-"];

/// Small files first: what is missing is noticed before the weights are downloaded.
pub(super) fn model(snapshot: &Snapshot<'_>) -> Result<PathBuf> {
    snapshot.get(CONFIG)?;
    for file in OPTIONAL.into_iter().filter(|file| snapshot.has(file)) {
        snapshot.get(file)?;
    }
    if snapshot.has(WEIGHTS) || !snapshot.has(INDEX) {
        snapshot.get(WEIGHTS)?;
    } else {
        for shard in shards(&snapshot.get(INDEX)?)? {
            snapshot.get(&shard)?;
        }
    }
    Ok(snapshot.folder())
}

/// The files that the index at `path` names.
fn shards(path: &Path) -> Result<BTreeSet<String>> {
    let wrong = |what: String| Error::Index { path: path.to_owned(), what };
    let index: Value = serde_json::from_slice(&fs::read(path).map_err(io(path))?)
        .map_err(|error| wrong(format!("no JSON: {error}")))?;
    let map = index.get("weight_map").and_then(Value::as_object);
    let map = map.filter(|map| !map.is_empty()).ok_or_else(|| wrong("no weight_map".to_owned()))?;
    map.iter()
        .map(|(tensor, file)| {
            let file = file.as_str().ok_or_else(|| wrong(format!("{tensor}: {file} is no file name")))?;
            Ok(file.to_owned())
        })
        .collect()
}

pub(super) fn data_set(snapshot: &Snapshot<'_>) -> Result<PathBuf> {
    let files: Vec<&str> = snapshot.names().filter(|file| is_split(file)).collect();
    let Some(first) = files.first() else {
        return Err(match snapshot.is_online() {
            true => Error::NoParquet { id: snapshot.id().to_owned() },
            false => snapshot.missing("*.parquet"),
        });
    };
    // The hub's list is complete; the cache may hold half a download.
    if let Some(file) = missing_shards(files.iter().copied()).next().filter(|_| !snapshot.is_online()) {
        return Err(snapshot.missing(&file));
    }
    for file in &files {
        snapshot.get(file)?;
    }
    let folder = |file| Path::new(file).parent();
    let common = folder(*first).filter(|first| files.iter().all(|file| folder(file) == Some(*first)));
    Ok(common.map_or_else(|| snapshot.folder(), |common| snapshot.folder().join(common)))
}

fn is_split(file: &str) -> bool {
    let name = file.rsplit('/').next().unwrap_or(file);
    name.ends_with(".parquet") && SPLITS.iter().any(|split| name.starts_with(split))
}
