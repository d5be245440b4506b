//! Hugging Face's side of a ViT: its `config.json` and its tensor names.

use std::{collections::BTreeMap, path::Path};

use serde::Deserialize;
use serde_json::{Value, json};

use super::VitConfig;
use crate::{Error, Result, checkpoint, labels};

/// The keys of a `config.json` that matter here; the others are other people's business.
#[derive(Deserialize)]
#[serde(default)]
struct HfConfig {
    model_type: String,
    image_size: usize,
    patch_size: usize,
    num_channels: usize,
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    intermediate_size: usize,
    hidden_act: String,
    layer_norm_eps: f64,
    hidden_dropout_prob: f64,
    attention_probs_dropout_prob: f64,
    qkv_bias: bool,
    initializer_range: f64,
    num_labels: Option<usize>,
    id2label: Option<BTreeMap<usize, String>>,
}

/// What a key that a `config.json` leaves out means to Python's `ViTConfig`.
impl Default for HfConfig {
    fn default() -> Self {
        Self {
            model_type: "vit".to_owned(),
            image_size: 224,
            patch_size: 16,
            num_channels: 3,
            hidden_size: 768,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            intermediate_size: 3072,
            hidden_act: "gelu".to_owned(),
            layer_norm_eps: 1e-12,
            hidden_dropout_prob: 0.,
            attention_probs_dropout_prob: 0.,
            qkv_bias: true,
            initializer_range: 0.02,
            num_labels: None,
            id2label: None,
        }
    }
}

/// `model_type` and the classes without and with a classifier.
const VIT: [&str; 3] = ["vit", "ViTModel", "ViTForImageClassification"];
/// The same with a distillation token.
const DEIT: [&str; 3] = ["deit", "DeiTModel", "DeiTForImageClassification"];

impl VitConfig {
    /// The configuration that a Hugging Face folder's `config.json` describes; the exits are [`Shared`].
    ///
    /// Takes Python's ViT and `DeiT` (`distillation_token`). Keys it does not know are ignored; keys that are missing have the
    /// value that Python's `ViTConfig` gives them.
    ///
    /// [`Shared`]: crate::ExitNorm::Shared
    ///
    /// # Errors
    ///
    /// [`Error::InFile`] around what [`validate`](Self::validate) finds, an unknown activation, or another
    /// `model_type`; [`Error::Io`] and [`Error::Json`] when the file cannot be read.
    pub fn from_hf(folder: &Path) -> Result<Self> {
        checkpoint::config(folder, convert)
    }

    /// The `config.json` that Python's `transformers` reads.
    #[must_use]
    pub fn to_hf(&self) -> Value {
        let [model_type, headless, classifier] = if self.distillation_token { DEIT } else { VIT };
        let mut config = json!({
            "architectures": [if self.num_labels == 0 { headless } else { classifier }],
            "model_type": model_type,
            "image_size": self.image_size,
            "patch_size": self.patch_size,
            "num_channels": self.num_channels,
            "hidden_size": self.hidden_size,
            "num_hidden_layers": self.num_hidden_layers,
            "num_attention_heads": self.num_attention_heads,
            "intermediate_size": self.intermediate_size,
            "hidden_act": self.hidden_act,
            "layer_norm_eps": self.layer_norm_eps,
            "hidden_dropout_prob": self.hidden_dropout_prob,
            "attention_probs_dropout_prob": self.attention_probs_dropout_prob,
            "qkv_bias": self.qkv_bias,
            "initializer_range": self.initializer_range,
            "encoder_stride": self.patch_size,
            "torch_dtype": "float32",
        });
        if let Value::Object(config) = &mut config {
            labels::to_hf(config, self.num_labels, &self.id2label);
        }
        config
    }
}

fn convert(hf: HfConfig) -> Result<VitConfig> {
    if ![VIT[0], DEIT[0]].contains(&hf.model_type.as_str()) {
        let what = format!("model_type {:?}", hf.model_type);
        return Err(Error::Unsupported { what, expected: "\"vit\" or \"deit\"" });
    }
    let (num_labels, id2label) = labels::from_hf(hf.num_labels, hf.id2label);
    let config = VitConfig {
        image_size: hf.image_size,
        patch_size: hf.patch_size,
        num_channels: hf.num_channels,
        hidden_size: hf.hidden_size,
        num_hidden_layers: hf.num_hidden_layers,
        num_attention_heads: hf.num_attention_heads,
        intermediate_size: hf.intermediate_size,
        hidden_act: hf.hidden_act.parse()?,
        layer_norm_eps: hf.layer_norm_eps,
        hidden_dropout_prob: hf.hidden_dropout_prob,
        attention_probs_dropout_prob: hf.attention_probs_dropout_prob,
        qkv_bias: hf.qkv_bias,
        initializer_range: hf.initializer_range,
        distillation_token: hf.model_type == DEIT[0],
        num_labels,
        id2label,
        ..VitConfig::default()
    };
    config.validate()?;
    Ok(config)
}

/// The name of a tensor of ours in a file: Python's `DeiT` has its own prefix.
pub(super) fn original(name: &str, config: &VitConfig) -> String {
    match name.strip_prefix("vit.").filter(|_| config.distillation_token) {
        Some(rest) => format!("deit.{rest}"),
        None => name.to_owned(),
    }
}

/// Our name (that of `ViTForImageClassification`'s checkpoints) of a tensor in a file.
///
/// Backbones come with the prefix `vit.`, `deit.` or none; old files call a norm's weight and bias `gamma` and `beta`;
/// version 5 of Python's `transformers` has other names in memory, which some files keep.
pub(super) fn rename(name: &str) -> String {
    let name = name.strip_prefix("vit.").or_else(|| name.strip_prefix("deit.")).unwrap_or(name);
    let backbone = ["embeddings.", "encoder.", "layers.", "layernorm.", "pooler."];
    if !backbone.iter().any(|part| name.starts_with(part)) {
        return name.to_owned();
    }
    let mut name = format!("vit.{name}");
    for (end, ours) in [(".gamma", ".weight"), (".beta", ".bias")] {
        if let Some(stem) = name.strip_suffix(end) {
            name = format!("{stem}{ours}");
        }
    }
    match name.strip_prefix("vit.layers.") {
        Some(rest) => {
            let parts = [
                ("attention.q_proj", "attention.attention.query"),
                ("attention.k_proj", "attention.attention.key"),
                ("attention.v_proj", "attention.attention.value"),
                ("attention.o_proj", "attention.output.dense"),
                ("mlp.fc1", "intermediate.dense"),
                ("mlp.fc2", "output.dense"),
            ];
            let rest = parts.iter().fold(rest.to_owned(), |rest, (theirs, ours)| rest.replace(theirs, ours));
            format!("vit.encoder.layer.{rest}")
        }
        None => name,
    }
}
