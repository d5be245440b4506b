//! Each operation once more, written with stock candle operations only: the reference that the fast paths are tested
//! against, and the path for devices and dtypes that have no kernel here. Sums run in the dtype of the tensor: the functions
//! outside of this module widen 16-bit floats before they come here.

use candle_core::{D, DType, Device, Result, Tensor};

use crate::{
    Attention, CrossEntropy, Dropout, ExitSummary, FeedForward, MultiExit, MultiExitLoss, Norm, NormPlace,
    Reduction, SelfAttention, dropout::Keep, half::in_f32,
};

/// `(x - mean) / sqrt(var + eps) * weight + bias` over the last dimension; two passes.
///
/// # Errors
///
/// When the shapes do not broadcast.
pub fn layer_norm(xs: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    let centred = xs.broadcast_sub(&xs.mean_keepdim(D::Minus1)?)?;
    let variance = centred.sqr()?.mean_keepdim(D::Minus1)?;
    let normed = centred.broadcast_div(&(variance + eps)?.sqrt()?)?;
    normed.broadcast_mul(weight)?.broadcast_add(bias)
}

/// Softmax over the last dimension.
///
/// # Errors
///
/// When `xs` is a scalar.
pub fn softmax(xs: &Tensor) -> Result<Tensor> {
    if xs.elem_count() == 0 {
        return Ok(xs.clone());
    }
    let shifted = xs.broadcast_sub(&xs.max_keepdim(D::Minus1)?.detach())?;
    let exp = shifted.exp()?;
    exp.broadcast_div(&exp.sum_keepdim(D::Minus1)?)
}

/// `x/2 (1 + erf(x / sqrt 2))`.
///
/// # Errors
///
/// On integer tensors.
pub fn gelu(xs: &Tensor) -> Result<Tensor> {
    xs.gelu_erf()
}

/// `x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))`.
///
/// # Errors
///
/// On integer tensors.
pub fn gelu_tanh(xs: &Tensor) -> Result<Tensor> {
    let inner = ((xs + (xs.powf(3.)? * 0.044715)?)? * (2. / std::f64::consts::PI).sqrt())?;
    (xs * 0.5)? * (inner.tanh()? + 1.)?
}

/// `x W^T + b` over the last dimension.
///
/// # Errors
///
/// When the shapes do not fit.
pub fn linear(xs: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let (out, _) = weight.dims2()?;
    let mut dims = xs.dims().to_vec();
    let Some(last) = dims.last_mut() else { candle_core::bail!("linear: a scalar has no last dimension") };
    let flat = xs.reshape(((), *last))?;
    *last = out;
    let ys = flat.matmul(&weight.t()?)?;
    let ys = match bias {
        // The product sums in f32 of its own; the bias's gradient is a sum over rows.
        Some(bias) => in_f32([&ys, bias], |[ys, bias]| ys.broadcast_add(bias))?,
        None => ys,
    };
    ys.reshape(dims)
}

/// Multi-head scaled dot-product attention on `(batch, tokens, heads * dim)`.
///
/// # Errors
///
/// When the shapes do not fit.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, config: &Attention<'_>) -> Result<Tensor> {
    let (batch, queries, width) = q.dims3()?;
    let keys = k.dim(1)?;
    let dim = width / config.heads;
    let split = |xs: &Tensor, tokens: usize| {
        xs.reshape((batch, tokens, config.heads, dim))?.transpose(1, 2)?.contiguous()
    };
    let (q, k, v) = (split(q, queries)?, split(k, keys)?, split(v, keys)?);
    // (batch, heads, queries, keys)
    let mut scores = (q.matmul(&k.t()?)? * (1. / (dim as f64).sqrt()))?;
    let allowed = allowed(batch, queries, keys, config)?.to_device(q.device())?.to_dtype(q.dtype())?;
    // Large, but finite in every float type.
    let far = if q.dtype() == DType::F16 { 6e4 } else { 1e30 };
    scores = scores.broadcast_add(&((&allowed - 1.)? * far)?)?;
    // A query that sees no key gets probabilities of 0.
    let mut probs = softmax(&scores)?.broadcast_mul(&allowed)?;
    if let Some(config) = config.dropout {
        probs = dropout(&probs, config)?;
    }
    probs.matmul(&v)?.transpose(1, 2)?.reshape((batch, queries, width))
}

