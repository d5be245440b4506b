//! GPT-2.

mod config;
mod embeddings;
mod hf;

use std::path::Path;

use candle_core::{Result as CandleResult, Tensor};
use layerwise_ops::NormPlace;
use serde_json::Value;

pub use self::config::Gpt2Config;
use self::embeddings::Embeddings;
use crate::{
    Decoder, Error, Heads, Hidden, KvCache, Next, Params, Result, Transformer,
    block::{Block, BlockSettings},
    builder::{Builder, Init},
    checkpoint::{Checkpoint, View},
    exits::ExitShape,
    transformer::{Fields, Kind},
    validate,
};

const WORDS: &str = "transformer.wte.weight";
const POSITIONS: &str = "transformer.wpe.weight";

/// A GPT-2.
///
/// Takes ids `(rows, tokens)`, u32, with a mask where texts are padded behind; every token predicts the next one, so that a feature has
/// `rows x tokens` rows, text after text. The head is the table of words, without a bias, behind the final norm.
///
/// ```
/// use candle_core::{Device::Cpu, Tensor};
/// use layerwise_models::{Batch, Gpt2, Gpt2Config, Pass, tap};
///
/// let config = Gpt2Config { vocab_size: 50, n_embd: 24, n_layer: 2, ..Default::default() };
/// let gpt2 = Gpt2::new(config, &mut layerwise_ops::init::rng(0), &Cpu)?;
/// let batch = Batch::from(Tensor::new(&[[2u32, 17, 40], [2, 9, 3]], &Cpu)?);
/// let exits = tap::layer_logits(&gpt2, &batch, Pass::EVAL)?;
/// assert_eq!((exits.len(), exits[1].dims()), (2, &[6, 50][..]));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub type Gpt2 = Transformer<Gpt2Config>;

impl Gpt2 {
    /// The same model with its first `words` words only, sharing all parameters but their table. Tables are filled up to round numbers, and
    /// rows that are no word could be said.
    ///
    /// # Errors
    ///
    /// [`Error::Size`] for none, or more than there are; [`Error::Unsupported`] for a packed model.
    ///
    /// # Example
    ///
    /// ```
    /// use candle_core::Device::Cpu;
    /// use layerwise_models::{Gpt2, Gpt2Config};
    ///
    /// let config = Gpt2Config { vocab_size: 64, n_embd: 24, n_layer: 2, ..Default::default() };
    /// let gpt2 = Gpt2::new(config, &mut layerwise_ops::init::rng(0), &Cpu)?;
    /// assert_eq!(gpt2.with_vocabulary(50)?.params().get("transformer.wte.weight").map(|table| table.dims()), Some(&[50, 24][..]));
    /// # Ok::<(), layerwise_models::Error>(())
    /// ```
    pub fn with_vocabulary(&self, words: usize) -> Result<Self> {
        validate::sizes(&[("vocab_size", words, self.config.vocab_size)])?;
        if self.exits.is_packed() {
            let what = "another vocabulary of a head that is laid out".to_owned();
            return Err(Error::Unsupported { what, expected: "a model that is not packed" });
        }
        if words == self.config.vocab_size {
            return Ok(self.clone());
        }
        let config = self.config.clone().of_words(words);
        let mut params = self.params.clone();
        if let Some(table) = self.params.master(WORDS) {
            params.renew(WORDS, &table.as_detached_tensor().narrow(0, 0, words)?)?;
        }
        let model = Self::build(config, Builder::model(&params))?.0;
        Ok(if self.frozen { model.frozen() } else { model })
    }
}

impl Kind for Gpt2Config {
    type Embeddings = Embeddings;

    const FINAL_NORM: Option<&'static str> = Some("transformer.ln_f");

    fn validate(&self) -> Result<()> {
        self.validate()
    }

    fn fields(&mut self) -> Fields<'_> {
        Fields {
            depth: &mut self.n_layer,
            exit_norm: Some(&mut self.exit_norm),
            pooling: None,
            classifier: None,
        }
    }

    fn embeddings(&self, b: &mut Builder<'_>) -> Result<Embeddings> {
        Embeddings::new(b, self)
    }

    fn block(&self, b: &mut Builder<'_>, i: usize) -> Result<Block> {
        let (width, inner, eps) = (self.n_embd, self.inner(), self.layer_norm_epsilon);
        let init = Init::TruncNormal(self.initializer_range);
        // What is added to the residual stream: its variance grows with depth.
        let added = Init::TruncNormal(self.initializer_range / (2. * self.n_layer as f64).sqrt());
        let name = |part: &str| format!("transformer.h.{i}.{part}");
        Ok(Block {
            attention_norm: b.layer_norm(&name("ln_1"), width, eps)?,
            query: b.linear(&name("attn.query"), (width, width), true, init)?,
            key: b.linear(&name("attn.key"), (width, width), true, init)?,
            value: b.linear(&name("attn.value"), (width, width), true, init)?,
            attention_output: b.linear(&name("attn.c_proj"), (width, width), true, added)?,
            feed_norm: b.layer_norm(&name("ln_2"), width, eps)?,
            up: b.linear(&name("mlp.c_fc"), (width, inner), true, init)?,
            down: b.linear(&name("mlp.c_proj"), (inner, width), true, added)?,
            settings: BlockSettings {
                norms: NormPlace::Before,
                heads: self.n_head,
                causal: true,
                activation: self.activation_function.operation(),
                hidden_dropout: self.resid_pdrop,
                attention_dropout: self.attn_pdrop,
            },
        })
    }

    fn exits(&self) -> ExitShape<'_> {
        ExitShape {
            depth: self.n_layer,
            width: self.n_embd,
            labels: self.vocab_size,
            table: Some(WORDS),
            norm: Self::FINAL_NORM.map(|name| (name, self.layer_norm_epsilon)),
            pooler: None,
            dropout: 0.,
            exit_norm: self.exit_norm,
            heads: Heads::Shared,
            init: Init::TruncNormal(self.initializer_range),
        }
    }

    fn from_hf(folder: &Path, _checkpoint: &Checkpoint) -> Result<Self> {
        Self::from_hf(folder)
    }

    fn to_hf(&self) -> Value {
        self.to_hf()
    }

    fn read(name: &str) -> Vec<(String, View)> {
        hf::read(name)
    }

    fn filed(name: &str) -> String {
        hf::filed(name)
    }

    fn written(&self, params: &Params) -> Result<Vec<(String, Tensor)>> {
        hf::written(params)
    }

    fn feature(&self, hidden: &Hidden) -> CandleResult<Tensor> {
        hidden.xs.flatten(0, 1)?.contiguous()
    }
}

impl Decoder for Gpt2 {
    fn cache(&self) -> CandleResult<KvCache> {
        let Gpt2Config { n_layer, n_embd, n_positions, .. } = self.config;
        KvCache::new(n_layer, n_embd, n_positions, self.embeddings.device())
    }

    fn embed_next(&self, texts: &[(&[u32], usize)]) -> CandleResult<Tensor> {
        self.embeddings.next(texts, &self.config).map_err(Error::into_candle)
    }

    fn block_next(&self, layer: usize, xs: &Tensor, texts: &mut [Next<'_>]) -> CandleResult<Tensor> {
        let Some(block) = layer.checked_sub(1).and_then(|i| self.blocks.get(i)) else {
            return Err(Error::Layer { layer, depth: self.blocks.len() }.into_candle());
        };
        block.next(layer, xs, texts)
    }
}
