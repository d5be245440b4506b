//! Reading weights: one `model.safetensors`, or several under an index, checked before anything is believed.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    ops::Range,
    path::{Path, PathBuf},
};

use candle_core::{DType, Device, Tensor};
use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;

use crate::{Error, Result, folder::CONFIG};

const WEIGHTS: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// The tensors of a checkpoint's folder, under the names of our parameters; converted when asked for.
#[derive(Debug)]
pub struct Checkpoint {
    path: PathBuf,
    files: Vec<(PathBuf, Vec<u8>)>,
    entries: BTreeMap<String, Entry>,
    aliases: BTreeMap<String, String>,
}

#[derive(Debug)]
struct Entry {
    file: usize,
    /// Its name there.
    original: String,
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Range<usize>,
    view: View,
}

/// What a parameter is of a tensor in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum View {
    /// All of it.
    Whole,
    /// One of so many equal groups of columns: of `(inputs, of x outputs)` the parameter is `(outputs, inputs)`, of a vector a piece.
    Columns {
        /// Which, from 0.
        part: usize,
        /// How many there are.
        of: usize,
    },
}

/// A tensor that is a parameter of the same name.
pub(crate) fn whole(name: &str) -> Vec<(String, View)> {
    vec![(name.to_owned(), View::Whole)]
}

impl View {
    fn shape(self, shape: &[usize]) -> Vec<usize> {
        match (self, shape) {
            (Self::Columns { of, .. }, &[inputs, columns]) if columns.is_multiple_of(of) => {
                vec![columns / of, inputs]
            }
            (Self::Columns { of, .. }, &[columns]) if columns.is_multiple_of(of) => vec![columns / of],
            // As it is, or what fits no parameter.
            _ => shape.to_vec(),
        }
    }

    /// Whether a tensor of this shape can be cut so.
    fn cuts(self, shape: &[usize]) -> bool {
        match self {
            Self::Whole => true,
            Self::Columns { of, .. } => shape.last().is_some_and(|columns| columns.is_multiple_of(of)),
        }
    }

    fn of(self, tensor: &Tensor) -> candle_core::Result<Tensor> {
        let Self::Columns { part, of } = self else { return Ok(tensor.clone()) };
        let last = tensor.rank() - 1;
        let columns = tensor.dim(last)? / of;
        let tensor = tensor.narrow(last, part * columns, columns)?;
        if last == 1 { tensor.t()?.contiguous() } else { tensor.contiguous() }
    }
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

impl Checkpoint {
    /// Reads the weights of `folder`; `read` maps the name of a tensor in the file to the parameters that are made of it.
    pub(crate) fn open(folder: &Path, read: impl Fn(&str) -> Vec<(String, View)>) -> Result<Self> {
        if !folder.is_dir() {
            let source = std::io::Error::new(std::io::ErrorKind::NotFound, "expected the folder of a model");
            return Err(Error::Io { path: folder.to_owned(), source });
        }
        let (path, shards) = shards(folder)?;
        let mut checkpoint =
            Self { path, files: Vec::new(), entries: BTreeMap::new(), aliases: BTreeMap::new() };
        for shard in shards {
            checkpoint.add(shard, &read)?;
        }
        Ok(checkpoint)
    }

    fn add(&mut self, path: PathBuf, parameters: impl Fn(&str) -> Vec<(String, View)>) -> Result<()> {
        let bytes = read(&path)?;
        let invalid = |source| Error::Safetensors { path: path.clone(), source };
        // Checks that header, shapes and offsets agree with each other and with the length of the file.
        let tensors = SafeTensors::deserialize(&bytes).map_err(invalid)?;
        let start = bytes.as_ptr() as usize;
        let mut views = tensors.tensors();
        views.sort_by(|(a, _), (b, _)| a.cmp(b));
        for (original, tensor) in views {
            let offset = tensor.data().as_ptr() as usize - start;
            for (name, view) in parameters(&original) {
                let entry = Entry {
                    file: self.files.len(),
                    dtype: tensor.dtype(),
                    shape: tensor.shape().to_vec(),
                    bytes: offset..offset + tensor.data().len(),
                    original: original.clone(),
                    view,
                };
                if let Some(first) = self.entries.get(&name) {
                    let (first, second) = (first.original.clone(), entry.original);
                    return Err(Error::Ambiguous { path, name, first, second });
                }
                self.entries.insert(name, entry);
            }
        }
        self.files.push((path, bytes));
        Ok(())
    }

