//! The one idea: a stack of equal-width blocks under one head, tapped after every block.

use candle_core::Tensor;
use layerwise_ops::Dropout;

use crate::{KvCache, Next};

type Result<T, E = candle_core::Error> = std::result::Result<T, E>;

/// What a model is fed: images, token ids or feature rows, with what belongs to them.
#[derive(Clone, Debug)]
pub struct Batch {
    /// ViT: pixels `(rows, channels, height, width)`; BERT, GPT-2: ids `(rows, tokens)`, u32; MLP: `(rows, inputs)`.
    pub inputs: Tensor,
    /// `(rows, tokens)`, u8: 1 for a token, 0 for padding. `None`: nothing is padding.
    pub mask: Option<Tensor>,
    /// Segment of each token (BERT), `(rows, tokens)`, u32. `None`: all zero.
    pub token_types: Option<Tensor>,
}

impl From<Tensor> for Batch {
    fn from(inputs: Tensor) -> Self {
        Self { inputs, mask: None, token_types: None }
    }
}

impl Batch {
    /// Number of samples.
    ///
    /// # Errors
    ///
    /// When the inputs are a scalar.
    pub fn rows(&self) -> Result<usize> {
        self.inputs.dim(0)
    }

    /// The same samples as batches of `size` rows, the last one shorter; views, not copies.
    ///
    /// # Errors
    ///
    /// When `size` is 0 or the inputs are a scalar.
    pub fn split(&self, size: usize) -> Result<Vec<Self>> {
        if size == 0 {
            candle_core::bail!("batches of 0 rows")
        }
        let rows = self.rows()?;
        let batch = |start: usize| {
            let part = |xs: &Tensor| xs.narrow(0, start, size.min(rows - start));
            Ok(Self {
                inputs: part(&self.inputs)?,
                mask: self.mask.as_ref().map(part).transpose()?,
                token_types: self.token_types.as_ref().map(part).transpose()?,
            })
        };
        (0..rows).step_by(size).map(batch).collect()
    }
}

/// A batch on its way through the stack.
#[derive(Clone, Debug)]
pub struct Hidden {
    /// Output of the last block that ran, `(rows, tokens, width)` (MLP: `(rows, width)`).
    pub xs: Tensor,
    /// As in [`Batch::mask`].
    pub mask: Option<Tensor>,
}

impl Hidden {
    /// The same state, recording no graph from here on.
    #[must_use]
    pub fn detach(&self) -> Self {
        Self { xs: self.xs.detach(), mask: self.mask.clone() }
    }
}

/// Whether a forward pass trains (and with which dropout) or only looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pass {
    seed: Option<u64>,
}

impl Pass {
    /// No dropout.
    pub const EVAL: Self = Self { seed: None };

    /// Dropout masks derived from `seed`: equal seeds, equal masks.
    #[must_use]
    pub fn train(seed: u64) -> Self {
        Self { seed: Some(seed) }
    }

    /// The dropout to apply at one place of the model, or `None` when there is none to apply.
    ///
    /// `layer` and `site` (distinct within a layer) keep the masks of different places independent.
    #[must_use]
    pub fn dropout_at(&self, p: f64, layer: usize, site: u8) -> Option<Dropout> {
        let seed = self.seed.filter(|_| p != 0.)?;
        let place = (layer as u64) << 8 | u64::from(site);
        Some(Dropout { p: p as f32, seed: seed ^ place.wrapping_mul(0xd6e8_feb8_6659_fd93) })
    }

    /// Dropout of `xs` at one place of the model; see [`Pass::dropout_at`].
    ///
    /// # Errors
    ///
    /// When `p` is outside `[0, 1)`.
    pub fn dropout(&self, xs: &Tensor, p: f64, layer: usize, site: u8) -> Result<Tensor> {
        match self.dropout_at(p, layer, site) {
            Some(config) => layerwise_ops::dropout(xs, config),
            None => Ok(xs.clone()),
        }
    }
}

/// An exit whose logits are `x W^T + b`, before they are computed: with a large head they need never be in memory at once.
#[derive(Clone, Debug)]
pub struct LinearExit {
    /// What the head reads, `(rows, width)`: the feature behind exit norm or pooler, and dropout.
    pub xs: Tensor,
    /// `(classes, width)`; exits that share a head have the same tensor.
    pub weight: Tensor,
    /// `(classes)`.
    pub bias: Option<Tensor>,
}

/// A stack of blocks under one head, runnable block by block.
///
/// Training objectives, similarity, early exits and evaluation need no more than this of a model.
pub trait Tapped {
    /// Number of blocks, `L`.
    fn depth(&self) -> usize;

    /// The state before block 1 (`h^0`).
    ///
    /// # Errors
    ///
    /// When the batch does not fit the model.
    fn embed(&self, batch: &Batch, pass: Pass) -> Result<Hidden>;

