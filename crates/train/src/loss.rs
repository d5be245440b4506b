use candle_core::{D, DType, Device, Tensor};
use layerwise_models::{Batch, LinearExit, Pass, Tapped, tap::for_each_layer};
use layerwise_ops::{CrossEntropy, MANY_LOGITS, cross_entropy, linear, softmax};

use crate::{Error, Result, Terms, large_heads::LargeHeads};

/// Loss of one batch.
#[derive(Clone, Debug)]
pub struct Loss {
    /// The weighted sum of all terms, a scalar on the graph.
    pub total: Tensor,
    /// Mean cross-entropy, or squared error, of each exit that was computed for it; `None` for the others.
    pub per_layer: Vec<Option<f64>>,
}

/// An exit that was computed.
struct Exit {
    layer: usize,
    logits: Tensor,
    /// Cross-entropy, or squared error.
    error: Tensor,
}

/// The [`Terms`] of a batch: cross-entropies of the exits that have a weight, and what else there is.
///
/// `labels` is `(rows)`, a row for each row of the model's feature: u32 for classes; f32 for numbers, which a head of one output
/// predicts, and then the mean squared error stands wherever the cross-entropy does (there is no distillation of numbers).
///
/// # Errors
///
/// [`Error::Label`] naming row and label when the head has no such class; [`Error::Setting`] for numbers where the head has several outputs or
/// one is not finite; [`Error::Rows`] when the numbers of rows differ;
/// [`Error::Setting`] unless each list of weights is as long as the model is deep (or empty, where it may be) and one
/// cross-entropy or distillation has a weight that is not 0.
pub fn loss<M: Tapped + ?Sized>(
    model: &M,
    batch: &Batch,
    labels: &Tensor,
    terms: &Terms,
    label_smoothing: f64,
    pass: Pass,
) -> Result<Loss> {
    let depth = model.depth();
    terms.check(depth)?;
    // Once, and before the forward pass is under way.
    let labels = &labels.to_device(&Device::Cpu)?;
    let config = CrossEntropy { label_smoothing, ..Default::default() };
    let distilled = terms.distillation.iter().any(|weight| *weight != 0.);
    let teaches = |layer: usize| layer == depth && (distilled || terms.balanced);
    // Logits are wanted for more than cross-entropies, or are not those of classes.
    let logits_wanted = distilled || terms.balanced || labels.dtype() == DType::F32;
    let weighed_exits = terms.cross_entropy.iter().filter(|weight| **weight != 0.).count();
    let mut large = LargeHeads::default();
    let mut exits: Vec<Exit> = Vec::new();
    let mut features = Vec::new();
    for_each_layer(model, batch, pass, |layer, hidden| {
        if layer == 0 {
            return Ok(());
        }
        let weighed =
            [&terms.cross_entropy, &terms.distillation].iter().any(|weights| of(weights, layer) != 0.);
        let answers = weighed || teaches(layer);
        if !answers && terms.cosine.is_empty() {
            return Ok(());
        }
        let feature = model.feature(hidden)?;
        if answers {
            let exit = if logits_wanted { None } else { model.linear_exit(layer, &feature, pass)? };
            let logits = match exit {
                Some(exit) if together(&exit, weighed_exits, labels)? => {
                    check_labels(labels, exit.xs.dim(0)?, exit.weight.dim(0)?)?;
                    large.add(layer, exit, of(&terms.cross_entropy, layer));
                    None
                }
                Some(LinearExit { xs, weight, bias }) => Some(linear(&xs, &weight, bias.as_ref())?),
                None => Some(model.exit(layer, &feature, pass)?),
            };
            if let Some(logits) = logits {
                let logits = wide(&logits)?;
                if exits.is_empty() {
                    let (rows, classes) = logits.dims2()?;
                    check_labels(labels, rows, classes)?;
                    if distilled && labels.dtype() == DType::F32 {
                        return Err(setting(
                            "distillation",
                            "numbers",
                            "classes, which probabilities are of",
                        ));
                    }
                }
                let error = match labels.dtype() {
                    DType::F32 => differences(&logits, labels)?.sqr()?.mean_all()?,
                    _ => cross_entropy(&logits, labels, None, &config)?,
                };
                exits.push(Exit { layer, logits, error });
            }
        }
        if !terms.cosine.is_empty() {
            features.push(wide(&feature)?);
        }
        Ok::<_, Error>(())
    })?;
    let (mut sum, mut per_layer) = large.loss(labels, depth, label_smoothing)?;
    let mut add = |term: Tensor| {
        sum = Some(match &sum {
            Some(sum) => (sum + term)?,
            None => term,
        });
        Ok::<_, Error>(())
    };
    let pull = |exit: &Exit| pull(&exit.logits, labels, label_smoothing);
    let last = exits.last();
    let last_pull = last.filter(|_| terms.balanced).map(pull).transpose()?.unwrap_or_default();
    let teacher = last.filter(|_| distilled);
    let teacher = teacher.map(|last| log_softmax(&last.logits.detach(), terms.temperature)).transpose()?;
    for exit in &exits {
        let (mut hard, soft) = (of(&terms.cross_entropy, exit.layer), of(&terms.distillation, exit.layer));
        if hard != 0. {
            if terms.balanced && exit.layer != depth {
                let own = pull(exit)?;
                hard *= if own > last_pull { last_pull / own } else { 1. };
            }
            add((&exit.error * hard)?)?;
        }
        if let Some(teacher) = teacher.as_ref().filter(|_| soft != 0.) {
            let divergence = divergence(teacher, &log_softmax(&exit.logits, terms.temperature)?)?;
            add((divergence * (soft * terms.temperature.powi(2)))?)?;
        }
    }
    if let Some((last, inner)) = features.split_last() {
        for (feature, weight) in inner.iter().zip(&terms.cosine).filter(|(_, weight)| **weight != 0.) {
            add(((1. - cosine(feature, last)?)? * *weight)?)?;
        }
    }
    let Some(total) = sum else {
        return Err(candle_core::Error::msg("the model ran no layer").into());
    };
    if !exits.is_empty() {
        // All at once.
        let errors = exits.iter().map(|exit| exit.error.detach().to_dtype(DType::F64));
        let errors = Tensor::stack(&errors.collect::<candle_core::Result<Vec<_>>>()?, 0)?.to_vec1::<f64>()?;
        for (exit, error) in exits.iter().zip(errors) {
            per_layer[exit.layer - 1] = Some(error);
        }
    }
    Ok(Loss { total, per_layer })
}

