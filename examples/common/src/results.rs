//! `results.json`: what was run, on what, for how long, and what came out.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::Result;
use candle_core::Device;
use layerwise_exit::LayerScores;
use serde::Serialize;
use serde_json::{Map, Value};

use crate::files::write_atomic;

/// Everything that an example publishes. Undefined numbers (NaN) become `null`.
#[derive(Clone, Debug, Serialize)]
pub struct Results {
    /// Name of the example.
    pub example: String,
    /// What it was asked to do.
    pub config: Value,
    /// Seed of everything random.
    pub seed: u64,
    /// Commit of the sources, `-dirty` when files differ from it; `None` outside a git checkout.
    pub commit: Option<String>,
    /// What it ran on.
    pub machine: Machine,
    /// Seconds from [`Results::new`] to [`Results::write`].
    pub wall_s: f64,
    /// Per model, by name.
    pub models: BTreeMap<String, ModelResults>,
    /// One entry per model, policy, threshold and batch size.
    pub exits: Vec<Value>,
    /// What only this example has, beside the fields above.
    #[serde(flatten)]
    pub more: Map<String, Value>,
    #[serde(skip)]
    start: Instant,
}

/// What one model does; arrays over layers `1..=L`.
#[derive(Clone, Debug, Default, Serialize)]
pub struct ModelResults {
    /// Share of correct answers of the exit after each layer.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub accuracy: Vec<f64>,
    /// Mean cross-entropy of the exit after each layer.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub loss: Vec<f64>,
    /// Sample-wise cosine of each layer's features to the last layer's.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cos_to_last: Vec<f64>,
    /// Linear CKA of each layer's features to the last layer's.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cka_to_last: Vec<f64>,
    /// What only this example has, beside the fields above.
    #[serde(flatten)]
    pub more: Map<String, Value>,
}

/// Where a run took place.
#[derive(Clone, Debug, Serialize)]
pub struct Machine {
    /// Model of the processor, or its architecture where the system does not say.
    pub cpu: String,
    /// Cores that this program may use.
    pub cores: usize,
    /// Threads that it does use.
    pub threads: usize,
    /// Operating system and architecture.
    pub os: String,
    /// Where tensors lived: `cpu` or `cuda:N`.
    pub device: String,
}

impl Results {
    /// Starts the clock of a run.
    #[must_use]
    pub fn new(example: &str, config: Value, seed: u64, device: &Device) -> Self {
        Self {
            example: example.to_owned(),
            config,
            seed,
            commit: commit(),
            machine: Machine::this(device),
            wall_s: 0.,
            models: BTreeMap::new(),
            exits: Vec::new(),
            more: Map::new(),
            start: Instant::now(),
        }
    }

    /// Stops the clock and writes `results.json` into `folder`, in one piece.
    ///
    /// # Errors
    ///
    /// When the file cannot be written; the message names it.
    pub fn write(&mut self, folder: &Path) -> Result<PathBuf> {
        self.wall_s = self.start.elapsed().as_secs_f64();
        let path = folder.join("results.json");
        let mut text = serde_json::to_string_pretty(self)?;
        text.push('\n');
        write_atomic(&path, text.as_bytes())?;
        Ok(path)
    }
}

impl ModelResults {
    /// Accuracy and loss of the exits, where they are known.
    #[must_use]
    pub fn of(scores: Option<&LayerScores>) -> Self {
        let LayerScores { accuracy, loss, .. } = scores.cloned().unwrap_or_default();
        Self { accuracy, loss, ..Self::default() }
    }
}

impl Machine {
    /// This machine, computing on `device`.
    #[must_use]
    pub fn this(device: &Device) -> Self {
        let information = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        Self {
            cpu: cpu_model(&information).unwrap_or(std::env::consts::ARCH).to_owned(),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            threads: rayon::current_num_threads(),
            os: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
            device: match device.location() {
                candle_core::DeviceLocation::Cpu => "cpu".to_owned(),
                candle_core::DeviceLocation::Cuda { gpu_id } => format!("cuda:{gpu_id}"),
                candle_core::DeviceLocation::Metal { gpu_id } => format!("metal:{gpu_id}"),
            },
        }
    }
}

fn cpu_model(information: &str) -> Option<&str> {
    let line = information.lines().find(|line| line.starts_with("model name"))?;
    line.split_once(':').map(|(_, name)| name.trim())
}

/// The commit that the checkout of these sources is at while the program runs; `cargo run` builds from it.
fn commit() -> Option<String> {
    let arguments = ["describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"];
    let output =
        Command::new("git").arg("-C").arg(env!("CARGO_MANIFEST_DIR")).args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn holds_every_documented_field() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let mut results = Results::new("quickstart", json!({"preset": "smoke"}), 7, &Device::Cpu);
        let mut model = ModelResults { accuracy: vec![0.5, f64::NAN], ..Default::default() };
        model.more.insert("minimal_depth".into(), json!(4));
        results.models.insert("aligned".into(), model);
        results.exits.push(json!({"threshold": 0.9}));
        results.more.insert("similarity".into(), json!({"cos": [[1.0]]}));
        let path = results.write(folder.path())?;
        let read: Value = serde_json::from_slice(&std::fs::read(path)?)?;
        assert_eq!((&read["example"], &read["seed"]), (&json!("quickstart"), &json!(7)));
        assert_eq!(read["config"]["preset"], "smoke");
        assert_eq!(read["models"]["aligned"], json!({"accuracy": [0.5, null], "minimal_depth": 4}));
        assert_eq!(read["exits"][0]["threshold"], 0.9);
        assert_eq!(read["similarity"]["cos"][0][0], 1.0);
        assert!(read["wall_s"].as_f64().is_some_and(|seconds| seconds >= 0.));
        assert!(read["machine"]["threads"].as_u64().is_some_and(|threads| threads > 0));
        assert!(read.get("commit").is_some());
        Ok(())
    }

    #[test]
    fn an_unwritable_folder_is_named() {
        let mut results = Results::new("quickstart", Value::Null, 0, &Device::Cpu);
        let error = results.write(Path::new("no/such/folder")).unwrap_err().to_string();
        assert!(error.contains("results.json"), "{error}");
    }

    #[test]
    fn finds_the_processor() {
        assert_eq!(cpu_model("processor\t: 0\nmodel name\t: Fast One\n"), Some("Fast One"));
        assert_eq!(cpu_model(""), None);
    }
}