/// 1 where a query may see a key, `(batch, 1, queries, keys)`, f32.
fn allowed(batch: usize, queries: usize, keys: usize, config: &Attention<'_>) -> Result<Tensor> {
    let mask = match config.key_mask {
        Some(mask) => mask.to_dtype(DType::U8)?.to_vec2::<u8>()?,
        None => vec![vec![1; keys]; batch],
    };
    let mut values = Vec::with_capacity(batch * queries * keys);
    for mask in &mask {
        for query in 0..queries {
            let seen = |key: usize| mask[key] != 0 && (!config.causal || key + queries <= query + keys);
            values.extend((0..keys).map(|key| if seen(key) { 1f32 } else { 0. }));
        }
    }
    Tensor::from_vec(values, (batch, 1, queries, keys), &Device::Cpu)
}

/// The first sublayer of a transformer block in single operations: `x + drop(output(attention(norm(x))))`, or with the norm
/// after it. Each operation runs its own fast path where it has one.
///
/// # Errors
///
/// When the shapes do not fit.
pub fn self_attention(xs: &Tensor, config: &SelfAttention<'_>) -> Result<Tensor> {
    let SelfAttention { norm, query, key, value, output, attention, dropout } = config;
    residual(xs, norm, *dropout, |xs| {
        let [q, k, v] = [query, key, value].map(|affine| crate::linear(xs, affine.weight, affine.bias));
        let heads = crate::attention(&q?, &k?, &v?, attention)?;
        crate::linear(&heads, output.weight, output.bias)
    })
}

/// The second sublayer of a transformer block in single operations: `x + drop(down(act(up(norm(x)))))`, or with the norm after
/// it. Each operation runs its own fast path where it has one.
///
/// # Errors
///
/// When the shapes do not fit.
pub fn feed_forward(xs: &Tensor, config: &FeedForward<'_>) -> Result<Tensor> {
    let FeedForward { norm, up, down, activation, dropout } = config;
    residual(xs, norm, *dropout, |xs| {
        let inner = activation.of_linear(xs, up)?;
        crate::linear(&inner, down.weight, down.bias)
    })
}

/// `x + drop(f(norm(x)))` or `norm(x + drop(f(x)))`.
fn residual(
    xs: &Tensor,
    norm: &Norm<'_>,
    dropout: Option<Dropout>,
    f: impl Fn(&Tensor) -> Result<Tensor>,
) -> Result<Tensor> {
    let normed = |xs: &Tensor| crate::layer_norm(xs, norm.weight, norm.bias, norm.eps);
    let dropped = |update: Tensor| match dropout {
        Some(config) => crate::dropout(&update, config),
        None => Ok(update),
    };
    match norm.place {
        NormPlace::Before => xs + dropped(f(&normed(xs)?)?)?,
        NormPlace::After => normed(&(xs + dropped(f(xs)?)?)?),
    }
}

/// Inverted dropout with a mask that depends on `(seed, element index)` only.
///
/// # Errors
///
/// When `p` is outside `[0, 1)`.
pub fn dropout(xs: &Tensor, config: Dropout) -> Result<Tensor> {
    let keep = Keep::new(config)?;
    let mask: Vec<f32> = (0..xs.elem_count()).map(|i| keep.factor(i)).collect();
    let mask = Tensor::from_vec(mask, xs.shape(), xs.device())?.to_dtype(xs.dtype())?;
    xs * mask
}

/// Rows of `table` `(rows, d)` at `ids` of any shape: `(.., d)`.
///
/// # Errors
///
/// When an id is out of range.
pub fn embedding(ids: &Tensor, table: &Tensor) -> Result<Tensor> {
    let mut dims = ids.dims().to_vec();
    dims.push(table.dim(1)?);
    table.index_select(&ids.flatten_all()?.contiguous()?, 0)?.reshape(dims)
}

/// Cross-entropy of `logits` `(n, classes)` against `targets` `(n)`; see [`crate::cross_entropy`].
///
/// # Errors
///
/// When shapes differ.
pub fn cross_entropy(
    logits: &Tensor,
    targets: &Tensor,
    weights: Option<&Tensor>,
    config: &CrossEntropy,
) -> Result<Tensor> {
    let (n, classes) = logits.dims2()?;
    let ids = targets.to_vec1::<u32>()?;
    let ignored = |id: u32| config.ignore_index == Some(id);
    let safe: Vec<u32> = ids.iter().map(|&id| if ignored(id) { 0 } else { id }).collect();
    let kept: Vec<u8> = ids.iter().map(|&id| u8::from(!ignored(id))).collect();
    let safe = Tensor::from_vec(safe, (n, 1), logits.device())?;
    let kept = Tensor::from_vec(kept, n, logits.device())?;
    let weights = match weights {
        Some(weights) => weights.detach().to_dtype(logits.dtype())?,
        None => Tensor::ones(n, logits.dtype(), logits.device())?,
    };
    let weights = kept.where_cond(&weights, &weights.zeros_like()?)?;
    // Replaced and not just weighed: 0 times NaN is NaN, in the loss and in its gradient.
    let counts = weights.ne(0.)?.unsqueeze(1)?.broadcast_as((n, classes))?;
    let logits = counts.where_cond(logits, &logits.zeros_like()?)?;
    let rows = match logits.elem_count() {
        0 => weights.clone(),
        _ => (row_losses(&logits, &safe, config.label_smoothing)? * &weights)?,
    };
    match config.reduction {
        Reduction::None => Ok(rows),
        Reduction::Sum => rows.sum_all(),
        Reduction::Mean => rows.sum_all()?.div(&weights.sum_all()?),
    }
}

