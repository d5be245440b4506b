//! Hugging Face's side of a GPT-2: its `config.json`, and its tensors, whose matrices are `(inputs, outputs)` and whose query, key and value are one.

use std::path::Path;

use candle_core::Tensor;
use serde::Deserialize;
use serde_json::{Value, json};

use super::Gpt2Config;
use crate::{
    Error, Params, Result,
    checkpoint::{self, View},
};

/// The keys of a `config.json` that matter here; the others are other people's business.
#[derive(Deserialize)]
#[serde(default)]
struct HfConfig {
    model_type: String,
    vocab_size: usize,
    n_positions: usize,
    n_embd: usize,
    n_layer: usize,
    n_head: usize,
    n_inner: Option<usize>,
    activation_function: String,
    resid_pdrop: f64,
    embd_pdrop: f64,
    attn_pdrop: f64,
    layer_norm_epsilon: f64,
    initializer_range: f64,
    eos_token_id: Option<u32>,
    tie_word_embeddings: bool,
    scale_attn_weights: bool,
    scale_attn_by_inverse_layer_idx: bool,
    add_cross_attention: bool,
}

/// What a key that a `config.json` leaves out means to Python's `GPT2Config`.
impl Default for HfConfig {
    fn default() -> Self {
        let ours = Gpt2Config::default();
        Self {
            model_type: MODEL_TYPE.to_owned(),
            vocab_size: ours.vocab_size,
            n_positions: ours.n_positions,
            n_embd: ours.n_embd,
            n_layer: ours.n_layer,
            n_head: ours.n_head,
            n_inner: ours.n_inner,
            activation_function: ours.activation_function.name().to_owned(),
            resid_pdrop: ours.resid_pdrop,
            embd_pdrop: ours.embd_pdrop,
            attn_pdrop: ours.attn_pdrop,
            layer_norm_epsilon: ours.layer_norm_epsilon,
            initializer_range: ours.initializer_range,
            eos_token_id: ours.eos_token_id,
            tie_word_embeddings: true,
            scale_attn_weights: true,
            scale_attn_by_inverse_layer_idx: false,
            add_cross_attention: false,
        }
    }
}

const MODEL_TYPE: &str = "gpt2";

impl Gpt2Config {
    /// The configuration that a Hugging Face folder's `config.json` describes; the exits are [`Shared`].
    ///
    /// Keys it does not know are ignored; keys that are missing have the value that Python's `GPT2Config` gives them. An `eos_token_id` that is no row of
    /// the table is none.
    ///
    /// [`Shared`]: crate::ExitNorm::Shared
    ///
    /// # Errors
    ///
    /// [`Error::InFile`] around what [`validate`](Self::validate) finds, an unknown activation, a head that is not the table of words, attention
    /// that is scaled otherwise or crosses to an encoder, or another `model_type`; [`Error::Io`] and [`Error::Json`] when the file cannot be read.
    pub fn from_hf(folder: &Path) -> Result<Self> {
        checkpoint::config(folder, convert)
    }

    /// The `config.json` that Python's `transformers` reads.
    #[must_use]
    pub fn to_hf(&self) -> Value {
        json!({
            "architectures": ["GPT2LMHeadModel"],
            "model_type": MODEL_TYPE,
            "vocab_size": self.vocab_size,
            "n_positions": self.n_positions,
            "n_ctx": self.n_positions,
            "n_embd": self.n_embd,
            "n_layer": self.n_layer,
            "n_head": self.n_head,
            "n_inner": self.n_inner,
            "activation_function": self.activation_function,
            "resid_pdrop": self.resid_pdrop,
            "embd_pdrop": self.embd_pdrop,
            "attn_pdrop": self.attn_pdrop,
            "layer_norm_epsilon": self.layer_norm_epsilon,
            "initializer_range": self.initializer_range,
            "bos_token_id": self.eos_token_id,
            "eos_token_id": self.eos_token_id,
            "torch_dtype": "float32",
        })
    }
}

