use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    Activation, Error, ExitNorm, Flops, Heads, Result, labels,
    validate::{self, MAX_LAYERS, MAX_SIZE},
};

/// Shape of a [`Vit`](crate::Vit), under Hugging Face's names; the default is the paper's `DeiT-S` on `ImageNet`.
///
/// Read from a run's own configuration, unknown keys are errors and missing ones are the paper's values. A
/// checkpoint's `config.json` is read by [`VitConfig::from_hf`] instead: leniently, missing keys being Hugging Face's
/// defaults.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct VitConfig {
    /// Edge of the square image, in pixels.
    pub image_size: usize,
    /// Edge of a patch, in pixels; divides `image_size`.
    pub patch_size: usize,
    /// Channels of the image.
    pub num_channels: usize,
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
    /// Added to the variance in layer norms. Hugging Face's ViT has 1e-12, timm's `DeiT` 1e-6.
    pub layer_norm_eps: f64,
    /// Dropout of the embeddings and of both updates of a block, in `[0, 1)`.
    pub hidden_dropout_prob: f64,
    /// Dropout of the attention probabilities, in `[0, 1)`.
    pub attention_probs_dropout_prob: f64,
    /// Whether query, key and value have biases.
    pub qkv_bias: bool,
    /// Deviation of the initial weights.
    pub initializer_range: f64,
    /// Whether a distillation token stands behind the class token, as in Hugging Face's `deit` models. Predictions read the
    /// class token.
    pub distillation_token: bool,
    /// Number of classes; 0 for a model without a head.
    pub num_labels: usize,
    /// Names of the classes; empty for `LABEL_0`, `LABEL_1`, ...
    pub id2label: BTreeMap<usize, String>,
    /// Norm before the inner exits (kept in `layerwise.json`).
    pub exit_norm: ExitNorm,
    /// Classifiers of the inner exits (kept in `layerwise.json`).
    pub heads: Heads,
}

impl Default for VitConfig {
    fn default() -> Self {
        Self {
            image_size: 224,
            patch_size: 16,
            num_channels: 3,
            hidden_size: 384,
            num_hidden_layers: 12,
            num_attention_heads: 6,
            intermediate_size: 1536,
            hidden_act: Activation::Gelu,
            layer_norm_eps: 1e-12,
            hidden_dropout_prob: 0.,
            attention_probs_dropout_prob: 0.,
            qkv_bias: true,
            initializer_range: 0.02,
            distillation_token: false,
            num_labels: 1000,
            id2label: BTreeMap::new(),
            exit_norm: ExitNorm::Shared,
            heads: Heads::Shared,
        }
    }
}

impl VitConfig {
    /// Checks that the sizes fit each other.
    ///
    /// # Errors
    ///
    /// The first of [`Error::Size`], [`Error::HeadsDivideWidth`], [`Error::PatchDividesImage`], [`Error::Range`] and
    /// [`Error::Labels`] that applies.
    pub fn validate(&self) -> Result<()> {
        validate::sizes(&[
            ("image_size", self.image_size, 1 << 15),
            ("patch_size", self.patch_size, 1 << 15),
            ("num_channels", self.num_channels, 1 << 10),
            ("hidden_size", self.hidden_size, MAX_SIZE),
            ("num_hidden_layers", self.num_hidden_layers, MAX_LAYERS),
            ("num_attention_heads", self.num_attention_heads, MAX_SIZE),
            ("intermediate_size", self.intermediate_size, MAX_SIZE),
            ("num_labels", self.num_labels.max(1), MAX_SIZE),
        ])?;
        validate::heads_divide(
            ("num_attention_heads", self.num_attention_heads),
            ("hidden_size", self.hidden_size),
        )?;
        let (patch, image) = (self.patch_size, self.image_size);
        if image % patch != 0 {
            return Err(Error::PatchDividesImage { patch, image });
        }
        validate::dropouts(&[
            ("hidden_dropout_prob", self.hidden_dropout_prob),
            ("attention_probs_dropout_prob", self.attention_probs_dropout_prob),
        ])?;
        validate::not_negative(&[
            ("layer_norm_eps", self.layer_norm_eps),
            ("initializer_range", self.initializer_range),
        ])?;
        validate::labels(self.num_labels, &self.id2label)
    }

    /// Number of patches of an image.
    #[must_use]
    pub fn patches(&self) -> usize {
        (self.image_size / self.patch_size.max(1)).pow(2)
    }

    /// Number of tokens: class token, distillation token if there is one, patches.
    #[must_use]
    pub fn tokens(&self) -> usize {
        1 + usize::from(self.distillation_token) + self.patches()
    }

    /// Operations for one image.
    ///
    /// ```
    /// use layerwise_models::VitConfig;
    ///
    /// let flops = VitConfig::default().flops(); // DeiT-S: 4.6 billion multiplications
    /// let total = flops.embed + 12. * flops.block + flops.exit;
    /// assert!((total / 2e9 - 4.6).abs() < 0.05);
    /// ```
    #[must_use]
    pub fn flops(&self) -> Flops {
        let patch = (self.num_channels * self.patch_size.pow(2)) as f64;
        let width = self.hidden_size as f64;
        Flops {
            embed: 2. * self.patches() as f64 * patch * width,
            block: Flops::transformer_block(self.tokens(), self.hidden_size, self.intermediate_size),
            exit: 2. * width * self.num_labels as f64,
        }
    }

    /// Name of a class.
    #[must_use]
    pub fn label(&self, id: usize) -> String {
        labels::name(id, &self.id2label)
    }
}
