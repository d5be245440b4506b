use candle_core::Tensor;
use layerwise_models::{Batch, Pass, Tapped, tap::for_each_layer};
use layerwise_ops::{CrossEntropy, Reduction, cross_entropy};

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
/// `labels` is `(rows)`, u32, a row for each row of the model's feature; `weights` has one value a layer. The logits of all
/// exits are stacked as rows of one cross-entropy, with `w_l` as the rows' weights.
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
    let mut logits = Vec::new();
    for_each_layer(model, batch, pass, |layer, hidden| {
        if layer > 0 && weights[layer - 1] != 0. {
            logits.push(model.exit(layer, &model.feature(hidden)?)?);
        }
        Ok::<_, Error>(())
    })?;
    let (exits, (rows, classes)) = (logits.len(), logits[0].dims2()?);
    check_labels(labels, rows, classes)?;
    let stacked = Tensor::cat(&logits, 0)?; // (exits * rows, classes)
    let targets = labels.repeat(exits)?;
    let config = CrossEntropy { label_smoothing, reduction: Reduction::None, ..Default::default() };
    let row_losses = cross_entropy(&stacked, &targets, None, &config)?;
    let used: Vec<f64> = weights.iter().copied().filter(|w| *w != 0.).collect();
    let per_exit = row_losses.reshape((exits, rows))?.mean(1)?;
    let lambda = Tensor::new(used.as_slice(), labels.device())?.to_dtype(per_exit.dtype())?;
    let total = (&per_exit * lambda)?.sum_all()?;
    let mut values = per_exit.to_dtype(candle_core::DType::F64)?.to_vec1::<f64>()?.into_iter();
    let per_layer = weights.iter().map(|w| if *w == 0. { None } else { values.next() }).collect();
    Ok(Loss { total, per_layer })
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
