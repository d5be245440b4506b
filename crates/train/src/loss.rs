use candle_core::{DType, Tensor};
use layerwise_models::{Batch, Pass, Tapped, tap::for_each_layer};
use layerwise_ops::{CrossEntropy, cross_entropy};

use crate::{Error, Result};

/// Loss of one batch.
#[derive(Clone, Debug)]
pub struct Loss {
    /// `sum_l w_l CE_l`, a scalar on the graph.
    pub total: Tensor,
    /// Mean cross-entropy of each exit that has a weight; `None` for the others, which are not computed.
    pub per_layer: Vec<Option<f64>>,
}

/// `sum_l w_l CE(exit_l(h^l), y)` over the exits whose weight is not 0.
///
/// `labels` is `(rows)`, u32, a row for each row of the model's feature; `weights` has one value a layer.
///
/// # Errors
///
/// [`Error::Label`] naming row and label when the head has no such class; [`Error::Rows`] when the numbers of rows differ;
/// [`Error::Setting`] unless there is one weight a layer and one that is not 0.
pub fn loss<M: Tapped + ?Sized>(
    model: &M,
    batch: &Batch,
    labels: &Tensor,
    weights: &[f64],
    label_smoothing: f64,
    pass: Pass,
) -> Result<Loss> {
    let depth = model.depth();
    if weights.len() != depth || weights.iter().all(|w| *w == 0.) {
        let expected = format!("{depth}, one a layer, not all 0");
        return Err(Error::Setting { field: "weights", value: format!("{weights:?}"), expected });
    }
    let config = CrossEntropy { label_smoothing, ..Default::default() };
    let mut per_layer = vec![None; depth];
    let mut total: Option<Tensor> = None;
    for_each_layer(model, batch, pass, |layer, hidden| {
        let Some(weight) = layer.checked_sub(1).map(|i| weights[i]).filter(|weight| *weight != 0.) else {
            return Ok(());
        };
        let logits = model.exit(layer, &model.feature(hidden)?)?;
        let (rows, classes) = logits.dims2()?;
        if total.is_none() {
            check_labels(labels, rows, classes)?;
        }
        let exit = cross_entropy(&logits, labels, None, &config)?;
        per_layer[layer - 1] = Some(exit.to_dtype(DType::F64)?.to_scalar::<f64>()?);
        let exit = (exit * weight)?;
        total = Some(match &total {
            Some(total) => (total + exit)?,
            None => exit,
        });
        Ok::<_, Error>(())
    })?;
    match total {
        Some(total) => Ok(Loss { total, per_layer }),
        None => Err(candle_core::Error::msg("the model ran no layer").into()),
    }
}

fn check_labels(labels: &Tensor, rows: usize, classes: usize) -> Result<()> {
    let labels = labels.to_vec1::<u32>()?;
    if rows != labels.len() {
        return Err(Error::Rows { rows, labels: labels.len() });
    }
    match labels.iter().position(|&label| label as usize >= classes) {
        Some(row) => Err(Error::Label { row, label: labels[row], classes }),
        None => Ok(()),
    }
}