    /// Runs block `layer`, from 1 to [`depth`](Tapped::depth).
    ///
    /// # Errors
    ///
    /// When the state does not fit the block.
    fn block(&self, layer: usize, hidden: &Hidden, pass: Pass) -> Result<Hidden>;

    /// What the prediction reads of a state, `(rows, width)`: the `[CLS]` token, a mean, or every position as a row.
    ///
    /// # Errors
    ///
    /// When the state does not fit the model.
    fn feature(&self, hidden: &Hidden) -> Result<Tensor>;

    /// Logits `(rows, classes)` of the exit after block `layer`: exit norm or pooler, dropout if `pass` trains, then head, on a
    /// [`feature`](Tapped::feature).
    ///
    /// # Errors
    ///
    /// When the feature does not fit the head.
    fn exit(&self, layer: usize, feature: &Tensor, pass: Pass) -> Result<Tensor>;

    /// [`exit`](Tapped::exit) up to its last map, for models whose exits end in a linear one; `None` for others.
    ///
    /// # Errors
    ///
    /// As [`exit`](Tapped::exit).
    fn linear_exit(&self, layer: usize, feature: &Tensor, pass: Pass) -> Result<Option<LinearExit>> {
        let _ = (layer, feature, pass);
        Ok(None)
    }

    /// Logits of the exit after block `layer` on a state, without a graph: [`exit`](Tapped::exit) of the
    /// [`feature`](Tapped::feature), which a model that only answers may do at once.
    ///
    /// # Errors
    ///
    /// As these two.
    fn answer(&self, layer: usize, hidden: &Hidden) -> Result<Tensor> {
        Ok(self.exit(layer, &self.feature(hidden)?, Pass::EVAL)?.detach())
    }

    /// The samples `rows` (u32) of a state, in that order.
    ///
    /// # Errors
    ///
    /// When a row is out of range.
    fn select(&self, hidden: &Hidden, rows: &Tensor) -> Result<Hidden> {
        let pick = |xs: &Tensor| layerwise_ops::select_rows(xs, rows);
        Ok(Hidden { xs: pick(&hidden.xs)?, mask: hidden.mask.as_ref().map(pick).transpose()? })
    }
}

