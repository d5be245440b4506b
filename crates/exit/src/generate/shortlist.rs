use candle_core::{DType, Result as CandleResult, Tensor};
use layerwise_models::{Batch, Decoder, Hidden, LinearExit, Pass, Tapped};
use layerwise_ops::{Affine, Packed};

use crate::{Error, Result};

/// A model that knows some words only: its exits cost as much less as there are fewer of them.
#[derive(Debug)]
pub(super) struct Shortlist<'m, M: ?Sized> {
    model: &'m M,
    words: Vec<u32>,
    /// Heads of layers `1..=L`.
    heads: Vec<Head>,
}

#[derive(Clone, Debug)]
struct Head {
    weight: Tensor,
    bias: Option<Tensor>,
    packed: Option<Packed>,
}

impl<'m, M: Decoder + ?Sized> Shortlist<'m, M> {
    pub(super) fn new(model: &'m M, words: &[u32]) -> Result<Self> {
        let mut words = words.to_vec();
        words.sort_unstable();
        words.dedup();
        let unknown = |value: String, expected| Error::Setting { field: "words", value, expected };
        if words.is_empty() {
            return Err(unknown("empty".into(), "one word at least"));
        }
        // Any state tells which head an exit has.
        let state = model.embed_next(&[(&[0], 0)])?;
        let mut heads: Vec<(candle_core::TensorId, Head)> = Vec::new();
        let mut of_layers = Vec::with_capacity(model.depth());
        for layer in 1..=model.depth() {
            let exit = model.linear_exit(layer, &model.feature(&one_each(&state)?)?, Pass::EVAL)?;
            let Some(LinearExit { weight, bias, .. }) = exit else {
                return Err(unknown(
                    format!("{} words", words.len()),
                    "a model whose exits end in a linear map",
                ));
            };
            let (classes, _) = weight.dims2()?;
            if let Some(word) = words.iter().find(|word| **word as usize >= classes) {
                return Err(unknown(word.to_string(), "ids of the model's vocabulary"));
            }
            let known = heads.iter().find(|(id, _)| *id == weight.id()).map(|(_, head)| head.clone());
            let head = match known {
                Some(head) => head,
                None => {
                    let rows = Tensor::new(words.as_slice(), weight.device())?;
                    let picked = weight.detach().index_select(&rows, 0)?.to_dtype(DType::F32)?;
                    let bias = bias.map(|bias| bias.detach().index_select(&rows, 0)).transpose()?;
                    let head = Head { packed: Packed::new(&picked)?, weight: picked, bias };
                    heads.push((weight.id(), head.clone()));
                    head
                }
            };
            of_layers.push(head);
        }
        Ok(Self { model, words, heads: of_layers })
    }

    /// Ids of the words, in order.
    pub(super) fn words(&self) -> &[u32] {
        &self.words
    }
}

/// The states of one token each, as models take states.
pub(super) fn one_each(xs: &Tensor) -> CandleResult<Hidden> {
    Ok(Hidden { xs: xs.unsqueeze(1)?, mask: None })
}

impl<M: Tapped + ?Sized> Tapped for Shortlist<'_, M> {
    fn depth(&self) -> usize {
        self.model.depth()
    }

    fn embed(&self, batch: &Batch, pass: Pass) -> CandleResult<Hidden> {
        self.model.embed(batch, pass)
    }

    fn block(&self, layer: usize, hidden: &Hidden, pass: Pass) -> CandleResult<Hidden> {
        self.model.block(layer, hidden, pass)
    }

    fn feature(&self, hidden: &Hidden) -> CandleResult<Tensor> {
        self.model.feature(hidden)
    }

    /// Logits `(rows, words)`.
    fn exit(&self, layer: usize, feature: &Tensor, pass: Pass) -> CandleResult<Tensor> {
        let exit = self.model.linear_exit(layer, feature, pass)?;
        let (Some(exit), Some(head)) = (exit, layer.checked_sub(1).and_then(|i| self.heads.get(i))) else {
            candle_core::bail!("no head after layer {layer}")
        };
        let Head { weight, bias, packed } = head;
        Affine { weight, bias: bias.as_ref(), packed: packed.as_ref() }.forward(&exit.xs.detach())
    }
}
