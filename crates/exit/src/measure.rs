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
    /// Samples of the largest batch.
    pub batch: usize,
    /// Fraction of samples answered rightly.
    pub accuracy: f64,
    /// See [`layer_ratio`].
    pub layer_ratio: f64,
    /// Time of the same engine without exits over its time with them, the median of the rounds' ratios.
    pub wall_ratio: f64,
    /// Samples that left after layer `1..=L`.
    pub histogram: Vec<usize>,
}

/// Leaves `model` at each of `thresholds` and measures accuracy, layer ratio and time.
///
/// `batches` gives all labelled batches, once for each round; the clock runs only inside the engine. Every batch goes through
/// the engine without exits and then at each threshold, so that what else the machine does touches all alike; one round
/// more comes first, to warm up.
///
/// # Errors
///
/// [`Error::Setting`] for 0 rounds, [`Error::Empty`] without samples; otherwise as [`leave_early`] and
/// [`evaluate`](crate::evaluate), and what the batches report.
pub fn measure<M: Tapped + ?Sized, I>(
    model: &M,
    batches: impl Fn() -> I,
    thresholds: &[f64],
    rounds: usize,
) -> Result<Vec<ExitReport>>
where
    I: IntoIterator<Item = candle_core::Result<(Batch, Tensor)>>,
{
    if rounds == 0 {
        return Err(Error::Setting { field: "rounds", value: "0".into(), expected: "at least 1" });
    }
    // Above every probability: nobody leaves.
    const NO_EXITS: f64 = 2.;
    let all: Vec<f64> = [NO_EXITS].iter().chain(thresholds).copied().collect();
    let mut seconds = vec![vec![0.; rounds]; all.len()];
    let mut hits = vec![0; all.len()];
    let mut layers = vec![Vec::new(); all.len()];
    let mut largest = 0;
    for round in 0..=rounds {
        for batch in batches() {
            let (batch, labels) = batch?;
            let labels = labels.to_vec1::<u32>()?;
            largest = largest.max(labels.len());
            for (i, &threshold) in all.iter().enumerate() {
                let start = Instant::now();
                let out = leave_early(model, &batch, threshold)?;
                if let Some(round) = round.checked_sub(1) {
                    seconds[i][round] += start.elapsed().as_secs_f64();
                    continue;
                }
                let answers = rows(&out.logits, model.depth())?;
                check_labels(&answers, &labels)?;
                hits[i] += answers.iter().zip(&labels).filter(|(row, l)| argmax(row) == **l as usize).count();
                layers[i].extend(out.layer);
            }
        }
    }
    if largest == 0 {
        return Err(Error::Empty);
    }
    let report = |(i, &threshold): (usize, &f64)| {
        let i = i + 1;
        let mut ratios: Vec<f64> =
            seconds[0].iter().zip(&seconds[i]).map(|(full, exits)| full / exits).collect();
        let histogram = histogram(&layers[i], model.depth());
        ExitReport {
            threshold,
            batch: largest,
            accuracy: hits[i] as f64 / layers[i].len() as f64,
            layer_ratio: layer_ratio(&histogram),
            wall_ratio: median(&mut ratios),
            histogram,
        }
    };
    Ok(thresholds.iter().enumerate().map(report).collect())
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() % 2 {
        0 => (values[middle - 1] + values[middle]) / 2.,
        _ => values[middle],
    }
}
