use std::{
    collections::{BTreeMap, HashMap},
    fs::{self, File, TryLockError},
    io::{ErrorKind, Write},
    path::{Path, PathBuf},
};

use candle_core::{Tensor, Var, safetensors::Load};
use layerwise_models::{Params, write_whole};
use safetensors::SafeTensors;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{AdamW, Error, Evaluation, Result, TrainConfig};

const STATE: &str = "state.safetensors";
const CONFIG: &str = "config.json";
const METRICS: &str = "metrics.jsonl";
const LOCK: &str = "lock";

/// Field of the state's metadata that holds the [`Progress`] as JSON. One field: safetensors writes several in any order,
/// and equal runs shall give equal bytes.
const PROGRESS: &str = "progress";

#[derive(Serialize, Deserialize)]
struct Progress {
    /// Optimiser steps taken.
    step: usize,
    /// Number of training samples.
    samples: usize,
    /// Updates of the parameters that had a gradient in fewer steps.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    fewer_updates: BTreeMap<String, usize>,
    /// What a model of mixed precision computes in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    dtype: Option<String>,
}

/// Folder of a run: `config.json`, `metrics.jsonl`, `state.safetensors`, and `lock`, held while the run goes on.
///
/// The state holds parameters, moments and the step in one file. It is written to a temporary name, synced and renamed, so a
/// kill at any moment leaves the last good one.
#[derive(Debug)]
pub(crate) struct RunFolder {
    path: PathBuf,
    samples: usize,
    _lock: File,
}

impl RunFolder {
    /// Opens or makes the folder; once it holds a state, the settings must be those that it was made with, but for how often
    /// it is evaluated and saved.
    pub(crate) fn open(path: &Path, config: &TrainConfig, samples: usize) -> Result<Self> {
        fs::create_dir_all(path).map_err(io(path))?;
        check(path, config)?; // Somebody else's folder does not even get a lock.
        let folder = Self { path: path.to_owned(), samples, _lock: lock(&path.join(LOCK))? };
        check(path, config)?;
        let file = path.join(CONFIG);
        let text = serde_json::to_string_pretty(config).map_err(|e| checkpoint(&file, e.to_string()))?;
        write_whole(&file, (text + "\n").as_bytes()).map_err(io(&file))?;
        Ok(folder)
    }

    /// Writes parameters, moments and step; the metrics so far reach the disk before.
    pub(crate) fn save(&self, params: &Params, optimiser: &AdamW, metrics: &Metrics) -> Result<()> {
        metrics.file.sync_data().map_err(io(&metrics.path))?;
        let file = self.path.join(STATE);
        let mut tensors: BTreeMap<String, Tensor> = BTreeMap::new();
        for (name, var) in params.masters() {
            tensors.insert(format!("param.{name}"), var.as_detached_tensor());
        }
        for (name, m, v) in optimiser.moments() {
            tensors.insert(format!("m.{name}"), m.as_detached_tensor());
            tensors.insert(format!("v.{name}"), v.as_detached_tensor());
        }
        let fewer_updates = optimiser.fewer_updates();
        let (step, samples, dtype) = (optimiser.step_count(), self.samples, computes_in(params));
        let progress = Progress { step, samples, fewer_updates, dtype };
        let progress = serde_json::to_string(&progress).map_err(|e| checkpoint(&file, e.to_string()))?;
        let metadata = HashMap::from([(PROGRESS.to_owned(), progress)]);
        let bytes =
            safetensors::serialize(tensors, Some(metadata)).map_err(|e| checkpoint(&file, e.to_string()))?;
        write_whole(&file, &bytes).map_err(io(&file))
    }

    /// Restores parameters, moments and step when the folder has a state.
    ///
    /// Nothing is changed unless the whole state fits.
    pub(crate) fn restore(&self, params: &Params, optimiser: &mut AdamW) -> Result<()> {
        let file = self.path.join(STATE);
        let Some(bytes) = read(&file)? else { return Ok(()) };
        let broken = |e: safetensors::SafeTensorError| checkpoint(&file, e.to_string());
        let saved = SafeTensors::deserialize(&bytes).map_err(broken)?;
        let (_, header) = SafeTensors::read_metadata(&bytes).map_err(broken)?;
        let progress = header.metadata().as_ref().and_then(|metadata| metadata.get(PROGRESS));
        let Some(progress) = progress.and_then(|text| serde_json::from_str::<Progress>(text).ok()) else {
            let what =
                format!("metadata field `{PROGRESS}` with `step` and `samples` is absent or malformed");
            return Err(checkpoint(&file, what));
        };
        if progress.samples != self.samples {
            let (saved, given) = (progress.samples.to_string(), self.samples.to_string());
            return Err(Error::Config { path: file, field: "samples".into(), saved, given });
        }
        let dtype = computes_in(params);
        if progress.dtype != dtype {
            let name = |dtype: Option<String>| dtype.unwrap_or_else(|| "the parameters' own".to_owned());
            let (saved, given) = (name(progress.dtype), name(dtype));
            return Err(Error::Config { path: file, field: "dtype".into(), saved, given });
        }
        if let Some((name, updates)) = progress.fewer_updates.iter().find(|(_, n)| **n > progress.step) {
            let what = format!("{updates} updates of `{name}` in {} steps", progress.step);
            return Err(checkpoint(&file, what));
        }
        let wanted = params.masters().map(|(name, var)| (format!("param.{name}"), var)).chain(
            optimiser.moments().flat_map(|(name, m, v)| [(format!("m.{name}"), m), (format!("v.{name}"), v)]),
        );
        let mut updates: Vec<(&Var, Tensor)> = Vec::new();
        for (name, var) in wanted {
            let Ok(tensor) = saved.tensor(&name) else {
                return Err(checkpoint(&file, format!("tensor `{name}` is missing")));
            };
            if tensor.shape() != var.dims() {
                let what =
                    format!("tensor `{name}` has shape {:?}, expected {:?}", tensor.shape(), var.dims());
                return Err(checkpoint(&file, what));
            }
            updates.push((var, tensor.load(var.device())?.to_dtype(var.dtype())?));
        }
        if updates.len() != saved.len() {
            let what = format!("{} tensors, expected {}", saved.len(), updates.len());
            return Err(checkpoint(&file, what));
        }
        for (var, tensor) in updates {
            var.set(&tensor)?;
        }
        params.round()?;
        optimiser.set_step(progress.step, &progress.fewer_updates);
        Ok(())
    }

