use std::{
    collections::{BTreeMap, HashMap},
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
};

use candle_core::{Device, Tensor, Var};
use layerwise_models::Params;
use safetensors::SafeTensors;
use serde_json::Value;

use crate::{AdamW, Error, Evaluation, Result, TrainConfig};

const STATE: &str = "state.safetensors";
const CONFIG: &str = "config.json";
const METRICS: &str = "metrics.jsonl";

/// Folder of a run: `config.json`, `metrics.jsonl`, `state.safetensors`.
///
/// The state holds parameters, moments and the step in one file. It is written to a temporary name, synced and renamed, so a
/// kill at any moment leaves the last good one.
#[derive(Debug)]
pub(crate) struct RunFolder {
    path: PathBuf,
}

impl RunFolder {
    /// Opens or makes the folder; the settings must be those that it was made with.
    pub(crate) fn open(path: &Path, config: &TrainConfig) -> Result<Self> {
        fs::create_dir_all(path).map_err(io(path))?;
        let file = path.join(CONFIG);
        let given = serde_json::to_value(config).map_err(|e| checkpoint(&file, e.to_string()))?;
        if file.exists() {
            let text = fs::read_to_string(&file).map_err(io(&file))?;
            let saved: Value = serde_json::from_str(&text).map_err(|e| checkpoint(&file, e.to_string()))?;
            if let Some(field) = first_difference(&saved, &given) {
                let value = |config: &Value| config.get(&field).map_or("absent".into(), Value::to_string);
                let (saved, given) = (value(&saved), value(&given));
                return Err(Error::Config { path: file, field, saved, given });
            }
        } else {
            write_atomically(&file, format!("{given:#}\n").as_bytes())?;
        }
        Ok(Self { path: path.to_owned() })
    }

    /// Writes parameters, moments and step.
    pub(crate) fn save(&self, params: &Params, optimiser: &AdamW) -> Result<()> {
        let file = self.path.join(STATE);
        let mut tensors: BTreeMap<String, Tensor> = BTreeMap::new();
        for (name, var) in params.iter() {
            tensors.insert(format!("param.{name}"), var.as_detached_tensor());
        }
        for (name, m, v) in optimiser.moments() {
            tensors.insert(format!("m.{name}"), m.as_detached_tensor());
            tensors.insert(format!("v.{name}"), v.as_detached_tensor());
        }
        let metadata = HashMap::from([("step".to_owned(), optimiser.step_count().to_string())]);
        let bytes =
            safetensors::serialize(tensors, Some(metadata)).map_err(|e| checkpoint(&file, e.to_string()))?;
        write_atomically(&file, &bytes)
    }

    /// Restores parameters, moments and step when the folder has a state; whether it had one.
    ///
    /// Nothing is changed unless the whole state fits.
    pub(crate) fn restore(&self, params: &Params, optimiser: &mut AdamW) -> Result<bool> {
        let file = self.path.join(STATE);
        if !file.exists() {
            return Ok(false);
        }
        let bytes = fs::read(&file).map_err(io(&file))?;
        let (_, header) = SafeTensors::read_metadata(&bytes).map_err(|e| checkpoint(&file, e.to_string()))?;
        let step = header.metadata().as_ref().and_then(|metadata| metadata.get("step")?.parse().ok());
        let Some(step) = step else {
            return Err(checkpoint(&file, "metadata field `step` is absent or no number".into()));
        };
        let saved = candle_core::safetensors::load_buffer(&bytes, &Device::Cpu)
            .map_err(|e| checkpoint(&file, e.to_string()))?;
        let wanted = params.iter().map(|(name, var)| (format!("param.{name}"), var)).chain(
            optimiser.moments().flat_map(|(name, m, v)| [(format!("m.{name}"), m), (format!("v.{name}"), v)]),
        );
        let mut updates: Vec<(&Var, Tensor)> = Vec::new();
        for (name, var) in wanted {
            let Some(tensor) = saved.get(&name) else {
                return Err(checkpoint(&file, format!("tensor `{name}` is missing")));
            };
            if tensor.dims() != var.dims() {
                let what =
                    format!("tensor `{name}` has shape {:?}, expected {:?}", tensor.dims(), var.dims());
                return Err(checkpoint(&file, what));
            }
            updates.push((var, tensor.to_device(var.device())?.to_dtype(var.dtype())?));
        }
        if updates.len() != saved.len() {
            let what = format!("{} tensors, expected {}", saved.len(), updates.len());
            return Err(checkpoint(&file, what));
        }
        for (var, tensor) in updates {
            var.set(&tensor)?;
        }
        optimiser.set_step(step);
        Ok(true)
    }

    /// Opens `metrics.jsonl` for appending, without the lines that a run wrote after its last checkpoint, at `step`; with
    /// the evaluations it holds.
    pub(crate) fn metrics(&self, step: usize) -> Result<(Metrics, Vec<Evaluation>)> {
        let path = self.path.join(METRICS);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(e) => return Err(io(&path)(e)),
        };
        let up_to_step = |line: &&str| {
            let line: Option<Value> = serde_json::from_str(line).ok();
            line.and_then(|line| line.get("step")?.as_u64()).is_some_and(|at| at <= step as u64)
        };
        let kept: String = text.lines().filter(up_to_step).flat_map(|line| [line, "\n"]).collect();
        if kept != text {
            write_atomically(&path, kept.as_bytes())?;
        }
        let evaluations = kept.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        let file = File::options().create(true).append(true).open(&path).map_err(io(&path))?;
        Ok((Metrics { path, file }, evaluations))
    }
}

/// An open `metrics.jsonl`.
#[derive(Debug)]
pub(crate) struct Metrics {
    path: PathBuf,
    file: File,
}

impl Metrics {
    /// Appends one line.
    pub(crate) fn write(&mut self, line: &impl serde::Serialize) -> Result<()> {
        let mut text = serde_json::to_string(line).map_err(|e| checkpoint(&self.path, e.to_string()))?;
        text.push('\n');
        self.file.write_all(text.as_bytes()).map_err(io(&self.path))
    }
}

/// Writes to a temporary name in the same folder, syncs, renames, syncs the folder.
fn write_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    let temporary = path.with_extension("tmp");
    let written = File::create(&temporary).and_then(|mut file| {
        file.write_all(bytes)?;
        file.sync_all()
    });
    written.map_err(io(&temporary))?;
    fs::rename(&temporary, path).map_err(io(path))?;
    let folder = path.parent().unwrap_or(Path::new("."));
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(io(folder))
}

fn first_difference(saved: &Value, given: &Value) -> Option<String> {
    let (saved, given) = (saved.as_object()?, given.as_object()?);
    let names = given.keys().chain(saved.keys());
    names.into_iter().find(|name| saved.get(*name) != given.get(*name)).cloned()
}

fn io(path: &Path) -> impl Fn(std::io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Io { path: path.clone(), source }
}

fn checkpoint(path: &Path, what: String) -> Error {
    Error::Checkpoint { path: path.to_owned(), what }
}
