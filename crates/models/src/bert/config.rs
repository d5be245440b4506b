use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    Activation, Flops, Heads, Pooling, Result, labels,
    validate::{self, MAX_LAYERS, MAX_SIZE},
};

/// Shape of a [`Bert`](crate::Bert), under Hugging Face's names; the default is the paper's BERT-base.
///
/// Read from a run's own configuration, unknown keys are errors and missing ones are the paper's values. A checkpoint's
/// `config.json` is read by [`BertConfig::from_hf`] instead: leniently, missing keys being Hugging Face's defaults.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BertConfig {
    /// Pieces of the tokenizer.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Number of blocks, `L`.
    pub num_hidden_layers: usize,
    /// Attention heads; divides `hidden_size`.
    pub num_attention_heads: usize,
    /// Width of the blocks' inner MLP layer.
    pub intermediate_size: usize,
    /// Its nonlinearity.
    pub hidden_act: Activation,
    /// Added to the variance in layer norms.
    pub layer_norm_eps: f64,
    /// Dropout of the embeddings and of both updates of a block, in `[0, 1)`.
    pub hidden_dropout_prob: f64,
    /// Dropout of the attention probabilities, in `[0, 1)`.
    pub attention_probs_dropout_prob: f64,
    /// Dropout between pooler and classifier, in `[0, 1)`; `None`: `hidden_dropout_prob`.
    pub classifier_dropout: Option<f64>,
    /// Most tokens of a sample.
    pub max_position_embeddings: usize,
    /// Segments, of which a pair of sentences has two.
    pub type_vocab_size: usize,
    /// The id of padding.
    pub pad_token_id: usize,
    /// Deviation of the initial weights.
    pub initializer_range: f64,
    /// The tokens that exits read (kept in `layerwise.json`).
    pub pooling: Pooling,
    /// Whether a model without a head has a pooler; one with a head has.
    pub pooler: bool,
    /// Number of classes; 1 for a number (regression), 0 for a model without a head.
    pub num_labels: usize,
    /// Names of the classes; empty for `LABEL_0`, `LABEL_1`, ...
    pub id2label: BTreeMap<usize, String>,
    /// Classifiers of the inner exits (kept in `layerwise.json`); the pooler before them is one for all.
    pub heads: Heads,
}

impl Default for BertConfig {
    fn default() -> Self {
        Self {
            vocab_size: 30_522,
            hidden_size: 768,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            intermediate_size: 3072,
            hidden_act: Activation::Gelu,
            layer_norm_eps: 1e-12,
            hidden_dropout_prob: 0.1,
            attention_probs_dropout_prob: 0.1,
            classifier_dropout: None,
            max_position_embeddings: 512,
            type_vocab_size: 2,
            pad_token_id: 0,
            initializer_range: 0.02,
            pooling: Pooling::Cls,
            pooler: true,
            num_labels: 2,
            id2label: BTreeMap::new(),
            heads: Heads::Shared,
        }
    }
}

impl BertConfig {
    /// Checks that the sizes fit each other.
    ///
    /// # Errors
    ///
    /// The first of [`Error::Size`](crate::Error::Size), [`Error::HeadsDivideWidth`](crate::Error::HeadsDivideWidth),
    /// [`Error::Range`](crate::Error::Range) and [`Error::Labels`](crate::Error::Labels) that applies.
    pub fn validate(&self) -> Result<()> {
        validate::sizes(&[
            ("vocab_size", self.vocab_size, 1 << 24),
            ("hidden_size", self.hidden_size, MAX_SIZE),
            ("num_hidden_layers", self.num_hidden_layers, MAX_LAYERS),
            ("num_attention_heads", self.num_attention_heads, MAX_SIZE),
            ("intermediate_size", self.intermediate_size, MAX_SIZE),
            ("max_position_embeddings", self.max_position_embeddings, MAX_SIZE),
            ("type_vocab_size", self.type_vocab_size, MAX_SIZE),
            ("num_labels", self.num_labels.max(1), MAX_SIZE),
        ])?;
        validate::heads_divide(
            ("num_attention_heads", self.num_attention_heads),
            ("hidden_size", self.hidden_size),
        )?;
        validate::dropouts(&[
            ("hidden_dropout_prob", self.hidden_dropout_prob),
            ("attention_probs_dropout_prob", self.attention_probs_dropout_prob),
            ("classifier_dropout", self.classifier_dropout.unwrap_or_default()),
        ])?;
        validate::not_negative(&[
            ("layer_norm_eps", self.layer_norm_eps),
            ("initializer_range", self.initializer_range),
        ])?;
        validate::labels(self.num_labels, &self.id2label)
    }

    /// Operations for one sample of so many tokens.
    ///
    /// ```
    /// use layerwise_models::BertConfig;
    ///
    /// let flops = BertConfig::default().flops(128); // BERT-base: 11 billion multiplications
    /// let total = flops.embed + 12. * flops.block + flops.exit;
    /// assert!((total / 2e9 - 11.2).abs() < 0.1);
    /// ```
    #[must_use]
    pub fn flops(&self, tokens: usize) -> Flops {
        let width = self.hidden_size as f64;
        Flops {
            embed: 0.,
            block: Flops::transformer_block(tokens, self.hidden_size, self.intermediate_size),
            exit: 2. * width * (width + self.num_labels as f64),
        }
    }

    /// Name of a class.
    #[must_use]
    pub fn label(&self, id: usize) -> String {
        labels::name(id, &self.id2label)
    }
}
