use std::time::Instant;

use candle_core::Tensor;
use layerwise_models::{Batch, Tapped};
use serde::{Deserialize, Serialize};

use crate::{
    Error, Result,
    accounting::{histogram, layer_ratio},
    engine::leave_early,
    evaluate::{argmax, check_labels, rows},
};

/// What one threshold gave and what it saved.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ExitReport {
    /// Confidence above which a sample left.
    pub threshold: f64,
    /// Samples a batch.
    pub batch: usize,
    /// Fraction of samples answered rightly.
    pub accuracy: f64,
    /// See [`layer_ratio`].
    pub layer_ratio: f64,
    /// Time of the same engine without exits over its time with them, medians of the rounds.
    pub wall_ratio: f64,
    /// Samples that left after layer `1..=L`.
    pub histogram: Vec<usize>,
}

/// Leaves `model` at each of `thresholds`, in batches of `batch_size`, and measures accuracy, layer ratio and time.
///
/// Every round runs the engine once without exits and once for each threshold, so that what else the machine does touches
/// all alike; one round more comes first, to warm up.
///
/// # Errors
///
/// [`Error::Setting`] for a batch size or number of rounds of 0; otherwise as [`leave_early`] and
/// [`evaluate`](crate::evaluate).
pub fn measure<M: Tapped>(
    model: &M,
    inputs: &Batch,
    labels: &Tensor,
    batch_size: usize,
    thresholds: &[f64],
    rounds: usize,
) -> Result<Vec<ExitReport>> {
    for (field, value) in [("batch_size", batch_size), ("rounds", rounds)] {
        if value == 0 {
            return Err(Error::Setting { field, value: "0".into(), expected: "at least 1" });
        }
    }
    let labels = labels.to_vec1::<u32>()?;
    let batches = split(inputs, batch_size)?;
    // Above every probability: nobody leaves.
    const NO_EXITS: f64 = 2.;
    let all: Vec<f64> = [NO_EXITS].iter().chain(thresholds).copied().collect();
    let mut seconds = vec![Vec::with_capacity(rounds); all.len()];
    let mut runs = Vec::with_capacity(all.len());
    for round in 0..=rounds {
        for (i, &threshold) in all.iter().enumerate() {
            let start = Instant::now();
            let run = run(model, &batches, threshold)?;
            match round {
                0 => {
                    check_labels(&run.0, &labels)?;
                    runs.push(run);
                }
                _ => seconds[i].push(start.elapsed().as_secs_f64()),
            }
        }
    }
    let full = median(&mut seconds[0]);
    thresholds
        .iter()
        .zip(&runs[1..])
        .zip(&mut seconds[1..])
        .map(|((&threshold, (answers, layers)), seconds)| {
            let hits = answers.iter().zip(&labels).filter(|(row, label)| argmax(row) == **label as usize);
            let histogram = histogram(layers, model.depth());
            Ok(ExitReport {
                threshold,
                batch: batch_size,
                accuracy: hits.count() as f64 / labels.len() as f64,
                layer_ratio: layer_ratio(&histogram),
                wall_ratio: full / median(seconds),
                histogram,
            })
        })
        .collect()
}

/// A batch as batches of `size` rows, the last one shorter; views, not copies.
///
/// # Errors
///
/// [`Error::Setting`] when `size` is 0, [`Error::Empty`] when there are no rows.
pub fn split(batch: &Batch, size: usize) -> Result<Vec<Batch>> {
    if size == 0 {
        return Err(Error::Setting { field: "size", value: "0".into(), expected: "at least 1" });
    }
    let rows = batch.rows()?;
    if rows == 0 {
        return Err(Error::Empty);
    }
    (0..rows)
        .step_by(size)
        .map(|start| {
            let part = |xs: &Tensor| xs.narrow(0, start, size.min(rows - start));
            Ok(Batch {
                inputs: part(&batch.inputs)?,
                mask: batch.mask.as_ref().map(part).transpose()?,
                token_types: batch.token_types.as_ref().map(part).transpose()?,
            })
        })
        .collect()
}

/// Logits and exit layers of all rows.
fn run<M: Tapped>(model: &M, batches: &[Batch], threshold: f64) -> Result<(Vec<Vec<f32>>, Vec<usize>)> {
    let (mut answers, mut layers) = (Vec::new(), Vec::new());
    for batch in batches {
        let out = leave_early(model, batch, threshold)?;
        answers.extend(rows(&out.logits, model.depth())?);
        layers.extend(out.layer);
    }
    Ok((answers, layers))
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() % 2 {
        0 => (values[middle - 1] + values[middle]) / 2.,
        _ => values[middle],
    }
}
