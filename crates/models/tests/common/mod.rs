//! What this crate's tests share.
#![allow(dead_code, reason = "each test file compiles its own copy and uses a part of it")]

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    path::{Path, PathBuf},
};

use candle_core::{DType, Device::Cpu, Tensor, backprop::GradStore};
use layerwise_models::{
    Batch, Bert, BertConfig, Error, Gpt2, Gpt2Config, Mlp, MlpConfig, Params, Pass, Tapped, Vit, VitConfig,
    tap,
};
use layerwise_ops::init;
use layerwise_testkit::{assert_close, max_abs_diff};

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

/// Three blocks of odd sizes, without dropout.
pub(crate) fn tiny_bert() -> BertConfig {
    BertConfig {
        vocab_size: 31,
        hidden_size: 12,
        num_hidden_layers: 3,
        num_attention_heads: 3,
        intermediate_size: 20,
        hidden_dropout_prob: 0.,
        attention_probs_dropout_prob: 0.,
        max_position_embeddings: 9,
        num_labels: 5,
        ..BertConfig::default()
    }
}

pub(crate) fn bert(config: BertConfig) -> Result<Bert> {
    let model = Bert::new(config, &mut init::rng(1), &Cpu)?;
    shake(model.params())?;
    Ok(model)
}

/// Three samples for [`tiny_bert`], two of them padded, the last two of two segments.
pub(crate) fn words() -> candle_core::Result<Batch> {
    Ok(Batch {
        inputs: Tensor::new(&[[2u32, 30, 7, 19, 3], [2, 4, 4, 3, 0], [2, 3, 3, 0, 0]], &Cpu)?,
        mask: Some(Tensor::new(&[[1u8, 1, 1, 1, 1], [1, 1, 1, 1, 0], [1, 1, 1, 0, 0]], &Cpu)?),
        token_types: Some(Tensor::new(&[[0u32, 0, 0, 0, 0], [0, 0, 1, 1, 0], [0, 0, 1, 0, 0]], &Cpu)?),
    })
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

/// With this in its `config.json` a folder is refused, in these words and with the file's name; then it is as it was.
pub(crate) fn assert_config_refused<M>(
    folder: &Path,
    (key, value): (&str, serde_json::Value),
    says: &str,
    load: impl Fn() -> std::result::Result<M, Error>,
) -> Result {
    let config = fs::read(folder.join(CONFIG))?;
    change_config(folder, key, value)?;
    let error = load().err().ok_or_else(|| format!("{key}: it was loaded"))?;
    assert!(matches!(&error, Error::InFile { .. }), "{key}: {error:?}");
    let text = error.to_string();
    assert!(text.contains(says) && text.contains(CONFIG), "{key}: {text}");
    Ok(fs::write(folder.join(CONFIG), config)?)
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

/// At worst, the small models are off by this: 8 updates, through two sums of at most 75 terms each.
pub(crate) const WORST: f64 = 1e-4;

/// States `h^0 .. h^L` are `want`, `(L + 1, rows, tokens, width)`, and features their first tokens.
pub(crate) fn assert_states(model: &impl Tapped, batch: &Batch, want: &Tensor) -> Result {
    let got = tap::hidden_states(model, batch, Pass::EVAL)?;
    assert_eq!(got.len(), want.dim(0)?);
    for (layer, hidden) in got.iter().enumerate() {
        assert_close(&hidden.xs, &want.get(layer)?, WORST)
            .map_err(|error| format!("layer {layer}: {error}"))?;
        assert!(model.feature(hidden)?.to_vec2::<f32>()? == hidden.xs.get_on_dim(1, 0)?.to_vec2::<f32>()?);
    }
    Ok(())
}

/// Every parameter has its `gradient.` in `expected`.
pub(crate) fn assert_gradients(params: &Params, gradients: &GradStore, expected: &Tensors) -> Result {
    assert_eq!(expected.keys().filter(|name| name.starts_with("gradient.")).count(), params.len());
    for (name, var) in params.iter() {
        let want = &expected[&format!("gradient.{name}")];
        let got = gradients.get(var).ok_or_else(|| format!("no gradient for {name}"))?;
        // A key's bias moves all scores of a query alike, which softmax undoes: 0, on the scale of the query's bias.
        let scale = &expected[&format!("gradient.{}", name.replace("key.bias", "query.bias"))];
        let relative = max_abs_diff(got, want)? / largest(scale)?;
        // The worst of the way there and of the way back, 2e-4, where a gradient is a fifth of what it is the sum of.
        assert!(relative <= 1e-3, "gradient of {name} is off by {relative:e}");
    }
    Ok(())
}

/// The models in `folder`, saved under the names of `want`, have these logits in Python's transformers, too.
pub(crate) fn assert_python_agrees(inputs: Tensors, folder: &Path, want: &Tensors) -> Result {
    let Some(got) = said_by_python(inputs, folder, want.keys())? else { return Ok(()) };
    for (name, want) in want {
        // Both sides sum at most 48 terms in f32, 3 blocks deep: typically sqrt(48) * 6e-8 each, 1e-6 in all.
        assert_close(&got[name], want, 1e-5).map_err(|error| format!("{name}: {error}"))?;
    }
    Ok(())
}

/// What Python's transformers make of `inputs` with the models saved in `folder`: `NAME`, the logits, and `NAME.hidden`.
pub(crate) fn said_by_python<'a>(
    inputs: Tensors,
    folder: &Path,
    names: impl Iterator<Item = &'a String>,
) -> Result<Option<Tensors>> {
    let Some(python) = layerwise_testkit::from_env("LAYERWISE_PYTHON") else { return Ok(None) };
    let at = |name: &str| folder.join(name);
    write_tensors(&at("inputs.safetensors"), inputs)?;
    let output = std::process::Command::new(python)
        .env("HF_HUB_OFFLINE", "1")
        .arg(fixtures().join("load_hf.py"))
        .args([at("inputs.safetensors"), at("said.safetensors")])
        .args(names.map(|name| at(name)))
        .output()?;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(Some(read_tensors(&at("said.safetensors"))?))
}

/// A batch as `load_hf.py` reads it.
pub(crate) fn for_python(batch: &Batch) -> candle_core::Result<Tensors> {
    let tensors =
        [("ids", Some(&batch.inputs)), ("mask", batch.mask.as_ref()), ("types", batch.token_types.as_ref())];
    let present = tensors.into_iter().filter_map(|(name, xs)| Some((name.to_owned(), xs?)));
    present.map(|(name, xs)| Ok((name, xs.to_dtype(DType::I64)?))).collect()
}

/// Three blocks of odd sizes, without dropout.
pub(crate) fn tiny_gpt2() -> Gpt2Config {
    Gpt2Config {
        vocab_size: 31,
        n_positions: 9,
        n_embd: 12,
        n_layer: 3,
        n_head: 3,
        n_inner: Some(20),
        resid_pdrop: 0.,
        embd_pdrop: 0.,
        attn_pdrop: 0.,
        ..Gpt2Config::default()
    }
}

pub(crate) fn gpt2(config: Gpt2Config) -> Result<Gpt2> {
    let model = Gpt2::new(config, &mut init::rng(1), &Cpu)?;
    shake(model.params())?;
    Ok(model)
}

/// Largest absolute value.
pub(crate) fn largest(xs: &Tensor) -> candle_core::Result<f64> {
    max_abs_diff(xs, &xs.zeros_like()?)
}
