use std::{fs, path::Path};

use layerwise_models::write_whole;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{Error, Guarantee, Policy, Result, Thresholds};

/// Name of the file that holds what Hugging Face has no key for.
const FILE: &str = "layerwise.json";
/// Our key in it.
const KEY: &str = "exits";

/// When a model is left early, as it is kept with the model: `"exits"` in its folder's `layerwise.json`.
///
/// Saving a model anew drops it, as it was made for the weights that were there. Other programs that write weights may leave it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SavedExits {
    /// Layers of the model.
    pub depth: usize,
    /// Who leaves where.
    pub thresholds: Thresholds,
    /// How they were chosen.
    pub calibration: Calibration,
}

/// How thresholds were chosen.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Calibration {
    /// By hand, or by a rule that promises nothing.
    Given,
    /// For a budget: no promise.
    Budget {
        /// Layers of a sample, on average, on the calibration samples.
        layers: f64,
        /// Calibration samples.
        samples: usize,
    },
    /// With a guarantee.
    Guarantee {
        /// The promise.
        promise: Guarantee,
        /// Layers of a sample, on average, on the calibration samples.
        layers: f64,
        /// Calibration samples.
        samples: usize,
    },
}

impl SavedExits {
    /// Writes it into the folder's `layerwise.json`, beside what is there.
    ///
    /// # Errors
    ///
    /// What [`Policy::validate`] finds; [`Error::Json`] where `layerwise.json` is no object; [`Error::Io`].
    pub fn save(&self, folder: &Path) -> Result<()> {
        self.thresholds.validate(self.depth)?;
        let path = folder.join(FILE);
        let json = |source| Error::Json { path: path.clone(), source };
        let io = |source| Error::Io { path: path.clone(), source };
        let mut all = if path.exists() { read(&path)? } else { Map::new() };
        all.insert(KEY.into(), serde_json::to_value(self).map_err(json)?);
        let mut text = serde_json::to_vec_pretty(&all).map_err(json)?;
        text.push(b'\n');
        write_whole(&path, &text).map_err(io)
    }

    /// Reads it for a model of `depth` layers.
    ///
    /// # Errors
    ///
    /// [`Error::NotCalibrated`] where there is none; [`Error::InFile`] with [`Error::Depth`] for a model of another depth, and for
    /// thresholds out of range; [`Error::Json`] and [`Error::Io`] for a damaged file.
    pub fn load(folder: &Path, depth: usize) -> Result<Self> {
        let path = folder.join(FILE);
        if !path.exists() {
            return Err(Error::NotCalibrated { path });
        }
        let exits = match read(&path)?.remove(KEY) {
            None | Some(Value::Null) => return Err(Error::NotCalibrated { path }),
            Some(exits) => exits,
        };
        let saved: Self =
            serde_json::from_value(exits).map_err(|source| Error::Json { path: path.clone(), source })?;
        let fits = || {
            if saved.depth != depth {
                return Err(Error::Depth { made_for: saved.depth, depth });
            }
            if let Calibration::Guarantee { promise, .. } = saved.calibration {
                promise.samples_needed()?;
            }
            saved.thresholds.validate(depth)
        };
        match fits() {
            Ok(()) => Ok(saved),
            Err(source) => Err(Error::InFile { path, source: source.into() }),
        }
    }
}

fn read(path: &Path) -> Result<Map<String, Value>> {
    let bytes = fs::read(path).map_err(|source| Error::Io { path: path.into(), source })?;
    serde_json::from_slice(&bytes).map_err(|source| Error::Json { path: path.into(), source })
}