    /// Opens `metrics.jsonl` for appending, without the lines that a run wrote after its last checkpoint, at `step`; with
    /// the evaluations it holds.
    pub(crate) fn metrics(&self, step: usize) -> Result<(Metrics, Vec<Evaluation>)> {
        let path = self.path.join(METRICS);
        let text = String::from_utf8_lossy(&read(&path)?.unwrap_or_default()).into_owned();
        let up_to_step = |line: &&str| {
            let line: Option<Value> = serde_json::from_str(line).ok();
            line.and_then(|line| line.get("step")?.as_u64()).is_some_and(|at| at <= step as u64)
        };
        let kept: String = text.lines().filter(up_to_step).flat_map(|line| [line, "\n"]).collect();
        if kept != text {
            write_whole(&path, kept.as_bytes()).map_err(io(&path))?;
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

/// The type of number that a model of mixed precision computes in.
fn computes_in(params: &Params) -> Option<String> {
    let (of, master) = (params.iter().next()?.1.dtype(), params.masters().next()?.1.dtype());
    (of != master).then(|| of.as_str().to_owned())
}

/// Whether a run with these settings may begin or go on in this folder.
fn check(path: &Path, config: &TrainConfig) -> Result<()> {
    let has = |name| {
        let file = path.join(name);
        file.try_exists().map_err(io(&file))
    };
    // In this order: a run that begins meanwhile has its configuration before the others.
    let (state, metrics) = (has(STATE)?, has(METRICS)?);
    let file = path.join(CONFIG);
    match saved_config(&file)? {
        Some(saved) if state => same_run(&file, &saved, config),
        None if state || metrics => {
            let name = if state { STATE } else { METRICS };
            Err(checkpoint(&file, format!("missing, but the folder has {name}")))
        }
        _ => Ok(()),
    }
}

/// The settings in `file`; fields that it lacks, because they are newer, have their defaults.
fn saved_config(file: &Path) -> Result<Option<TrainConfig>> {
    let Some(bytes) = read(file)? else { return Ok(None) };
    // An object: serde would take a list for a structure too.
    serde_json::from_slice::<Map<String, Value>>(&bytes)
        .and_then(|fields| serde_json::from_value(fields.into()))
        .map(Some)
        .map_err(|e| checkpoint(file, format!("not the settings of a training run: {e}")))
}

/// The first field that differs, as an error.
fn same_run(file: &Path, saved: &TrainConfig, given: &TrainConfig) -> Result<()> {
    let fields = |config: &TrainConfig| {
        // Neither changes a bit of what is trained.
        let config = TrainConfig { evaluate_every: 0, checkpoint_every: 0, ..config.clone() };
        serde_json::to_value(config).map_err(|e| checkpoint(file, e.to_string()))
    };
    let (saved, given) = (fields(saved)?, fields(given)?);
    match given.as_object().into_iter().flatten().find(|(field, value)| saved[*field] != **value) {
        Some((field, value)) => Err(Error::Config {
            path: file.to_owned(),
            field: field.clone(),
            saved: saved[field].to_string(),
            given: value.to_string(),
        }),
        None => Ok(()),
    }
}

/// Takes the lock, which the system gives back when the process ends, however it does.
fn lock(path: &Path) -> Result<File> {
    let file = File::options().create(true).append(true).open(path).map_err(io(path))?;
    match file.try_lock() {
        // A file system without locks has to do without.
        Ok(()) | Err(TryLockError::Error(_)) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(Error::Busy { path: path.to_owned() }),
    }
}

/// The whole file; `None` when there is none.
fn read(path: &Path) -> Result<Option<Vec<u8>>> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(io(path)(e)),
    }
}

fn io(path: &Path) -> impl Fn(std::io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Io { path: path.clone(), source }
}

fn checkpoint(path: &Path, what: String) -> Error {
    Error::Checkpoint { path: path.to_owned(), what }
}