/// Cross-entropies of exits under one head, with all logits of an exit at a time.
///
/// # Errors
///
/// When shapes do not fit.
pub fn multi_exit_linear_cross_entropy(
    features: &[Tensor],
    weight: &Tensor,
    bias: Option<&Tensor>,
    targets: &Tensor,
    row_weights: Option<&Tensor>,
    config: &MultiExit,
) -> Result<MultiExitLoss> {
    let device = weight.device();
    let ids = targets.to_vec1::<u32>()?;
    let ignored = |id: u32| config.ignore_index == Some(id);
    let kept = Tensor::from_iter(ids.iter().map(|&id| f64::from(u8::from(!ignored(id)))), device)?;
    let row_weights = match row_weights {
        Some(weights) => {
            let weights = weights.detach().to_dtype(DType::F64)?;
            kept.ne(0.)?.where_cond(&weights, &kept)?
        }
        None => kept,
    };
    let targets = Tensor::from_iter(ids.iter().map(|&id| if ignored(id) { 0 } else { id }), device)?;
    let options = CrossEntropy { label_smoothing: config.label_smoothing, ..Default::default() };
    let mut total = Tensor::zeros((), weight.dtype(), device)?;
    let mut exits = Vec::new();
    for (xs, &exit_weight) in features.iter().zip(&config.exit_weights) {
        let logits = linear(xs, weight, bias)?;
        let loss = cross_entropy(&logits, &targets, Some(&row_weights), &options)?;
        exits.push(summary(&logits.detach(), &targets, &row_weights, &loss.detach())?);
        if exit_weight != 0. {
            total = (total + (loss * exit_weight)?)?;
        }
    }
    Ok(MultiExitLoss { total, exits })
}

fn summary(logits: &Tensor, targets: &Tensor, weights: &Tensor, loss: &Tensor) -> Result<ExitSummary> {
    let counted = weights.sum_all()?.to_scalar::<f64>()?;
    let counts = weights.ne(0.)?;
    let mean = |rows: &Tensor| -> Result<f64> {
        let rows = rows.to_dtype(DType::F64)?;
        let rows = counts.where_cond(&(&rows * weights)?, &rows.zeros_like()?)?;
        Ok(rows.sum_all()?.to_scalar::<f64>()? / counted)
    };
    let p = softmax(&logits.to_dtype(DType::F64)?)?;
    let (sorted, _) = p.sort_last_dim(false)?;
    let at = |i: usize| -> Result<Tensor> {
        if i < sorted.dim(1)? {
            sorted.narrow(1, i, 1)?.squeeze(1)
        } else {
            sorted.narrow(1, 0, 1)?.squeeze(1)?.zeros_like()
        }
    };
    // 0 ln 0 is 0.
    let entropy = (&p * p.maximum(f64::MIN_POSITIVE)?.log()?)?.sum(1)?.neg()?;
    Ok(ExitSummary {
        cross_entropy: loss.to_dtype(DType::F64)?.to_scalar()?,
        accuracy: mean(&logits.argmax(D::Minus1)?.eq(targets)?)?,
        max_probability: mean(&at(0)?)?,
        margin: mean(&(at(0)? - at(1)?)?)?,
        entropy: mean(&entropy)?,
    })
}

/// Cross-entropy of each row, `(n)`; `targets` is `(n, 1)`.
fn row_losses(logits: &Tensor, targets: &Tensor, label_smoothing: f64) -> Result<Tensor> {
    let (_, classes) = logits.dims2()?;
    let shifted = logits.broadcast_sub(&logits.max_keepdim(D::Minus1)?.detach())?;
    let log_sum = shifted.exp()?.sum_keepdim(D::Minus1)?.log()?;
    let log_probs = shifted.broadcast_sub(&log_sum)?;
    let hit = log_probs.gather(targets, 1)?.squeeze(1)?.neg()?;
    match label_smoothing {
        0. => Ok(hit),
        e => (hit * (1. - e))? + (log_probs.sum(1)? * (-e / classes as f64))?,
    }
}
