//! The vision transformer, and the `DeiT` that shares its architecture.

#[cfg(feature = "candle-transformers")]
mod candle;
mod config;
mod embeddings;
mod hf;
mod io;
mod positions;

use candle_core::{Device, Result as CandleResult, Tensor, Var};
use layerwise_ops::init::ChaCha8Rng;

use self::embeddings::Embeddings;
pub use self::{
    config::VitConfig,
    io::{Head, LoadOptions},
};
use crate::{
    Batch, Error, Hidden, Params, Pass, Result, Tapped,
    block::{Block, BlockSettings},
    builder::{Builder, Built, Init},
    exits::{ExitShape, Exits},
};

/// Name of the norm that a model has anyway.
const FINAL_NORM: &str = "vit.layernorm";
/// Name of the positions of all tokens.
const POSITIONS: &str = "vit.embeddings.position_embeddings";

/// A vision transformer (ViT, `DeiT`), tapped after every block; its parameters bear Hugging Face's names.
///
/// Takes pixels `(rows, channels, size, size)`, f32; predicts from the `[CLS]` token. A clone shares its weights with the
/// original; [`copied`](Vit::copied) has its own.
#[derive(Clone, Debug)]
pub struct Vit {
    config: VitConfig,
    params: Params,
    embeddings: Embeddings,
    blocks: Vec<Block>,
    exits: Exits,
    frozen: bool,
}

impl Vit {
    /// A model with random weights: truncated normal of deviation `initializer_range`, zero biases, unit norms.
    ///
    /// # Errors
    ///
    /// When [`VitConfig::validate`] finds fault, or the device cannot allocate.
    pub fn new(config: VitConfig, rng: &mut ChaCha8Rng, device: &Device) -> Result<Self> {
        Ok(Self::build(config, Builder::random(rng, device))?.0)
    }

    /// Shape, labels and exits of the model.
    #[must_use]
    pub fn config(&self) -> &VitConfig {
        &self.config
    }

    /// The trainable parameters.
    #[must_use]
    pub fn params(&self) -> &Params {
        &self.params
    }

    /// The same weights, in the same memory, recording no graph: for evaluation and serving.
    ///
    /// Later updates of the parameters are seen by the frozen model.
    #[must_use]
    pub fn frozen(&self) -> Self {
        Self {
            config: self.config.clone(),
            params: self.params.clone(),
            embeddings: self.embeddings.detached(),
            blocks: self.blocks.iter().map(Block::detached).collect(),
            exits: self.exits.detached(),
            frozen: true,
        }
    }

    /// The same model for serving: frozen, a copy whose weights are laid out for matrix products once instead of at each of
    /// them. The fewer rows a batch has, the more that saves. Until this model is dropped, the weights are in memory three
    /// times.
    ///
    /// Later updates of this model's parameters are not seen. Leave those of the packed model as they are: what is laid out
    /// would not follow.
    ///
    /// # Errors
    ///
    /// When the device cannot allocate.
    pub fn packed(&self) -> Result<Self> {
        let mut packed = self.copied()?.frozen();
        packed.blocks.iter_mut().try_for_each(Block::pack)?;
        packed.exits.pack()?;
        Ok(packed)
    }

    /// The same model with weights of its own: train it, and this one stays as it is.
    ///
    /// # Errors
    ///
    /// When the device cannot allocate.
    pub fn copied(&self) -> Result<Self> {
        Ok(Self::build(self.config.clone(), Builder::model(&self.params.copied()?))?.0)
    }

