use candle_core::{Result, Tensor};
use layerwise_models::{Batch, Hidden, Pass, Tapped};
use layerwise_ops::{Attention, attention};

/// Attention with two heads over the tokens that are no padding, of any number of tokens; predicts from the first.
#[derive(Clone, Debug)]
pub struct Padded {
    /// Number of blocks.
    pub depth: usize,
    /// `(width, classes)`; inputs are `(rows, tokens, width)`.
    pub head: Tensor,
}

impl Tapped for Padded {
    fn depth(&self) -> usize {
        self.depth
    }

    fn embed(&self, batch: &Batch, _pass: Pass) -> Result<Hidden> {
        Ok(Hidden { xs: batch.inputs.clone(), mask: batch.mask.clone() })
    }

    fn block(&self, _layer: usize, hidden: &Hidden, _pass: Pass) -> Result<Hidden> {
        let config = Attention { key_mask: hidden.mask.as_ref(), ..Attention::full(2) };
        let update = attention(&hidden.xs, &hidden.xs, &hidden.xs, &config)?;
        Ok(Hidden { xs: (&hidden.xs + update)?, mask: hidden.mask.clone() })
    }

    fn feature(&self, hidden: &Hidden) -> Result<Tensor> {
        hidden.xs.narrow(1, 0, 1)?.squeeze(1)?.contiguous()
    }

    fn exit(&self, _layer: usize, feature: &Tensor, _pass: Pass) -> Result<Tensor> {
        feature.matmul(&self.head)
    }
}
