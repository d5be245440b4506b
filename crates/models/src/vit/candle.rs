//! candle-transformers' configuration of a ViT.

use candle_nn::Activation as Theirs;
use candle_transformers::models::vit::Config;

use super::VitConfig;
use crate::{Activation, Error, Result};

impl TryFrom<&Config> for VitConfig {
    type Error = Error;

    /// The same architecture. candle-transformers keeps the number of labels elsewhere: here it is the default, 1000.
    ///
    /// ```
    /// use candle_transformers::models::vit::Config;
    /// use layerwise_models::VitConfig;
    ///
    /// let config = VitConfig { num_labels: 10, ..(&Config::vit_base_patch16_224()).try_into()? };
    /// assert_eq!((config.hidden_size, config.num_labels), (768, 10));
    /// # Ok::<(), layerwise_models::Error>(())
    /// ```
    fn try_from(config: &Config) -> Result<Self> {
        let hidden_act = match config.hidden_act {
            Theirs::Gelu => Activation::Gelu,
            Theirs::NewGelu | Theirs::GeluPytorchTanh => Activation::GeluTanh,
            Theirs::Relu => Activation::Relu,
            Theirs::Silu | Theirs::Swish => Activation::Silu,
            other => return Err(Error::Activation { name: format!("{other:?}") }),
        };
        let config = Self {
            image_size: config.image_size,
            patch_size: config.patch_size,
            num_channels: config.num_channels,
            hidden_size: config.hidden_size,
            num_hidden_layers: config.num_hidden_layers,
            num_attention_heads: config.num_attention_heads,
            intermediate_size: config.intermediate_size,
            hidden_act,
            layer_norm_eps: config.layer_norm_eps,
            qkv_bias: config.qkv_bias,
            ..Self::default()
        };
        config.validate()?;
        Ok(config)
    }
}
