use candle_core::{Result, Tensor};
use layerwise_models::{Batch, Hidden, Pass, Tapped};

/// A model whose input is the script: inputs are `(rows, depth, classes)`, the logits of every exit.
///
/// For tests that want to know each logit beforehand.
#[derive(Clone, Copy, Debug)]
pub struct Scripted {
    /// Number of blocks; they do nothing.
    pub depth: usize,
}

impl Tapped for Scripted {
    fn depth(&self) -> usize {
        self.depth
    }

    fn embed(&self, batch: &Batch, _pass: Pass) -> Result<Hidden> {
        Ok(Hidden { xs: batch.inputs.clone(), mask: batch.mask.clone() })
    }

    fn block(&self, _layer: usize, hidden: &Hidden, _pass: Pass) -> Result<Hidden> {
        Ok(hidden.clone())
    }

    fn feature(&self, hidden: &Hidden) -> Result<Tensor> {
        Ok(hidden.xs.clone())
    }

    fn exit(&self, layer: usize, feature: &Tensor, _pass: Pass) -> Result<Tensor> {
        feature.narrow(1, layer - 1, 1)?.squeeze(1)
    }
}
