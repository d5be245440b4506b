//! `hidden.safetensors`, written batch by batch: all tokens of all layers need not fit in memory.

use std::{
    fs::{self, File},
    io::{Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use candle_core::{DType, Tensor};
use serde_json::{Map, Value, json};

/// Tensors `layer_0` (the embedding) to `layer_L`, f32, all of one shape; under a temporary name until all is there.
pub(crate) struct HiddenFile {
    file: File,
    temporary: PathBuf,
    path: PathBuf,
    layers: usize,
    samples: usize,
    /// Bytes of one sample in one layer.
    stride: usize,
    /// Where the first tensor starts.
    start: usize,
    /// Samples written, over all layers.
    written: usize,
}

impl HiddenFile {
    /// `shape` is that of each layer's tensor, samples first.
    pub(crate) fn create(folder: &Path, layers: usize, shape: &[usize]) -> Result<Self> {
        let path = folder.join("hidden.safetensors");
        let stride = 4 * shape.iter().skip(1).product::<usize>();
        let size = shape[0] * stride;
        let mut header = Map::new();
        header.insert("__metadata__".into(), json!({ "format": "pt" }));
        for layer in 0..layers {
            let entry =
                json!({ "dtype": "F32", "shape": shape, "data_offsets": [layer * size, (layer + 1) * size] });
            header.insert(format!("layer_{layer}"), entry);
        }
        // The format: length of the header, header, padded so that the data is aligned, data.
        let mut header = Value::Object(header).to_string();
        header.push_str(&" ".repeat(header.len().next_multiple_of(8) - header.len()));
        let start = 8 + header.len();
        let temporary = folder.join("hidden.safetensors.tmp");
        let create = || {
            let mut file = File::create(&temporary)?;
            file.write_all(&(header.len() as u64).to_le_bytes())?;
            file.write_all(header.as_bytes())?;
            file.set_len((start + layers * size) as u64)?;
            Ok::<_, std::io::Error>(file)
        };
        let file = create().with_context(|| cannot_write(&temporary))?;
        Ok(Self { file, temporary, path, layers, samples: shape[0], stride, start, written: 0 })
    }

    /// Puts the states of samples `first..` at their place in a layer.
    pub(crate) fn write(&mut self, layer: usize, first: usize, states: &Tensor) -> Result<()> {
        let values = states.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let rows = states.dim(0)?;
        let fits = layer < self.layers && first + rows <= self.samples && bytes.len() == rows * self.stride;
        ensure!(fits, "layer {layer}, samples {first}..: states of shape {:?} have no place", states.dims());
        let at = self.start + (layer * self.samples + first) * self.stride;
        self.file
            .seek(SeekFrom::Start(at as u64))
            .and_then(|_| self.file.write_all(&bytes))
            .with_context(|| cannot_write(&self.temporary))?;
        self.written += rows;
        Ok(())
    }

    /// Gives the file its name.
    pub(crate) fn finish(self) -> Result<()> {
        ensure!(self.written == self.layers * self.samples, "{}: states are missing", self.path.display());
        self.file.sync_all().with_context(|| cannot_write(&self.temporary))?;
        fs::rename(&self.temporary, &self.path).with_context(|| cannot_write(&self.path))
    }
}

impl Drop for HiddenFile {
    /// What was not finished does not stay; after [`finish`](HiddenFile::finish) there is nothing of that name.
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.temporary);
    }
}

fn cannot_write(path: &Path) -> String {
    format!("{}: cannot write this file", path.display())
}
