use serde::{Deserialize, Serialize};

use crate::{
    Activation, ExitNorm, Flops, Result,
    validate::{self, MAX_LAYERS, MAX_SIZE},
};

/// Shape of a [`Gpt2`](crate::Gpt2), under Hugging Face's names; the default is the paper's GPT-2 small.
///
/// Read from a run's own configuration, unknown keys are errors and missing ones are the paper's values. A checkpoint's
/// `config.json` is read by [`Gpt2Config::from_hf`] instead: leniently, missing keys being Hugging Face's defaults.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Gpt2Config {
    /// Pieces of the tokenizer.
    pub vocab_size: usize,
    /// Most tokens of a sample.
    pub n_positions: usize,
    /// Width of the residual stream.
    pub n_embd: usize,
    /// Number of blocks, `L`.
    pub n_layer: usize,
    /// Attention heads; divides `n_embd`.
    pub n_head: usize,
    /// Width of the blocks' inner MLP layer; `None`: four times `n_embd`.
    pub n_inner: Option<usize>,
    /// Its nonlinearity.
    pub activation_function: Activation,
    /// Dropout of both updates of a block, in `[0, 1)`.
    pub resid_pdrop: f64,
    /// Dropout of the embeddings, in `[0, 1)`.
    pub embd_pdrop: f64,
    /// Dropout of the attention probabilities, in `[0, 1)`.
    pub attn_pdrop: f64,
    /// Added to the variance in layer norms.
    pub layer_norm_epsilon: f64,
    /// Deviation of the initial weights; what is added to the residual stream starts at that over `sqrt(2 L)`.
    pub initializer_range: f64,
    /// The id that ends a text.
    pub eos_token_id: Option<u32>,
    /// The norm before inner exits (kept in `layerwise.json`). Under [`ExitNorm::Raw`] inner exits have none, as in the authors' code.
    pub exit_norm: ExitNorm,
}

impl Default for Gpt2Config {
    fn default() -> Self {
        Self {
            vocab_size: 50_257,
            n_positions: 1024,
            n_embd: 768,
            n_layer: 12,
            n_head: 12,
            n_inner: None,
            activation_function: Activation::GeluTanh,
            resid_pdrop: 0.1,
            embd_pdrop: 0.1,
            attn_pdrop: 0.1,
            layer_norm_epsilon: 1e-5,
            initializer_range: 0.02,
            eos_token_id: Some(50_256),
            exit_norm: ExitNorm::Shared,
        }
    }
}

impl Gpt2Config {
    /// Width of the blocks' inner MLP layer.
    #[must_use]
    pub fn inner(&self) -> usize {
        self.n_inner.unwrap_or(self.n_embd.saturating_mul(4))
    }

    /// Of another vocabulary; a mark of the end that is none of its words is none.
    pub(super) fn of_words(self, vocab_size: usize) -> Self {
        let eos_token_id = self.eos_token_id.filter(|id| (*id as usize) < vocab_size);
        Self { vocab_size, eos_token_id, ..self }
    }

    /// Operations for a sample of so many tokens, each of which has an answer.
    ///
    /// ```
    /// use layerwise_models::Gpt2Config;
    ///
    /// let flops = Gpt2Config::default().flops(1);
    /// assert!((5.3..5.6).contains(&(flops.exit / flops.block))); // one check costs more than five blocks
    /// ```
    #[must_use]
    pub fn flops(&self, tokens: usize) -> Flops {
        Flops {
            embed: 0.,
            block: Flops::transformer_block(tokens, self.n_embd, self.inner()),
            exit: 2. * tokens as f64 * self.n_embd as f64 * self.vocab_size as f64,
        }
    }

    /// Whether a model can have this shape.
    ///
    /// # Errors
    ///
    /// [`Error::Size`](crate::Error::Size), [`Error::HeadsDivideWidth`](crate::Error::HeadsDivideWidth) and
    /// [`Error::Range`](crate::Error::Range) naming the field.
    pub fn validate(&self) -> Result<()> {
        validate::sizes(&[
            ("vocab_size", self.vocab_size, MAX_SIZE),
            ("n_positions", self.n_positions, MAX_SIZE),
            ("n_embd", self.n_embd, MAX_SIZE),
            ("n_layer", self.n_layer, MAX_LAYERS),
            ("n_head", self.n_head, MAX_SIZE),
            ("n_inner", self.inner(), 4 * MAX_SIZE),
        ])?;
        validate::heads_divide(("n_head", self.n_head), ("n_embd", self.n_embd))?;
        validate::dropouts(&[
            ("resid_pdrop", self.resid_pdrop),
            ("embd_pdrop", self.embd_pdrop),
            ("attn_pdrop", self.attn_pdrop),
        ])?;
        validate::not_negative(&[
            ("layer_norm_epsilon", self.layer_norm_epsilon),
            ("initializer_range", self.initializer_range),
        ])
    }
}
