use candle_core::{D, DType, Tensor};

use super::{POSITIONS, VitConfig};
use crate::{
    Batch, Error, Hidden, Pass, Result,
    builder::{Builder, Init},
    transformer::Embed,
};

/// Pixels to tokens: `[CLS]`, a distillation token if the model has one, then a linear map of each patch, plus a learned
/// position each.
#[derive(Clone, Debug)]
pub struct Embeddings {
    cls_token: Tensor,
    distillation_token: Option<Tensor>,
    /// As convolution weight, `(width, channels, patch, patch)`.
    weight: Tensor,
    bias: Tensor,
    pub(super) positions: Tensor,
    dropout: f64,
}

impl Embeddings {
    pub(crate) fn new(b: &mut Builder<'_>, config: &VitConfig) -> Result<Self> {
        let VitConfig { hidden_size: width, patch_size: p, num_channels: channels, .. } = *config;
        let normal = Init::TruncNormal(config.initializer_range);
        let projection = "vit.embeddings.patch_embeddings.projection";
        let mut token = |name: &str| b.tensor(&format!("vit.embeddings.{name}"), (1, 1, width), normal);
        Ok(Self {
            cls_token: token("cls_token")?,
            distillation_token: config.distillation_token.then(|| token("distillation_token")).transpose()?,
            weight: b.tensor(&format!("{projection}.weight"), (width, channels, p, p), normal)?,
            bias: b.tensor(&format!("{projection}.bias"), width, Init::Zeros)?,
            positions: b.tensor(POSITIONS, (1, config.tokens(), width), normal)?,
            dropout: config.hidden_dropout_prob,
        })
    }
}

impl Embed<VitConfig> for Embeddings {
    fn forward(&self, batch: &Batch, config: &VitConfig, pass: Pass) -> Result<Hidden> {
        let pixels = &batch.inputs;
        let (size, p, channels) = (config.image_size, config.patch_size, config.num_channels);
        let fits = matches!(pixels.dims(), [_, c, h, w] if (*c, *h, *w) == (channels, size, size));
        if !fits || ![DType::F32, self.weight.dtype()].contains(&pixels.dtype()) {
            return Err(Error::Inputs {
                found: format!("{:?} {:?}", pixels.dtype(), pixels.dims()),
                expected: format!("F32 (rows, {channels}, {size}, {size})"),
            });
        }
        let pixels = pixels.to_dtype(self.weight.dtype())?;
        let (rows, side) = (pixels.dim(0)?, size / p);
        let width = self.weight.dim(0)?;
        // One row of pixels per patch and a matrix product: several times faster than candle's convolution.
        let patches = pixels.reshape(&[rows, channels, side, p, side, p])?;
        let patches =
            patches.permute(vec![0, 2, 4, 1, 3, 5])?.reshape((rows, side * side, channels * p * p))?;
        let weight = self.weight.flatten(1, D::Minus1)?;
        let patches = layerwise_ops::linear(&patches, &weight, Some(&self.bias))?;
        let leading = [Some(&self.cls_token), self.distillation_token.as_ref()].into_iter().flatten();
        let mut tokens = leading
            .map(|token| token.broadcast_as((rows, 1, width)))
            .collect::<candle_core::Result<Vec<_>>>()?;
        tokens.push(patches);
        let tokens = Tensor::cat(&tokens, 1)?;
        let xs = tokens.broadcast_add(&self.positions)?;
        Ok(Hidden { xs: pass.dropout(&xs, self.dropout, 0, 0)?, mask: None })
    }

    fn detached(&self) -> Self {
        Self {
            cls_token: self.cls_token.detach(),
            distillation_token: self.distillation_token.as_ref().map(Tensor::detach),
            weight: self.weight.detach(),
            bias: self.bias.detach(),
            positions: self.positions.detach(),
            dropout: self.dropout,
        }
    }
}
