use candle_core::{DType, Tensor};
use layerwise_models::{Batch, Hidden, LinearExit, Pass, Tapped, tap};
use layerwise_ops::{MANY_LOGITS, MultiExit, multi_exit_linear_cross_entropy};
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// What the exit after each layer is worth on a data set; index 0 is layer 1.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LayerScores {
    /// Fraction of samples whose largest logit is the label's.
    pub accuracy: Vec<f64>,
    /// Mean cross-entropy, nats.
    pub loss: Vec<f64>,
    /// Number of samples scored.
    pub samples: usize,
}

/// Scores every exit of `model` on labelled batches: layer-wise accuracy and loss.
///
/// Labels are `(rows)`, u32, one for each row of the model's feature. How the samples are cut into batches matters only to the last digits: a matrix product of another
/// height may sum in another order. One exit's logits are in memory at a time, or, of a head of many words, those of some rows;
/// pass a frozen model, or a batch's graph stays until its last layer.
///
/// # Errors
///
/// [`Error::Empty`] without samples, [`Error::Label`] and [`Error::Rows`] for labels that do not fit, and
/// [`Error::NotFinite`] naming the layer and row of a NaN; otherwise what the batches or the model report.
pub fn evaluate<M: Tapped + ?Sized>(
    model: &M,
    batches: impl IntoIterator<Item = candle_core::Result<(Batch, Tensor)>>,
) -> Result<LayerScores> {
    let mut hits = vec![0usize; model.depth()];
    let mut losses = vec![0f64; model.depth()];
    let mut samples = 0;
    for batch in batches {
        let (batch, labels) = batch?;
        let ids = labels;
        let labels = ids.to_vec1::<u32>()?;
        // All exits of a batch are as large as the first.
        let mut small = false;
        tap::for_each_layer(model, &batch, Pass::EVAL, |layer, hidden| {
            let Some(l) = layer.checked_sub(1) else { return Ok(()) };
            if !small && let Some(exit) = large(model, layer, hidden)? {
                let (right, loss) = of_rows(layer, &exit, &ids)?;
                hits[l] += right;
                losses[l] += loss;
                return Ok(());
            }
            small = true;
            let logits = model.answer(layer, hidden)?;
            let rows = rows(&logits, layer)?;
            check_labels(&rows, &labels)?;
            for (row, &label) in rows.iter().zip(&labels) {
                hits[l] += usize::from(argmax(row) == label as usize);
                losses[l] += log_sum_exp(row) - f64::from(row[label as usize]);
            }
            Ok::<_, Error>(())
        })?;
        samples += labels.len();
    }
    if samples == 0 {
        return Err(Error::Empty);
    }
    let n = samples as f64;
    Ok(LayerScores {
        accuracy: hits.iter().map(|&hits| hits as f64 / n).collect(),
        loss: losses.iter().map(|loss| loss / n).collect(),
        samples,
    })
}

/// An exit whose logits are too many to be in memory at once.
fn large<M: Tapped + ?Sized>(model: &M, layer: usize, hidden: &Hidden) -> Result<Option<LinearExit>> {
    let feature = model.feature(hidden)?;
    let exit = model.linear_exit(layer, &feature, Pass::EVAL)?;
    let many = |exit: &LinearExit| Ok::<_, Error>(exit.xs.dim(0)? * exit.weight.dim(0)? > MANY_LOGITS);
    exit.map(|exit| Ok(many(&exit)?.then_some(exit))).transpose().map(Option::flatten)
}

/// How many rows are right, and the sum of their losses.
fn of_rows(layer: usize, exit: &LinearExit, ids: &Tensor) -> Result<(usize, f64)> {
    let LinearExit { xs, weight, bias } = exit;
    let (rows, labels, classes) = (xs.dim(0)?, ids.to_vec1::<u32>()?, weight.dim(0)?);
    fits(rows, classes, &labels)?;
    let config = MultiExit { exit_weights: vec![1.], ..Default::default() };
    let bias = bias.as_ref().map(Tensor::detach);
    let of = |xs: &Tensor, ids: &Tensor| {
        let (xs, weight) = (xs.detach(), weight.detach());
        let done = multi_exit_linear_cross_entropy(&[xs], &weight, bias.as_ref(), ids, None, &config)?;
        Ok::<_, Error>(done.exits[0])
    };
    let all = of(xs, ids)?;
    if !all.cross_entropy.is_finite() {
        for row in 0..rows {
            if !of(&xs.narrow(0, row, 1)?, &ids.narrow(0, row, 1)?)?.cross_entropy.is_finite() {
                return Err(Error::NotFinite { layer, row });
            }
        }
    }
    let n = rows as f64;
    Ok(((all.accuracy * n).round() as usize, all.cross_entropy * n))
}

/// Logits `(rows, classes)` of the exit after `layer` as rows, all finite.
pub(crate) fn rows(logits: &Tensor, layer: usize) -> Result<Vec<Vec<f32>>> {
    let rows = logits.to_dtype(DType::F32)?.to_vec2::<f32>()?;
    match rows.iter().position(|row| row.iter().any(|x| !x.is_finite())) {
        Some(row) => Err(Error::NotFinite { layer, row }),
        None => Ok(rows),
    }
}

/// One label a row, each below the number of classes.
pub(crate) fn check_labels(rows: &[Vec<f32>], labels: &[u32]) -> Result<()> {
    fits(rows.len(), rows.first().map_or(0, Vec::len), labels)
}

fn fits(rows: usize, classes: usize, labels: &[u32]) -> Result<()> {
    if rows != labels.len() {
        return Err(Error::Rows { rows, labels: labels.len() });
    }
    match labels.iter().position(|&label| label as usize >= classes) {
        Some(row) => Err(Error::Label { row, label: labels[row], classes }),
        None => Ok(()),
    }
}

/// Index of the largest logit, the first of equals.
pub(crate) fn argmax(row: &[f32]) -> usize {
    let mut best = 0;
    for (i, x) in row.iter().enumerate() {
        if *x > row[best] {
            best = i;
        }
    }
    best
}

/// `log sum_j exp(x_j)`, shifted by the maximum.
fn log_sum_exp(row: &[f32]) -> f64 {
    let max = f64::from(row[argmax(row)]);
    max + row.iter().map(|&x| (f64::from(x) - max).exp()).sum::<f64>().ln()
}
