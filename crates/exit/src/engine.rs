use candle_core::Tensor;
use layerwise_models::{Batch, Pass, Tapped};

use crate::{Error, Result, evaluate::rows};

/// Answers of a batch, in the order of its rows.
#[derive(Clone, Debug)]
pub struct Exited {
    /// `(rows, classes)`: the logits of the exit that each row left by; no graph hangs on them.
    pub logits: Tensor,
    /// The layer, from 1, after which each row left.
    pub layer: Vec<usize>,
}

/// Runs a batch block by block; a row leaves at the first layer whose largest softmax probability exceeds `threshold`.
///
/// Rows that left are taken out of the batch and not computed further. The last layer always answers. Above 1 nobody leaves
/// early and no exit but the last is computed; at 0 and below everybody leaves after layer 1.
///
/// # Errors
///
/// [`Error::Setting`] when the threshold is not finite, [`Error::Empty`] for a batch without rows, [`Error::NotFinite`]
/// naming the layer and the batch's row of a NaN among the logits, [`Error::Answers`] for a model that predicts more or
/// less than one row a sample.
pub fn leave_early<M: Tapped + ?Sized>(model: &M, batch: &Batch, threshold: f64) -> Result<Exited> {
    if !threshold.is_finite() {
        return Err(Error::Setting {
            field: "threshold",
            value: threshold.to_string(),
            expected: "a finite number",
        });
    }
    let (samples, depth) = (batch.rows()?, model.depth());
    if samples == 0 {
        return Err(Error::Empty);
    }
    let mut hidden = model.embed(batch, Pass::EVAL)?.detach();
    let device = hidden.xs.device().clone();
    // Input rows of those still in the batch, in the order in which they stand there.
    let mut alive: Vec<usize> = (0..samples).collect();
    let mut layer = vec![depth; samples];
    let mut answers: Vec<Tensor> = Vec::new();
    let mut answered: Vec<usize> = Vec::with_capacity(samples);
    for l in 1..=depth {
        hidden = model.block(l, &hidden, Pass::EVAL)?.detach();
        if l < depth && threshold > 1. {
            continue;
        }
        let logits = model.exit(l, &model.feature(&hidden)?)?.detach();
        let confidence = confidences(&logits, l, &alive)?;
        let leaves = |i: usize| l == depth || confidence[i] > threshold;
        let (gone, kept): (Vec<u32>, Vec<u32>) = (0..alive.len() as u32).partition(|&i| leaves(i as usize));
        if gone.is_empty() {
            continue;
        }
        for &i in &gone {
            layer[alive[i as usize]] = l;
            answered.push(alive[i as usize]);
        }
        if kept.is_empty() {
            answers.push(logits);
            break;
        }
        answers.push(logits.contiguous()?.index_select(&Tensor::new(gone, &device)?, 0)?);
        hidden = model.select(&hidden, &Tensor::new(kept.as_slice(), &device)?)?;
        alive = kept.iter().map(|&i| alive[i as usize]).collect();
    }
    let logits = match answers.as_slice() {
        [all] => all.clone(),
        parts => in_input_order(parts, &answered, &device)?,
    };
    Ok(Exited { logits, layer })
}

/// Largest softmax probability of each row; `alive` are the samples that the rows belong to.
fn confidences(logits: &Tensor, layer: usize, alive: &[usize]) -> Result<Vec<f64>> {
    let answers = logits.dim(0)?;
    if answers != alive.len() {
        return Err(Error::Answers { layer, answers, samples: alive.len() });
    }
    let confidence = |row: &Vec<f32>| {
        let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        1. / row.iter().map(|x| f64::from(x - max).exp()).sum::<f64>()
    };
    let rows = rows(logits, layer).map_err(|error| match error {
        Error::NotFinite { layer, row } => Error::NotFinite { layer, row: alive[row] },
        other => other,
    })?;
    Ok(rows.iter().map(confidence).collect())
}

/// Rows of `parts`, one after the other, belong to the samples `order`.
fn in_input_order(parts: &[Tensor], order: &[usize], device: &candle_core::Device) -> Result<Tensor> {
    let mut position = vec![0u32; order.len()];
    for (at, &sample) in order.iter().enumerate() {
        position[sample] = at as u32;
    }
    Ok(Tensor::cat(parts, 0)?.index_select(&Tensor::new(position, device)?, 0)?)
}
