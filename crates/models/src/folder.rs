//! Writing a model's folder, so that a kill at any moment leaves whole files.

use std::{borrow::Cow, collections::HashMap, fs, path::Path};

use candle_core::{DType, Tensor};
use safetensors::{Dtype, View};
use serde::{Serialize, de::DeserializeOwned};

use crate::{
    Error, Result, checkpoint,
    whole_file::{Complete, sync_folder},
};

/// The configuration, as Hugging Face calls it.
pub(crate) const CONFIG: &str = "config.json";
/// What Hugging Face has no key for.
pub(crate) const LAYERWISE: &str = "layerwise.json";
const WEIGHTS: &str = "model.safetensors";

/// Writes weights (as f32), configuration and, if there is one, `layerwise.json`; equal bytes for equal models.
///
/// All are complete under temporary names before the first takes its place; each file is whole at any moment. A kill between two
/// renames leaves weights and configuration of different models where they differ: save another model into another folder.
pub(crate) fn save(
    folder: &Path,
    config: &impl Serialize,
    layerwise: Option<&impl Serialize>,
    tensors: &[(String, Tensor)],
) -> Result<()> {
    let at = |source| Error::Io { path: folder.to_owned(), source };
    fs::create_dir_all(folder).map_err(at)?;
    let mut files = vec![(WEIGHTS, weights(tensors)?), (CONFIG, json(config)?)];
    match layerwise {
        // First, so that what others have added to it (when to leave early) is gone before the weights that it was made for.
        Some(layerwise) => files.insert(0, (LAYERWISE, json(layerwise)?)),
        // What another model said of itself.
        None if folder.join(LAYERWISE).exists() => {
            fs::remove_file(folder.join(LAYERWISE)).map_err(at)?;
        }
        None => {}
    }
    let mut complete = Vec::new();
    for (name, bytes) in &files {
        let path = folder.join(name);
        complete.push(Complete::write(&path, bytes).map_err(|source| Error::Io { path, source })?);
    }
    for file in complete {
        let path = file.path().to_owned();
        file.replace().map_err(|source| Error::Io { path, source })?;
    }
    sync_folder(folder).map_err(at)
}

/// `layerwise.json`, or the default where a folder has none.
pub(crate) fn read_layerwise<T: DeserializeOwned + Default>(folder: &Path) -> Result<T> {
    let path = folder.join(LAYERWISE);
    if path.exists() { checkpoint::read_json(&path) } else { Ok(T::default()) }
}

fn json(value: &impl Serialize) -> Result<Vec<u8>> {
    let mut text =
        serde_json::to_vec_pretty(value).map_err(|source| Error::Json { path: CONFIG.into(), source })?;
    text.push(b'\n');
    Ok(text)
}

/// A tensor's f32 values, in the byte order of the file.
struct Values {
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl Values {
    fn new(tensor: &Tensor) -> Result<Self> {
        let values = tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        Ok(Self { shape: tensor.dims().to_vec(), bytes })
    }
}

impl View for Values {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(&self.bytes)
    }

    fn data_len(&self) -> usize {
        self.bytes.len()
    }
}

fn weights(tensors: &[(String, Tensor)]) -> Result<Vec<u8>> {
    let named = tensors.iter().map(|(name, tensor)| Ok((name, Values::new(tensor)?)));
    let tensors = named.collect::<Result<Vec<_>>>()?;
    // Version 4 of Python's transformers refuses files that do not say which framework's layout they have.
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    safetensors::serialize(tensors, Some(metadata))
        .map_err(|source| Error::Safetensors { path: WEIGHTS.into(), source })
}
