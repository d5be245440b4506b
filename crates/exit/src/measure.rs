use std::time::Instant;

use candle_core::Tensor;
use layerwise_models::{Batch, Tapped};
use serde::{Deserialize, Serialize};

use crate::{
    Compaction, Engine, Error, Result, Thresholds,
    accounting::{histogram, layer_ratio, quantile},
    evaluate::{argmax, check_labels, rows},
};

/// What an engine gave and what it saved.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ExitReport {
    /// Samples of the largest batch.
    pub batch: usize,
    /// Fraction of samples answered rightly.
    pub accuracy: f64,
    /// See [`layer_ratio`].
    pub layer_ratio: f64,
    /// Time without exits over time with them, the median of the rounds' ratios.
    pub wall_ratio: f64,
    /// Median milliseconds of a batch of the largest size.
    pub p50_ms: f64,
    /// Milliseconds that 95 % of them stayed below.
    pub p95_ms: f64,
    /// Samples a second, all batches together.
    pub samples_per_s: f64,
    /// Samples that left after layer `1..=L`.
    pub histogram: Vec<usize>,
}

/// Runs `model` under each of `engines` and measures accuracy, layers and time.
///
/// `batches` gives all labelled batches, once for each round; a sample's key is its place among them. The clock runs only inside the
/// engine. Every batch goes through an engine without exits and through each of these, in changing order, so that what else the machine
/// does touches all alike; one round more comes first, to warm up.
///
/// # Errors
///
/// [`Error::Setting`] for 0 rounds, [`Error::Empty`] without samples; otherwise as [`Engine::run`] and
/// [`evaluate`](crate::evaluate), and what the batches report.
pub fn measure<M: Tapped + ?Sized, I>(
    model: &M,
    batches: impl Fn() -> I,
    engines: &[Engine<'_>],
    rounds: usize,
) -> Result<Vec<ExitReport>>
where
    I: IntoIterator<Item = candle_core::Result<(Batch, Tensor)>>,
{
    if rounds == 0 {
        return Err(Error::Setting { field: "rounds", value: "0".into(), expected: "at least 1" });
    }
    let nobody = Thresholds::none();
    let without = Engine { policy: &nobody, compaction: Compaction::Always };
    let engines: Vec<Engine<'_>> = [without].iter().chain(engines).copied().collect();
    let mut runs = vec![Run { round_s: vec![0.; rounds], ..Default::default() }; engines.len()];
    let (mut largest, mut turn) = (0, 0);
    for round in 0..=rounds {
        let mut seen = 0;
        for batch in batches() {
            let (batch, labels) = batch?;
            let labels = labels.to_vec1::<u32>()?;
            let keys: Vec<u64> = (seen..).take(labels.len()).collect();
            seen += labels.len() as u64;
            largest = largest.max(labels.len());
            turn += 1;
            // Each has every place in turn: what runs first finds other caches than what runs last.
            for place in 0..engines.len() {
                let place = if turn % 2 == 0 { place } else { engines.len() - 1 - place };
                let which = (place + turn / 2) % engines.len();
                let (run, engine) = (&mut runs[which], &engines[which]);
                let start = Instant::now();
                let out = match keys.len() == batch.rows()? {
                    true => engine.run_keyed(model, &batch, &keys)?,
                    false => engine.run(model, &batch)?,
                };
                if let Some(round) = round.checked_sub(1) {
                    let seconds = start.elapsed().as_secs_f64();
                    run.round_s[round] += seconds;
                    run.batches.push((labels.len(), seconds));
                    continue;
                }
                let answers = rows(&out.logits, model.depth())?;
                check_labels(&answers, &labels)?;
                run.hits +=
                    answers.iter().zip(&labels).filter(|(row, l)| argmax(row) == **l as usize).count();
                run.layers.extend(out.layer);
            }
        }
    }
    if largest == 0 {
        return Err(Error::Empty);
    }
    let without = runs[0].clone();
    Ok(runs.split_off(1).into_iter().map(|run| run.report(&without, largest, model.depth())).collect())
}

/// What was seen of one engine.
#[derive(Clone, Default)]
struct Run {
    round_s: Vec<f64>,
    /// Rows and seconds of every batch.
    batches: Vec<(usize, f64)>,
    hits: usize,
    layers: Vec<usize>,
}

impl Run {
    fn report(self, without: &Self, largest: usize, depth: usize) -> ExitReport {
        let ratios: Vec<f64> =
            without.round_s.iter().zip(&self.round_s).map(|(full, exits)| full / exits).collect();
        let of_largest = self.batches.iter().filter(|(rows, _)| *rows == largest);
        let ms: Vec<f64> = of_largest.map(|(_, seconds)| 1e3 * seconds).collect();
        let rounds = self.round_s.len();
        let samples = self.layers.len();
        let histogram = histogram(&self.layers, depth);
        ExitReport {
            batch: largest,
            accuracy: self.hits as f64 / samples as f64,
            layer_ratio: layer_ratio(&histogram),
            wall_ratio: quantile(&ratios, 0.5),
            p50_ms: quantile(&ms, 0.5),
            p95_ms: quantile(&ms, 0.95),
            samples_per_s: (rounds * samples) as f64 / self.round_s.iter().sum::<f64>(),
            histogram,
        }
    }
}