/// The weight of a layer; 0 where there are none.
fn of(weights: &[f64], layer: usize) -> f64 {
    weights.get(layer - 1).copied().unwrap_or(0.)
}

/// Euclidean norm of `dCE/dz` at all logits, times the number of rows: what `softmax(z)` lacks to the targets; of a squared error, twice
/// the differences.
fn pull(logits: &Tensor, labels: &Tensor, label_smoothing: f64) -> Result<f64> {
    if labels.dtype() == DType::F32 {
        let differences = differences(&logits.detach(), labels)?.to_dtype(DType::F64)?;
        return Ok(2. * differences.sqr()?.sum_all()?.to_scalar::<f64>()?.sqrt());
    }
    let rows = softmax(&logits.detach())?.to_dtype(DType::F64)?.to_vec2::<f64>()?;
    let mut squares = 0.;
    for (row, label) in rows.iter().zip(labels.to_vec1::<u32>()?) {
        let spread = label_smoothing / row.len() as f64;
        for (class, p) in row.iter().enumerate() {
            let target = spread + if class == label as usize { 1. - label_smoothing } else { 0. };
            squares += (p - target).powi(2);
        }
    }
    Ok(squares.sqrt())
}

/// Of 16 bits in f32: losses are small differences.
fn wide(xs: &Tensor) -> Result<Tensor> {
    let half = [DType::F16, DType::BF16].contains(&xs.dtype());
    Ok(if half { xs.to_dtype(DType::F32)? } else { xs.clone() })
}

/// Predicted numbers less those that were to be predicted.
fn differences(logits: &Tensor, labels: &Tensor) -> Result<Tensor> {
    Ok((logits.squeeze(1)? - labels.to_device(logits.device())?.to_dtype(logits.dtype())?)?)
}

/// `log softmax(z / T)` of each row.
fn log_softmax(logits: &Tensor, temperature: f64) -> Result<Tensor> {
    let logits = (logits / temperature)?;
    Ok(logits.broadcast_sub(&logits.log_sum_exp(D::Minus1)?.unsqueeze(D::Minus1)?)?)
}

/// `KL(p || q)`, mean over rows, of logarithms of probabilities.
fn divergence(p: &Tensor, q: &Tensor) -> Result<Tensor> {
    Ok((p.exp()? * (p - q)?)?.sum(D::Minus1)?.mean_all()?)
}

/// Cosine of each row with that of another tensor, mean over rows.
fn cosine(xs: &Tensor, ys: &Tensor) -> Result<Tensor> {
    let dot = |a: &Tensor, b: &Tensor| (a * b)?.sum(D::Minus1);
    // A row of zeros has cosine 0 with all others.
    let norms = (dot(xs, xs)? * dot(ys, ys)?)?.affine(1., f64::from(f32::MIN_POSITIVE))?.sqrt()?;
    Ok((dot(xs, ys)? / norms)?.mean_all()?)
}

/// Whether the losses of all exits are computed as one: where their logits would be large, and on a GPU, which is waited for once a head then.
fn together(exit: &LinearExit, exits: usize, labels: &Tensor) -> Result<bool> {
    let logits = exit.xs.dim(0)? * exit.weight.dim(0)? * exits;
    Ok(labels.dtype() != DType::F32 && (exit.xs.device().is_cuda() || logits > MANY_LOGITS))
}

fn check_labels(labels: &Tensor, rows: usize, classes: usize) -> Result<()> {
    if labels.dtype() == DType::F32 {
        if classes != 1 {
            return Err(setting(
                "labels",
                &format!("numbers for a head of {classes} outputs"),
                "classes, or a head of one",
            ));
        }
        let numbers = labels.to_vec1::<f32>()?;
        if rows != numbers.len() {
            return Err(Error::Rows { rows, labels: numbers.len() });
        }
        return match numbers.iter().position(|number| !number.is_finite()) {
            Some(row) => Err(setting("labels", &format!("{} in row {row}", numbers[row]), "finite numbers")),
            None => Ok(()),
        };
    }
    let labels = labels.to_vec1::<u32>()?;
    if rows != labels.len() {
        return Err(Error::Rows { rows, labels: labels.len() });
    }
    match labels.iter().position(|&label| label as usize >= classes) {
        Some(row) => Err(Error::Label { row, label: labels[row], classes }),
        None => Ok(()),
    }
}

fn setting(field: &'static str, value: &str, expected: &str) -> Error {
    Error::Setting { field, value: value.to_owned(), expected: expected.to_owned() }
}
