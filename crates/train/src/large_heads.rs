//! Exits under heads whose logits would not fit.

use candle_core::Tensor;
use layerwise_models::LinearExit;
use layerwise_ops::{MultiExit, multi_exit_linear_cross_entropy};

use crate::Result;

/// Exits that are to be computed together, by head: one for all, or one each.
#[derive(Default)]
pub(crate) struct LargeHeads(Vec<Head>);

struct Head {
    weight: Tensor,
    bias: Option<Tensor>,
    /// What it reads at the exits after some layers, and what their cross-entropies count.
    exits: Vec<Tensor>,
    layers: Vec<usize>,
    weights: Vec<f64>,
}

impl LargeHeads {
    pub(crate) fn add(&mut self, layer: usize, exit: LinearExit, weight: f64) {
        let LinearExit { xs, weight: head, bias } = exit;
        let same = |other: &Head| {
            other.weight.id() == head.id()
                && other.bias.as_ref().map(Tensor::id) == bias.as_ref().map(Tensor::id)
        };
        let at = self.0.iter().position(same);
        let at = at.unwrap_or_else(|| {
            let (exits, layers, weights) = (Vec::new(), Vec::new(), Vec::new());
            self.0.push(Head { weight: head, bias, exits, layers, weights });
            self.0.len() - 1
        });
        let head = &mut self.0[at];
        head.exits.push(xs);
        head.layers.push(layer);
        head.weights.push(weight);
    }

    /// The weighted sum of their cross-entropies, if there are any, and each of them.
    pub(crate) fn loss(
        self,
        labels: &Tensor,
        depth: usize,
        label_smoothing: f64,
    ) -> Result<(Option<Tensor>, Vec<Option<f64>>)> {
        let (mut total, mut per_layer) = (None::<Tensor>, vec![None; depth]);
        for Head { weight, bias, exits, layers, weights } in self.0 {
            let config = MultiExit { exit_weights: weights, label_smoothing, ..Default::default() };
            let loss =
                multi_exit_linear_cross_entropy(&exits, &weight, bias.as_ref(), labels, None, &config)?;
            for (layer, exit) in layers.iter().zip(&loss.exits) {
                per_layer[layer - 1] = Some(exit.cross_entropy);
            }
            total = Some(match total {
                Some(total) => (total + loss.total)?,
                None => loss.total,
            });
        }
        Ok((total, per_layer))
    }
}
