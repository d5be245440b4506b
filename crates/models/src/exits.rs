use candle_core::{Result as CandleResult, Tensor};
use layerwise_ops::{NormPlace, PackedExit};
use serde::{Deserialize, Serialize};

use crate::{
    Error, Hidden, Pass, Result,
    builder::{Builder, Init},
    layers::{LayerNorm, Linear},
    tap::LinearExit,
};

/// Which norm stands between an inner layer and the head.
///
/// The last exit always has the model's own final norm.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExitNorm {
    /// The model's own final norm, before every exit (as the logit lens does; ours by default).
    #[default]
    Shared,
    /// None: the raw residual state goes to the head, as in the authors' GPT-2 code.
    Raw,
    /// A norm of its own for each layer, `exits.{layer}.layernorm` for inner ones.
    PerLayer,
}

/// Which classifier an inner layer has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Heads {
    /// One `(W, b)` for all layers: the paper's.
    #[default]
    Shared,
    /// `(W_l, b_l)` for each layer, `exits.{layer}.classifier` for inner ones: the multi-exit/classifiers baseline.
    PerLayer,
}

/// Which tokens an exit of a BERT reads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pooling {
    /// The first, `[CLS]`: the paper's, and Python's `BertForSequenceClassification`.
    #[default]
    Cls,
    /// The mean of all that are no padding. Checkpoints that were made for it (sentence-transformers) say nothing by the first token of their
    /// lower blocks, so that exits there would have nothing to read. Python reads the first token of a saved folder whatever this says.
    Mean,
}

impl Pooling {
    /// `(rows, width)` of states `(rows, tokens, width)`.
    pub(crate) fn feature(self, hidden: &Hidden) -> CandleResult<Tensor> {
        let xs = &hidden.xs;
        if self == Self::Cls {
            return first_token(xs);
        }
        let (rows, tokens, _) = xs.dims3()?;
        let shares = match &hidden.mask {
            None => Tensor::full(1. / tokens as f32, (rows, tokens), xs.device())?.to_dtype(xs.dtype())?,
            Some(mask) => {
                let mask = mask.to_dtype(xs.dtype())?;
                mask.broadcast_div(&mask.sum_keepdim(1)?.maximum(1.)?)?
            }
        };
        shares.unsqueeze(1)?.matmul(&xs.contiguous()?)?.squeeze(1)
    }
}

/// `(rows, width)` of states `(rows, tokens, width)`.
pub(crate) fn first_token(xs: &Tensor) -> CandleResult<Tensor> {
    xs.narrow(1, 0, 1)?.squeeze(1)?.contiguous()
}

/// Norm or pooler and head of every layer.
#[derive(Clone, Debug)]
pub(crate) struct Exits {
    /// Layers `1..=L`.
    norms: Vec<Option<LayerNorm>>,
    /// One for all layers.
    pooler: Option<Linear>,
    /// Dropout before the head.
    dropout: f64,
    /// Layers `1..=L`; empty when the model has no head.
    heads: Vec<Linear>,
    /// Whether every token has an answer, and not the first alone.
    every_token: bool,
    /// Layers `1..=L`, of a model that only answers; empty for others.
    packed: Vec<PackedExit>,
}

/// What [`Exits`] look like.
#[derive(Debug)]
pub struct ExitShape<'a> {
    pub(crate) depth: usize,
    pub(crate) width: usize,
    /// 0: no head.
    pub(crate) labels: usize,
    /// Name of the table of words that is the head, too, without a bias; `None` for a head of its own.
    pub(crate) table: Option<&'a str>,
    /// Name and epsilon of the final norm; `None` for a model without.
    pub(crate) norm: Option<(&'a str, f64)>,
    /// Name of the pooler, a linear map and a tanh; `None` for a model without.
    pub(crate) pooler: Option<&'a str>,
    /// Dropout before the head.
    pub(crate) dropout: f64,
    pub(crate) exit_norm: ExitNorm,
    pub(crate) heads: Heads,
    /// Initial values of a head's weight.
    pub(crate) init: Init,
}

impl Exits {
    pub(crate) fn new(b: &mut Builder<'_>, shape: &ExitShape<'_>) -> Result<Self> {
        let ExitShape { depth, width, labels, .. } = *shape;
        let last = shape.norm.map(|(name, eps)| b.layer_norm(name, width, eps)).transpose()?;
        let mut norms = vec![None; depth];
        for (i, norm) in norms.iter_mut().enumerate() {
            let layer = i + 1;
            *norm = match (shape.exit_norm, shape.norm) {
                _ if layer == depth => last.clone(),
                (ExitNorm::Shared, _) => last.clone(),
                (ExitNorm::PerLayer, Some((_, eps))) => Some(b.layer_norm(&norm_name(layer), width, eps)?),
                (ExitNorm::Raw, _) | (ExitNorm::PerLayer, None) => None,
            };
        }
        let pooler = shape.pooler.map(|name| b.linear(name, (width, width), true, shape.init)).transpose()?;
        let dropout = shape.dropout;
        if labels == 0 {
            return Ok(Self {
                norms,
                pooler,
                dropout,
                heads: Vec::new(),
                every_token: false,
                packed: Vec::new(),
            });
        }
        if let Some(table) = shape.table {
            let table = Linear::new(b.again(table)?, None);
            let heads = vec![table; depth];
            return Ok(Self { norms, pooler, dropout, heads, every_token: true, packed: Vec::new() });
        }
        let mut head = |name: &str| b.linear(name, (width, labels), true, shape.init);
        let last = head(HEAD)?;
        let mut heads = vec![last; depth];
        if shape.heads == Heads::PerLayer {
            for (i, inner) in heads.iter_mut().take(depth - 1).enumerate() {
                *inner = head(&head_name(i + 1))?;
            }
        }
        Ok(Self { norms, pooler, dropout, heads, every_token: false, packed: Vec::new() })
    }