/// A stack whose tokens see none behind them, so that a text is read token by token: block by block, with what earlier tokens have left there. No graph.
///
/// ```
/// use candle_core::{Device::Cpu, Result, Tensor};
/// use layerwise_models::{Batch, Decoder, Hidden, KvCache, Next, Pass, Tapped};
/// use layerwise_ops::{Attention, attention};
///
/// /// Blocks that add what a token sees of those before; words are rows of a table.
/// struct Stack {
///     words: Tensor, // (words, 8)
/// }
///
/// fn seen(queries: &Tensor, keys: &Tensor) -> Result<Tensor> {
///     let causal = Attention { causal: true, ..Attention::full(1) };
///     attention(queries, keys, keys, &causal)
/// }
///
/// impl Tapped for Stack {
///     fn depth(&self) -> usize {
///         2
///     }
///     fn embed(&self, batch: &Batch, _: Pass) -> Result<Hidden> {
///         Ok(Hidden { xs: layerwise_ops::embedding(&batch.inputs, &self.words)?, mask: None })
///     }
///     fn block(&self, _: usize, hidden: &Hidden, _: Pass) -> Result<Hidden> {
///         let xs = &hidden.xs;
///         Ok(Hidden { xs: (xs + seen(xs, xs)?)?, mask: None })
///     }
///     fn feature(&self, hidden: &Hidden) -> Result<Tensor> {
///         hidden.xs.flatten(0, 1)
///     }
///     fn exit(&self, _: usize, feature: &Tensor, _: Pass) -> Result<Tensor> {
///         feature.matmul(&self.words.t()?)
///     }
/// }
///
/// impl Decoder for Stack {
///     fn cache(&self) -> Result<KvCache> {
///         KvCache::new(2, 8, 32, &Cpu)
///     }
///     fn embed_next(&self, texts: &[(&[u32], usize)]) -> Result<Tensor> {
///         let ids: Vec<u32> = texts.iter().flat_map(|(ids, _)| *ids).copied().collect();
///         layerwise_ops::embedding(&Tensor::new(ids, &Cpu)?, &self.words)
///     }
///     fn block_next(&self, layer: usize, xs: &Tensor, texts: &mut [Next<'_>]) -> Result<Tensor> {
///         texts.iter().try_for_each(|text| text.cache.check(layer, text.from, text.count))?;
///         let (mut all, mut first) = (Vec::new(), 0);
///         for Next { cache, count, .. } in texts {
///             let own = xs.narrow(0, first, *count)?;
///             let [keys, _] = cache.push(layer, &own, &own)?;
///             all.push(seen(&own.unsqueeze(0)?, &keys)?.squeeze(0)?);
///             first += *count;
///         }
///         xs + Tensor::cat(&all, 0)?
///     }
/// }
///
/// let stack = Stack { words: Tensor::randn(0f32, 1., (20, 8), &Cpu)? };
/// let whole = stack.embed(&Batch::from(Tensor::new(&[[3u32, 1, 4]], &Cpu)?), Pass::EVAL)?;
/// let whole = stack.block(1, &whole, Pass::EVAL)?.xs.squeeze(0)?;
///
/// // The first two tokens, then the third.
/// let (mut cache, mut parts) = (stack.cache()?, Vec::new());
/// for (ids, from) in [(&[3u32, 1][..], 0), (&[4][..], 2)] {
///     let next = Next { cache: &mut cache, from, count: ids.len() };
///     parts.push(stack.block_next(1, &stack.embed_next(&[(ids, from)])?, &mut [next])?);
/// }
/// let error = (whole - Tensor::cat(&parts, 0)?)?.abs()?.max_all()?.to_scalar::<f32>()?;
/// assert!(error < 1e-5);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub trait Decoder: Tapped {
    /// For a text of which nothing was read.
    ///
    /// # Errors
    ///
    /// When the device cannot allocate.
    fn cache(&self) -> Result<KvCache>;

    /// `h^0` of the next tokens of some texts, text after text: `(all new tokens, width)`. Each text has its ids, at least one, and the place of the first.
    ///
    /// # Errors
    ///
    /// For no ids, one that is not in the vocabulary, or one beyond the last position.
    fn embed_next(&self, texts: &[(&[u32], usize)]) -> Result<Tensor>;

    /// Runs block `layer` on states `xs` `(all new tokens, width)` of some texts, text after text; their caches remember them.
    ///
    /// # Errors
    ///
    /// When the numbers do not add up, tokens before have not been through this block, or a text would have more tokens than the model has positions for;
    /// no cache has changed then.
    fn block_next(&self, layer: usize, xs: &Tensor, texts: &mut [Next<'_>]) -> Result<Tensor>;
}

/// Runs the stack and calls `f` with each layer's state as soon as it is there: `h^0` (layer 0), then `h^1 .. h^L`.
///
/// Only one state is alive at a time, unless `f` keeps it.
///
/// # Errors
///
/// When the batch does not fit the model, or what `f` returns.
pub fn for_each_layer<M: Tapped + ?Sized, E: From<candle_core::Error>>(
    model: &M,
    batch: &Batch,
    pass: Pass,
    mut f: impl FnMut(usize, &Hidden) -> Result<(), E>,
) -> Result<(), E> {
    let mut hidden = model.embed(batch, pass)?;
    f(0, &hidden)?;
    for layer in 1..=model.depth() {
        hidden = model.block(layer, &hidden, pass)?;
        f(layer, &hidden)?;
    }
    Ok(())
}

/// States `h^0 .. h^L`.
///
/// # Errors
///
/// When the batch does not fit the model.
pub fn hidden_states<M: Tapped + ?Sized>(model: &M, batch: &Batch, pass: Pass) -> Result<Vec<Hidden>> {
    let mut states = Vec::with_capacity(model.depth() + 1);
    for_each_layer(model, batch, pass, |_, hidden| {
        states.push(hidden.clone());
        Ok::<_, candle_core::Error>(())
    })?;
    Ok(states)
}

/// Features `(rows, width)` of `h^0 .. h^L`, before any exit norm.
///
/// # Errors
///
/// When the batch does not fit the model.
pub fn features<M: Tapped + ?Sized>(model: &M, batch: &Batch, pass: Pass) -> Result<Vec<Tensor>> {
    let mut features = Vec::with_capacity(model.depth() + 1);
    for_each_layer(model, batch, pass, |_, hidden| {
        features.push(model.feature(hidden)?);
        Ok::<_, candle_core::Error>(())
    })?;
    Ok(features)
}

/// Logits `(rows, classes)` of every exit, layers `1..=L`.
///
/// # Errors
///
/// When the batch does not fit the model.
pub fn layer_logits<M: Tapped + ?Sized>(model: &M, batch: &Batch, pass: Pass) -> Result<Vec<Tensor>> {
    let mut logits = Vec::with_capacity(model.depth());
    for_each_layer(model, batch, pass, |layer, hidden| {
        if layer > 0 {
            logits.push(model.exit(layer, &model.feature(hidden)?, pass)?);
        }
        Ok::<_, candle_core::Error>(())
    })?;
    Ok(logits)
}

/// Logits `(rows, classes)` of the last exit.
///
/// # Errors
///
/// When the batch does not fit the model.
pub fn forward<M: Tapped + ?Sized>(model: &M, batch: &Batch, pass: Pass) -> Result<Tensor> {
    let mut hidden = model.embed(batch, pass)?;
    for layer in 1..=model.depth() {
        hidden = model.block(layer, &hidden, pass)?;
    }
    model.exit(model.depth(), &model.feature(&hidden)?, pass)
}
