//! What this crate's tests share.
#![allow(dead_code, reason = "each test file compiles its own copy and uses a part of it")]

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    path::{Path, PathBuf},
};

use candle_core::{Device::Cpu, Tensor};
use layerwise_models::{Batch, Mlp, MlpConfig, Params, Vit, VitConfig};
use layerwise_ops::init;

pub(crate) type Result<T = ()> = std::result::Result<T, Box<dyn std::error::Error>>;

pub(crate) const CONFIG: &str = "config.json";
pub(crate) const WEIGHTS: &str = "model.safetensors";
pub(crate) const LAYERWISE: &str = "layerwise.json";
pub(crate) const INDEX: &str = "model.safetensors.index.json";

/// Three blocks, no two sizes alike, drawn as models are by default.
pub(crate) fn tiny() -> VitConfig {
    VitConfig { initializer_range: 0.02, ..layerwise_testkit::tiny_vit_config() }
}

pub(crate) fn tiny_mlp() -> MlpConfig {
    MlpConfig { inputs: 12, width: 16, layers: 3, classes: 5, ..MlpConfig::default() }
}

/// A model in which no parameter has the value it starts with, and no two layers are alike.
pub(crate) fn vit(config: VitConfig) -> Result<Vit> {
    let model = Vit::new(config, &mut init::rng(1), &Cpu)?;
    shake(model.params())?;
    Ok(model)
}

pub(crate) fn mlp(config: MlpConfig) -> Result<Mlp> {
    let model = Mlp::new(config, &mut init::rng(1), &Cpu)?;
    shake(model.params())?;
    Ok(model)
}

/// Moves every parameter, so that nothing vanishes by the symmetry of the initial values.
pub(crate) fn shake(params: &Params) -> candle_core::Result<()> {
    let mut rng = init::rng(3);
    for (_, var) in params.iter() {
        let noise = init::normal(&mut rng, var.shape(), 0.1, var.device())?;
        var.set(&(var.as_detached_tensor() + noise)?)?;
    }
    Ok(())
}

/// Random pixels for [`tiny`].
pub(crate) fn pixels(rows: usize) -> candle_core::Result<Batch> {
    Ok(init::normal(&mut init::rng(2), (rows, 3, 8, 8), 1., &Cpu)?.into())
}

/// A folder that holds [`tiny`].
pub(crate) fn saved() -> Result<tempfile::TempDir> {
    let folder = tempfile::tempdir()?;
    vit(tiny())?.save(folder.path())?;
    Ok(folder)
}

pub(crate) fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

pub(crate) type Tensors = BTreeMap<String, Tensor>;

pub(crate) fn read_tensors(file: &Path) -> candle_core::Result<Tensors> {
    Ok(candle_core::safetensors::load(file, &Cpu)?.into_iter().collect())
}

pub(crate) fn write_tensors(file: &Path, tensors: Tensors) -> candle_core::Result<()> {
    candle_core::safetensors::save(&tensors.into_iter().collect::<HashMap<_, _>>(), file)
}

/// Replaces a folder's weights by what `change` makes of them.
pub(crate) fn change_weights(folder: &Path, change: impl FnOnce(&mut Tensors)) -> Result {
    let file = folder.join(WEIGHTS);
    let mut tensors = read_tensors(&file)?;
    change(&mut tensors);
    Ok(write_tensors(&file, tensors)?)
}

/// Replaces a key of a folder's `config.json`; `Null` removes it.
pub(crate) fn change_config(folder: &Path, key: &str, value: serde_json::Value) -> Result {
    let file = folder.join(CONFIG);
    let mut config: serde_json::Map<_, _> = serde_json::from_slice(&fs::read(&file)?)?;
    match value {
        serde_json::Value::Null => config.remove(key),
        value => config.insert(key.to_owned(), value),
    };
    Ok(fs::write(file, serde_json::to_vec(&config)?)?)
}

/// Names, shapes and values of parameters.
pub(crate) type Values = Vec<(String, Vec<usize>, Vec<f32>)>;

/// For comparing models.
pub(crate) fn values(params: &Params) -> candle_core::Result<Values> {
    let values = params
        .iter()
        .map(|(name, var)| Ok((name.to_owned(), var.dims().to_vec(), var.flatten_all()?.to_vec1()?)));
    values.collect()
}