fn convert(hf: HfConfig) -> Result<Gpt2Config> {
    let unsupported = |what: &str, expected| Err(Error::Unsupported { what: what.to_owned(), expected });
    if hf.model_type != MODEL_TYPE {
        return unsupported(&format!("model_type {:?}", hf.model_type), "\"gpt2\"");
    }
    if !hf.tie_word_embeddings {
        return unsupported("tie_word_embeddings false", "a head that is the table of words");
    }
    if !hf.scale_attn_weights || hf.scale_attn_by_inverse_layer_idx {
        return unsupported("scale_attn_weights, scale_attn_by_inverse_layer_idx", "true and false");
    }
    if hf.add_cross_attention {
        return unsupported("add_cross_attention", "a decoder without an encoder");
    }
    let config = Gpt2Config {
        n_positions: hf.n_positions,
        n_embd: hf.n_embd,
        n_layer: hf.n_layer,
        n_head: hf.n_head,
        n_inner: hf.n_inner,
        activation_function: hf.activation_function.parse()?,
        resid_pdrop: hf.resid_pdrop,
        embd_pdrop: hf.embd_pdrop,
        attn_pdrop: hf.attn_pdrop,
        layer_norm_epsilon: hf.layer_norm_epsilon,
        initializer_range: hf.initializer_range,
        eos_token_id: hf.eos_token_id,
        ..Gpt2Config::default()
    };
    let config = config.of_words(hf.vocab_size);
    config.validate()?;
    Ok(config)
}

const FUSED: &str = "attn.c_attn";
const APART: [&str; 3] = ["attn.query", "attn.key", "attn.value"];
const MATRICES: [&str; 3] = ["attn.c_proj", "mlp.c_fc", "mlp.c_proj"];

/// What of ours a tensor in a file is: nothing for the triangle of a causal mask, and for a head that is the table of words once more.
///
/// Backbones come with the prefix `transformer.` or none.
pub(super) fn read(name: &str) -> Vec<(String, View)> {
    let plain = name.strip_prefix("transformer.").unwrap_or(name);
    if name == "lm_head.weight" || plain.ends_with(".attn.bias") || plain.ends_with(".attn.masked_bias") {
        return Vec::new();
    }
    if !["wte.", "wpe.", "h.", "ln_f."].iter().any(|part| plain.starts_with(part)) {
        return checkpoint::whole(name);
    }
    let ours = format!("transformer.{plain}");
    let of = |part: &str| ours.contains(&format!(".{part}."));
    if of(FUSED) {
        let each = |(part, apart)| (ours.replace(FUSED, apart), View::Columns { part, of: APART.len() });
        return APART.into_iter().enumerate().map(each).collect();
    }
    let transposed = ours.ends_with(".weight") && MATRICES.iter().any(|part| of(part));
    vec![(ours, if transposed { View::Columns { part: 0, of: 1 } } else { View::Whole })]
}

/// The tensor in a file that a parameter of ours is made of.
pub(super) fn filed(name: &str) -> String {
    APART.into_iter().fold(name.to_owned(), |name, apart| name.replace(apart, FUSED))
}

/// The tensors of a file: query, key and value in one, matrices transposed.
pub(super) fn written(params: &Params) -> Result<Vec<(String, Tensor)>> {
    let matrix = |tensor: &Tensor| match tensor.rank() {
        2 => tensor.t()?.contiguous(),
        _ => Ok(tensor.clone()),
    };
    let mut tensors = Vec::new();
    for (name, tensor) in params.renamed(str::to_owned) {
        let of = |part: &str| name.contains(&format!(".{part}."));
        if of(APART[0]) {
            let parts = APART.map(|apart| params.get(&name.replace(APART[0], apart)));
            let parts: Vec<Tensor> = parts
                .into_iter()
                .flatten()
                .map(|var| matrix(&var.as_detached_tensor()))
                .collect::<Result<_, _>>()?;
            let fused = Tensor::cat(&parts, parts[0].rank() - 1)?;
            tensors.push((name.replace(APART[0], FUSED), fused));
        } else if MATRICES.iter().any(|part| of(part)) {
            tensors.push((name.clone(), matrix(&tensor)?));
        } else if !APART[1..].iter().any(|part| of(part)) {
            tensors.push((name, tensor));
        }
    }
    Ok(tensors)
}
