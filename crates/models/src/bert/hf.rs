//! Hugging Face's side of a BERT: its `config.json` and its tensor names.

use std::{collections::BTreeMap, path::Path};

use serde::Deserialize;
use serde_json::{Value, json};

use super::BertConfig;
use crate::{Error, Result, checkpoint, labels};

/// The keys of a `config.json` that matter here; the others are other people's business.
#[derive(Deserialize)]
#[serde(default)]
struct HfConfig {
    model_type: String,
    vocab_size: usize,
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    intermediate_size: usize,
    hidden_act: String,
    layer_norm_eps: f64,
    hidden_dropout_prob: f64,
    attention_probs_dropout_prob: f64,
    classifier_dropout: Option<f64>,
    max_position_embeddings: usize,
    type_vocab_size: usize,
    pad_token_id: Option<usize>,
    initializer_range: f64,
    position_embedding_type: Option<String>,
    is_decoder: bool,
    num_labels: Option<usize>,
    id2label: Option<BTreeMap<usize, String>>,
}

/// What a key that a `config.json` leaves out means to Python's `BertConfig`.
impl Default for HfConfig {
    fn default() -> Self {
        let ours = BertConfig::default();
        Self {
            model_type: MODEL_TYPE.to_owned(),
            vocab_size: ours.vocab_size,
            hidden_size: ours.hidden_size,
            num_hidden_layers: ours.num_hidden_layers,
            num_attention_heads: ours.num_attention_heads,
            intermediate_size: ours.intermediate_size,
            hidden_act: ours.hidden_act.name().to_owned(),
            layer_norm_eps: ours.layer_norm_eps,
            hidden_dropout_prob: ours.hidden_dropout_prob,
            attention_probs_dropout_prob: ours.attention_probs_dropout_prob,
            classifier_dropout: None,
            max_position_embeddings: ours.max_position_embeddings,
            type_vocab_size: ours.type_vocab_size,
            pad_token_id: Some(ours.pad_token_id),
            initializer_range: ours.initializer_range,
            position_embedding_type: None,
            is_decoder: false,
            num_labels: None,
            id2label: None,
        }
    }
}

const MODEL_TYPE: &str = "bert";
const ABSOLUTE: &str = "absolute";

impl BertConfig {
    /// The configuration that a Hugging Face folder's `config.json` describes.
    ///
    /// Keys it does not know are ignored; keys that are missing have the value that Python's `BertConfig` gives them.
    ///
    /// # Errors
    ///
    /// [`Error::InFile`] around what [`validate`](Self::validate) finds, an unknown activation, relative positions, a decoder, or
    /// another `model_type`; [`Error::Io`] and [`Error::Json`] when the file cannot be read.
    pub fn from_hf(folder: &Path) -> Result<Self> {
        checkpoint::config(folder, convert)
    }

    /// The `config.json` that Python's `transformers` reads.
    #[must_use]
    pub fn to_hf(&self) -> Value {
        let mut config = json!({
            "architectures": [if self.num_labels == 0 { "BertModel" } else { "BertForSequenceClassification" }],
            "model_type": MODEL_TYPE,
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "num_hidden_layers": self.num_hidden_layers,
            "num_attention_heads": self.num_attention_heads,
            "intermediate_size": self.intermediate_size,
            "hidden_act": self.hidden_act,
            "layer_norm_eps": self.layer_norm_eps,
            "hidden_dropout_prob": self.hidden_dropout_prob,
            "attention_probs_dropout_prob": self.attention_probs_dropout_prob,
            "classifier_dropout": self.classifier_dropout,
            "max_position_embeddings": self.max_position_embeddings,
            "type_vocab_size": self.type_vocab_size,
            "pad_token_id": self.pad_token_id,
            "position_embedding_type": ABSOLUTE,
            "initializer_range": self.initializer_range,
            "torch_dtype": "float32",
        });
        if let Value::Object(config) = &mut config {
            labels::to_hf(config, self.num_labels, &self.id2label);
            if self.num_labels == 1 {
                config.insert("problem_type".to_owned(), "regression".into());
            }
        }
        config
    }
}

fn convert(hf: HfConfig) -> Result<BertConfig> {
    let unsupported = |what, expected| Err(Error::Unsupported { what, expected });
    if hf.model_type != MODEL_TYPE {
        return unsupported(format!("model_type {:?}", hf.model_type), "\"bert\"");
    }
    match hf.position_embedding_type.as_deref() {
        None | Some(ABSOLUTE) => {}
        Some(other) => return unsupported(format!("position_embedding_type {other:?}"), "\"absolute\""),
    }
    if hf.is_decoder {
        return unsupported("is_decoder".to_owned(), "an encoder");
    }
    let (num_labels, id2label) = labels::from_hf(hf.num_labels, hf.id2label);
    let config = BertConfig {
        vocab_size: hf.vocab_size,
        hidden_size: hf.hidden_size,
        num_hidden_layers: hf.num_hidden_layers,
        num_attention_heads: hf.num_attention_heads,
        intermediate_size: hf.intermediate_size,
        hidden_act: hf.hidden_act.parse()?,
        layer_norm_eps: hf.layer_norm_eps,
        hidden_dropout_prob: hf.hidden_dropout_prob,
        attention_probs_dropout_prob: hf.attention_probs_dropout_prob,
        classifier_dropout: hf.classifier_dropout,
        max_position_embeddings: hf.max_position_embeddings,
        type_vocab_size: hf.type_vocab_size,
        pad_token_id: hf.pad_token_id.unwrap_or_default(),
        initializer_range: hf.initializer_range,
        num_labels,
        id2label,
        ..BertConfig::default()
    };
    config.validate()?;
    Ok(config)
}

/// Our name (that of `BertForSequenceClassification`'s checkpoints) of a tensor in a file; `None` for a buffer of positions.
///
/// Backbones come with the prefix `bert.` or none; old files call a norm's weight and bias `gamma` and `beta`.
pub(super) fn rename(name: &str) -> Option<String> {
    let name = name.strip_prefix("bert.").unwrap_or(name);
    if ["embeddings.position_ids", "embeddings.token_type_ids"].contains(&name) {
        return None;
    }
    if !["embeddings.", "encoder.", "pooler."].iter().any(|part| name.starts_with(part)) {
        return Some(name.to_owned());
    }
    let stem = |end| name.strip_suffix(end);
    Some(match (stem("LayerNorm.gamma"), stem("LayerNorm.beta")) {
        (Some(stem), _) => format!("bert.{stem}LayerNorm.weight"),
        (_, Some(stem)) => format!("bert.{stem}LayerNorm.bias"),
        _ => format!("bert.{name}"),
    })
}
