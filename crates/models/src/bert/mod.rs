//! BERT.

#[cfg(feature = "candle-transformers")]
mod candle;
mod config;
mod embeddings;
mod hf;

use std::path::Path;

use candle_core::{Result as CandleResult, Tensor};
use layerwise_ops::NormPlace;
use serde_json::Value;

pub use self::config::BertConfig;
use self::embeddings::Embeddings;
use crate::{
    Error, ExitNorm, Hidden, Result, Transformer,
    block::{Block, BlockSettings},
    builder::{Builder, Init},
    checkpoint::{Checkpoint, View},
    exits::ExitShape,
    transformer::{Classifier, Fields, Kind},
};

const POOLER: &str = "bert.pooler.dense";

/// A BERT.
///
/// Takes ids `(rows, tokens)`, u32, with a mask of padding and the segments of a pair; predicts from the `[CLS]` token, or from the mean of all
/// ([`Pooling`](crate::Pooling)), by pooler (a linear map and a tanh) and classifier, both shared by all exits. Each block ends in a norm, so exits have none of their own.
///
/// ```
/// use candle_core::{Device::Cpu, Tensor};
/// use layerwise_models::{Batch, Bert, BertConfig, Pass, tap};
///
/// let config = BertConfig { vocab_size: 50, hidden_size: 24, num_hidden_layers: 2, ..Default::default() };
/// let bert = Bert::new(config, &mut layerwise_ops::init::rng(0), &Cpu)?;
/// let batch = Batch {
///     inputs: Tensor::new(&[[2u32, 17, 40, 3], [2, 9, 3, 0]], &Cpu)?,
///     mask: Some(Tensor::new(&[[1u8, 1, 1, 1], [1, 1, 1, 0]], &Cpu)?),
///     token_types: None,
/// };
/// let exits = tap::layer_logits(&bert, &batch, Pass::EVAL)?;
/// assert_eq!((exits.len(), exits[1].dims()), (2, &[2, 2][..]));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub type Bert = Transformer<BertConfig>;

impl Bert {
    /// What the classifier reads of a [`feature`](crate::Tapped::feature) `(rows, width)`: `tanh(x W^T + b)`, of the same shape.
    ///
    /// # Errors
    ///
    /// [`Error::Unsupported`] for a model without a pooler; when the shapes do not fit.
    pub fn pooled(&self, feature: &Tensor) -> Result<Tensor> {
        let missing =
            || Error::Unsupported { what: "a pooled output".to_owned(), expected: "a model with a pooler" };
        self.exits.pooled(feature).ok_or_else(missing)?
    }
}

impl Kind for BertConfig {
    type Embeddings = Embeddings;

    const FINAL_NORM: Option<&'static str> = None;

    fn validate(&self) -> Result<()> {
        self.validate()
    }

    fn fields(&mut self) -> Fields<'_> {
        Fields {
            depth: &mut self.num_hidden_layers,
            exit_norm: None,
            pooling: Some(&mut self.pooling),
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
        let Self { hidden_size: width, intermediate_size: inner, layer_norm_eps: eps, .. } = *self;
        let init = Init::TruncNormal(self.initializer_range);
        let name = |part: &str| format!("bert.encoder.layer.{i}.{part}");
        Ok(Block {
            query: b.linear(&name("attention.self.query"), (width, width), true, init)?,
            key: b.linear(&name("attention.self.key"), (width, width), true, init)?,
            value: b.linear(&name("attention.self.value"), (width, width), true, init)?,
            attention_output: b.linear(&name("attention.output.dense"), (width, width), true, init)?,
            attention_norm: b.layer_norm(&name("attention.output.LayerNorm"), width, eps)?,
            up: b.linear(&name("intermediate.dense"), (width, inner), true, init)?,
            down: b.linear(&name("output.dense"), (inner, width), true, init)?,
            feed_norm: b.layer_norm(&name("output.LayerNorm"), width, eps)?,
            settings: BlockSettings {
                norms: NormPlace::After,
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
            norm: None,
            pooler: (self.pooler || self.num_labels > 0).then_some(POOLER),
            dropout: self.classifier_dropout.unwrap_or(self.hidden_dropout_prob),
            exit_norm: ExitNorm::Raw,
            heads: self.heads,
            init: Init::TruncNormal(self.initializer_range),
        }
    }

    fn from_hf(folder: &Path, checkpoint: &Checkpoint) -> Result<Self> {
        let pooler = checkpoint.contains(&format!("{POOLER}.weight"));
        Ok(Self { pooler, ..Self::from_hf(folder)? })
    }

    fn to_hf(&self) -> Value {
        self.to_hf()
    }

    fn feature(&self, hidden: &Hidden) -> CandleResult<Tensor> {
        self.pooling.feature(hidden)
    }

    fn read(name: &str) -> Vec<(String, View)> {
        hf::rename(name).map(|name| (name, View::Whole)).into_iter().collect()
    }
}