    /// Logits `(rows, labels)` of the exit after block `layer`, on features `(rows, width)`.
    pub(crate) fn forward(&self, layer: usize, feature: &Tensor, pass: Pass) -> Result<Tensor> {
        match layer.checked_sub(1).and_then(|i| self.packed.get(i)) {
            Some(packed) => Ok(packed.forward(feature)?),
            None => {
                let (xs, head) = self.read(layer, feature, pass)?;
                Ok(head.forward(&xs)?)
            }
        }
    }

    /// The same before the head's map.
    pub(crate) fn linear(&self, layer: usize, feature: &Tensor, pass: Pass) -> Result<LinearExit> {
        let (xs, head) = self.read(layer, feature, pass)?;
        Ok(LinearExit { xs, weight: head.weight.clone(), bias: head.bias.clone() })
    }

    /// What the head of the exit after block `layer` reads of a feature, and the head.
    fn read(&self, layer: usize, feature: &Tensor, pass: Pass) -> Result<(Tensor, &Linear)> {
        let Some(norm) = layer.checked_sub(1).and_then(|i| self.norms.get(i)) else {
            return Err(Error::Layer { layer, depth: self.norms.len() });
        };
        let head = self.heads.get(layer - 1).ok_or(Error::NoHead)?;
        let xs = norm.as_ref().map(|norm| norm.forward(feature)).transpose()?;
        let xs = xs.as_ref().unwrap_or(feature);
        let pooled = self.pooled(xs).transpose()?;
        let xs = pooled.as_ref().unwrap_or(xs);
        Ok((pass.dropout(xs, self.dropout, layer, SITE)?, head))
    }

    /// `tanh(x W^T + b)`, of a model with a pooler.
    pub(crate) fn pooled(&self, feature: &Tensor) -> Option<Result<Tensor>> {
        let pooler = self.pooler.as_ref()?;
        Some(pooler.forward(feature).and_then(|xs| xs.tanh()).map_err(Error::from))
    }

    /// Lays norms and heads out for answering, as they are now; not behind a pooler.
    pub(crate) fn pack(&mut self) -> Result<()> {
        if self.pooler.is_some() {
            return Ok(());
        }
        if self.every_token {
            // One for all exits.
            if let Some(mut head) = self.heads.first().cloned() {
                head.pack()?;
                self.heads.fill(head);
            }
            return Ok(());
        }
        let exits = self.norms.iter().zip(&self.heads).map(|(norm, head)| {
            PackedExit::new(norm.as_ref().map(|norm| norm.norm(NormPlace::Before)).as_ref(), &head.affine())
        });
        let packed: Option<Vec<_>> = exits.collect::<Result<_, _>>()?;
        self.packed = packed.unwrap_or_default();
        Ok(())
    }

    /// Norm and head of an exit in one, of a model that only answers.
    pub(crate) fn packed(&self, layer: usize) -> Option<&PackedExit> {
        self.packed.get(layer.checked_sub(1)?)
    }

    pub(crate) fn is_packed(&self) -> bool {
        !self.packed.is_empty() || self.heads.first().is_some_and(Linear::is_packed)
    }

    /// A head of several exits stays one.
    fn detached_heads(&self) -> Vec<Linear> {
        let mut heads: Vec<Linear> = Vec::with_capacity(self.heads.len());
        for (i, head) in self.heads.iter().enumerate() {
            let before = self.heads[..i].iter().position(|other| other.weight.id() == head.weight.id());
            heads.push(before.map_or_else(|| head.detached(), |at| heads[at].clone()));
        }
        heads
    }

    /// The same storage, recording no graph.
    pub(crate) fn detached(&self) -> Self {
        Self {
            norms: self.norms.iter().map(|norm| norm.as_ref().map(LayerNorm::detached)).collect(),
            pooler: self.pooler.as_ref().map(Linear::detached),
            dropout: self.dropout,
            heads: self.detached_heads(),
            every_token: self.every_token,
            packed: self.packed.clone(),
        }
    }
}

/// Where an exit's dropout is; those of a block are 0 to 2.
const SITE: u8 = 3;

/// Name of the head that a model has anyway.
pub(crate) const HEAD: &str = "classifier";

/// Name of an inner layer's own norm.
pub(crate) fn norm_name(layer: usize) -> String {
    format!("exits.{layer}.layernorm")
}

/// Name of an inner layer's own head.
pub(crate) fn head_name(layer: usize) -> String {
    format!("exits.{layer}.{HEAD}")
}

/// Whether a parameter belongs to a head.
pub(crate) fn is_head(name: &str) -> bool {
    let inner = |rest: &str| rest.split_once('.').is_some_and(|(_, part)| part.starts_with("classifier."));
    name.starts_with("classifier.") || name.strip_prefix("exits.").is_some_and(inner)
}

/// Whether a parameter belongs to a pooler.
pub(crate) fn is_pooler(name: &str) -> bool {
    name.contains(".pooler.")
}