    /// The weights file, or the index of several.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Names of all tensors, sorted.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    pub(crate) fn contains(&self, name: &str) -> bool {
        self.entry(name).is_some()
    }

    pub(crate) fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.entry(name).map(|entry| entry.view.shape(&entry.shape))
    }

    /// Whether the tensor `name` is there, and of this shape.
    pub(crate) fn fits(&self, name: &str, shape: &[usize]) -> bool {
        self.entry(name)
            .is_some_and(|entry| entry.view.cuts(&entry.shape) && entry.view.shape(&entry.shape) == shape)
    }

    /// Lets `name` mean what `of` means, unless the file has a tensor of that name.
    pub(crate) fn alias(&mut self, name: String, of: String) {
        self.aliases.insert(name, of);
    }

    fn entry(&self, name: &str) -> Option<&Entry> {
        self.entries.get(name).or_else(|| self.entries.get(self.aliases.get(name)?))
    }

    /// The tensor `name`, widened or narrowed to f32; every element is finite.
    pub(crate) fn tensor(&self, name: &str, device: &Device) -> Result<Tensor> {
        let Some(entry) = self.entry(name) else {
            let missing = vec![name.to_owned()];
            let path = self.path.clone();
            return Err(Error::Tensors { path, missing, shapes: Vec::new(), unexpected: Vec::new() });
        };
        let (path, bytes) = &self.files[entry.file];
        let name = || entry.original.clone();
        let dtype = match entry.dtype {
            Dtype::F32 => DType::F32,
            Dtype::F16 => DType::F16,
            Dtype::BF16 => DType::BF16,
            Dtype::F64 => DType::F64,
            other => {
                return Err(Error::Dtype { path: path.clone(), name: name(), found: format!("{other:?}") });
            }
        };
        let tensor = Tensor::from_raw_buffer(&bytes[entry.bytes.clone()], dtype, &entry.shape, &Device::Cpu)?;
        let tensor = tensor.to_dtype(DType::F32)?;
        let values = tensor.flatten_all()?.to_vec1::<f32>()?;
        if let Some((index, &value)) = values.iter().enumerate().find(|(_, value)| !value.is_finite()) {
            return Err(Error::NotFinite { path: path.clone(), name: name(), index, value });
        }
        Ok(entry.view.of(&tensor)?.to_device(device)?)
    }
}

/// The file to name in errors, and the files to read.
fn shards(folder: &Path) -> Result<(PathBuf, Vec<PathBuf>)> {
    let single = folder.join(WEIGHTS);
    let index = folder.join(INDEX);
    if single.exists() || !index.exists() {
        return Ok((single.clone(), vec![single]));
    }
    let Index { weight_map } = read_json(&index)?;
    let names: BTreeSet<String> = weight_map.into_values().collect();
    let mut files = Vec::new();
    for shard in names {
        if Path::new(&shard).file_name() != Some(shard.as_ref()) {
            return Err(Error::Shard { path: index, shard });
        }
        files.push(folder.join(shard));
    }
    Ok((index, files))
}

/// The content of `path`.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).map_err(|source| Error::Io { path: path.to_owned(), source })
}

/// The JSON of `path`.
pub(crate) fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T> {
    serde_json::from_slice(&read(path)?).map_err(|source| Error::Json { path: path.to_owned(), source })
}

/// What `convert` makes of a folder's `config.json`.
pub(crate) fn config<H: serde::de::DeserializeOwned, C>(
    folder: &Path,
    convert: impl FnOnce(H) -> Result<C>,
) -> Result<C> {
    let path = folder.join(CONFIG);
    convert(read_json(&path)?).map_err(|error| error.in_file(path))
}
