//! The vision transformer, and the `DeiT` that shares its architecture.

#[cfg(feature = "candle-transformers")]
mod candle;
mod config;
mod embeddings;
mod hf;
mod positions;

use std::path::Path;

use candle_core::Tensor;
use layerwise_ops::NormPlace;
use serde_json::Value;

pub use self::config::VitConfig;
use self::embeddings::Embeddings;
use crate::{
    Params, Result, Transformer,
    block::{Block, BlockSettings},
    builder::{Builder, Init},
    checkpoint::{Checkpoint, View, whole},
    exits::ExitShape,
    transformer::{Classifier, Fields, Kind},
};

/// Name of the positions of all tokens.
const POSITIONS: &str = "vit.embeddings.position_embeddings";

/// A vision transformer (ViT, `DeiT`).
///
/// Takes pixels `(rows, channels, size, size)`, f32; predicts from the `[CLS]` token.
pub type Vit = Transformer<VitConfig>;

impl Vit {
    /// The same model for square images of another size: positions of patches are resampled by a bicubic filter, as Hugging
    /// Face's `interpolate_pos_encoding` does, once; all other parameters are shared with this model.
    ///
    /// Fewer patches cost less: at 56 pixels a ViT-S/14 has 17 tokens, at 224 it has 257.
    ///
    /// # Errors
    ///
    /// As [`VitConfig::validate`], when patches do not divide the size.
    ///
    /// # Example
    ///
    /// ```
    /// use candle_core::Device::Cpu;
    /// use layerwise_models::{Vit, VitConfig};
    ///
    /// let config = VitConfig { image_size: 32, hidden_size: 24, num_hidden_layers: 2, ..Default::default() };
    /// let vit = Vit::new(config, &mut layerwise_ops::init::rng(0), &Cpu)?;
    /// assert_eq!(vit.resized(64)?.config().tokens(), 17); // patches of 16 pixels: 4 x 4 of them, and the class token
    /// # Ok::<(), layerwise_models::Error>(())
    /// ```
    pub fn resized(&self, image_size: usize) -> Result<Self> {
        let config = VitConfig { image_size, ..self.config.clone() };
        config.validate()?;
        let [from, to] = [&self.config, &config].map(|config| config.image_size / config.patch_size);
        let mut params = self.params.clone();
        if let Some(positions) = self.params.master(POSITIONS).filter(|_| from != to) {
            let leading = config.tokens() - config.patches();
            params.renew(
                POSITIONS,
                &positions::resampled(&positions.as_detached_tensor(), leading, from, to)?,
            )?;
        }
        let model = Self::build(config, Builder::model(&params))?.0;
        if !self.frozen {
            return Ok(model);
        }
        // The same blocks, packed ones too.
        Ok(Self { blocks: self.blocks.clone(), exits: self.exits.clone(), ..model.frozen() })
    }
}

impl Kind for VitConfig {
    type Embeddings = Embeddings;

    const FINAL_NORM: Option<&'static str> = Some("vit.layernorm");

    fn validate(&self) -> Result<()> {
        self.validate()
    }

    fn fields(&mut self) -> Fields<'_> {
        Fields {
            depth: &mut self.num_hidden_layers,
            exit_norm: Some(&mut self.exit_norm),
            pooling: None,
            classifier: Some(Classifier {
                labels: &mut self.num_labels,
                names: &mut self.id2label,
                heads: &mut self.heads,
            }),
        }
    }

    fn embeddings(&self, b: &mut Builder<'_>) -> Result<Embeddings> {
        Embeddings::new(b, self)
    }

    fn block(&self, b: &mut Builder<'_>, i: usize) -> Result<Block> {
        let VitConfig { hidden_size: width, intermediate_size: inner, layer_norm_eps: eps, .. } = *self;
        let init = Init::TruncNormal(self.initializer_range);
        let name = |part: &str| format!("vit.encoder.layer.{i}.{part}");
        Ok(Block {
            attention_norm: b.layer_norm(&name("layernorm_before"), width, eps)?,
            query: b.linear(&name("attention.attention.query"), (width, width), self.qkv_bias, init)?,
            key: b.linear(&name("attention.attention.key"), (width, width), self.qkv_bias, init)?,
            value: b.linear(&name("attention.attention.value"), (width, width), self.qkv_bias, init)?,
            attention_output: b.linear(&name("attention.output.dense"), (width, width), true, init)?,
            feed_norm: b.layer_norm(&name("layernorm_after"), width, eps)?,
            up: b.linear(&name("intermediate.dense"), (width, inner), true, init)?,
            down: b.linear(&name("output.dense"), (inner, width), true, init)?,
            settings: BlockSettings {
                norms: NormPlace::Before,
                heads: self.num_attention_heads,
                causal: false,
                activation: self.hidden_act.operation(),
                hidden_dropout: self.hidden_dropout_prob,
                attention_dropout: self.attention_probs_dropout_prob,
            },
        })
    }

    fn exits(&self) -> ExitShape<'_> {
        ExitShape {
            depth: self.num_hidden_layers,
            width: self.hidden_size,
            labels: self.num_labels,
            table: None,
            norm: Self::FINAL_NORM.map(|name| (name, self.layer_norm_eps)),
            pooler: None,
            dropout: 0.,
            exit_norm: self.exit_norm,
            heads: self.heads,
            init: Init::TruncNormal(self.initializer_range),
        }
    }

    fn from_hf(folder: &Path, checkpoint: &Checkpoint) -> Result<Self> {
        // DeiT's converted without distillation keep their `model_type` here and there.
        let distillation_token = checkpoint.contains("vit.embeddings.distillation_token");
        Ok(Self { distillation_token, ..Self::from_hf(folder)? })
    }

    fn to_hf(&self) -> Value {
        self.to_hf()
    }

    fn read(name: &str) -> Vec<(String, View)> {
        whole(&hf::rename(name))
    }

    fn written(&self, params: &Params) -> Result<Vec<(String, Tensor)>> {
        Ok(params.renamed(|name| hf::original(name, self)))
    }
}