    /// The same model under other names of its classes; empty for `LABEL_0`, `LABEL_1`, ...
    ///
    /// # Errors
    ///
    /// [`Error::Labels`] unless there are as many names as classes.
    pub fn with_labels(self, names: impl IntoIterator<Item = String>) -> Result<Self> {
        let config = VitConfig { id2label: names.into_iter().enumerate().collect(), ..self.config };
        config.validate()?;
        Ok(Self { config, ..self })
    }

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
        if from != to {
            let leading = config.tokens() - config.patches();
            let positions = positions::resampled(&self.embeddings.positions.detach(), leading, from, to)?;
            params.insert(POSITIONS, Var::from_tensor(&positions)?);
        }
        let model = Self::build(config, Builder::model(&params))?.0;
        if !self.frozen {
            return Ok(model);
        }
        // The same blocks, packed ones too.
        Ok(Self { blocks: self.blocks.clone(), exits: self.exits.clone(), ..model.frozen() })
    }

    fn build(config: VitConfig, mut b: Builder<'_>) -> Result<(Self, Built)> {
        config.validate()?;
        let embeddings = Embeddings::new(&mut b, &config)?;
        let blocks =
            (0..config.num_hidden_layers).map(|i| block(&mut b, &config, i)).collect::<Result<_>>()?;
        let shape = ExitShape {
            depth: config.num_hidden_layers,
            width: config.hidden_size,
            labels: config.num_labels,
            norm: Some((FINAL_NORM, config.layer_norm_eps)),
            exit_norm: config.exit_norm,
            heads: config.heads,
            init: Init::TruncNormal(config.initializer_range),
        };
        let exits = Exits::new(&mut b, &shape)?;
        let built = b.finish()?;
        let params = built.params.clone();
        Ok((Self { config, params, embeddings, blocks, exits, frozen: false }, built))
    }
}

impl Tapped for Vit {
    fn depth(&self) -> usize {
        self.blocks.len()
    }

    fn embed(&self, batch: &Batch, pass: Pass) -> CandleResult<Hidden> {
        self.embeddings.forward(batch, &self.config, pass).map_err(Error::into_candle)
    }

    fn block(&self, layer: usize, hidden: &Hidden, pass: Pass) -> CandleResult<Hidden> {
        let Some(block) = layer.checked_sub(1).and_then(|i| self.blocks.get(i)) else {
            return Err(Error::Layer { layer, depth: self.depth() }.into_candle());
        };
        block.forward(layer, hidden, pass)
    }

    fn feature(&self, hidden: &Hidden) -> CandleResult<Tensor> {
        hidden.xs.narrow(1, 0, 1)?.squeeze(1)?.contiguous()
    }

    fn exit(&self, layer: usize, feature: &Tensor) -> CandleResult<Tensor> {
        self.exits.forward(layer, feature).map_err(Error::into_candle)
    }

    fn answer(&self, layer: usize, hidden: &Hidden) -> CandleResult<Tensor> {
        match self.exits.packed(layer) {
            Some(packed) => packed.forward(&hidden.xs),
            None => Ok(self.exit(layer, &self.feature(hidden)?)?.detach()),
        }
    }
}

/// Block `i`, counted from 0 as in the checkpoint.
fn block(b: &mut Builder<'_>, config: &VitConfig, i: usize) -> Result<Block> {
    let VitConfig { hidden_size: width, intermediate_size: inner, layer_norm_eps: eps, .. } = *config;
    let init = Init::TruncNormal(config.initializer_range);
    let name = |part: &str| format!("vit.encoder.layer.{i}.{part}");
    Ok(Block {
        norm_before: b.layer_norm(&name("layernorm_before"), width, eps)?,
        query: b.linear(&name("attention.attention.query"), (width, width), config.qkv_bias, init)?,
        key: b.linear(&name("attention.attention.key"), (width, width), config.qkv_bias, init)?,
        value: b.linear(&name("attention.attention.value"), (width, width), config.qkv_bias, init)?,
        attention_output: b.linear(&name("attention.output.dense"), (width, width), true, init)?,
        norm_after: b.layer_norm(&name("layernorm_after"), width, eps)?,
        up: b.linear(&name("intermediate.dense"), (width, inner), true, init)?,
        down: b.linear(&name("output.dense"), (inner, width), true, init)?,
        settings: BlockSettings {
            heads: config.num_attention_heads,
            causal: false,
            activation: config.hidden_act.operation(),
            hidden_dropout: config.hidden_dropout_prob,
            attention_dropout: config.attention_probs_dropout_prob,
        },
    })
}
