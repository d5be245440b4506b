//! candle-transformers' configuration of a BERT.

use candle_transformers::models::bert::{Config, HiddenAct};

use super::BertConfig;
use crate::{Activation, Error, Result};

impl TryFrom<&Config> for BertConfig {
    type Error = Error;

    /// The same architecture. candle-transformers knows neither labels nor the dropout of attention: here they are the defaults, 2 and 0.1.
    ///
    /// ```
    /// use candle_transformers::models::bert::Config;
    /// use layerwise_models::BertConfig;
    ///
    /// let config = BertConfig { num_labels: 3, ..(&Config::default()).try_into()? };
    /// assert_eq!((config.hidden_size, config.num_labels), (768, 3));
    /// # Ok::<(), layerwise_models::Error>(())
    /// ```
    fn try_from(config: &Config) -> Result<Self> {
        let config = Self {
            vocab_size: config.vocab_size,
            hidden_size: config.hidden_size,
            num_hidden_layers: config.num_hidden_layers,
            num_attention_heads: config.num_attention_heads,
            intermediate_size: config.intermediate_size,
            hidden_act: match config.hidden_act {
                HiddenAct::Gelu => Activation::Gelu,
                HiddenAct::GeluApproximate => Activation::GeluTanh,
                HiddenAct::Relu => Activation::Relu,
            },
            layer_norm_eps: config.layer_norm_eps,
            hidden_dropout_prob: config.hidden_dropout_prob,
            classifier_dropout: config.classifier_dropout,
            max_position_embeddings: config.max_position_embeddings,
            type_vocab_size: config.type_vocab_size,
            pad_token_id: config.pad_token_id,
            initializer_range: config.initializer_range,
            ..Self::default()
        };
        config.validate()?;
        Ok(config)
    }
}
