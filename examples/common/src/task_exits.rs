//! Leaving early on a task of GLUE: by what a sample's certainty is read, and what each threshold saves and costs of the task's score.

use std::path::Path;

use anyhow::{Context, Result};
use candle_core::Tensor;
use layerwise_data::{Targets, glue::Task};
use layerwise_exit::{
    Calibration, Error as ExitError, Gate, HeldOut, SavedExits, Signal, Thresholds, layer_ratio,
};
use layerwise_models::Bert;
use serde::{Serialize, Serializer};

use crate::{glue::score, progress};

/// Thresholds that exits are shown at.
const STEPS: usize = 41;
/// The gate of a task of numbers learns from every fifth sample held out.
const GATE_EVERY: u32 = 5;
/// How close an inner layer's number is to the last one's for the gate to call it right: a tenth of STS-B's scale.
const CLOSE: f32 = 0.5;

/// Of a score from 0 to 1.
pub const A_POINT: f64 = 0.01;

/// Leaving by one signal.
#[derive(Clone, Debug, Serialize)]
pub struct TaskExits {
    /// What thresholds are compared with; in words in results.
    #[serde(serialize_with = "written_in_words")]
    pub signal: Signal,
    /// On which this was tried.
    pub samples: usize,
    /// Their score after the last layer.
    pub full: f64,
    /// From cautious to bold: of all that were tried, those than which no other saves more and scores as well.
    pub leaving: Vec<Leaving>,
}

/// Leaving at one threshold, from one layer on.
#[derive(Clone, Debug, Serialize)]
pub struct Leaving {
    /// Who leaves where.
    #[serde(skip)]
    pub thresholds: Thresholds,
    /// The first layer after which a sample may leave.
    pub from: usize,
    /// On the signal.
    pub threshold: f64,
    /// Layers of the model over mean layers of a sample.
    pub layer_ratio: f64,
    /// The task's score of the answers given.
    pub score: f64,
    /// Samples that leave after each layer.
    pub histogram: Vec<usize>,
}

/// What tables call a signal.
#[must_use]
pub fn in_words(signal: &Signal) -> &'static str {
    match signal {
        Signal::MaxProbability => "largest probability",
        Signal::Margin => "margin",
        Signal::Entropy => "entropy",
        Signal::Patience => "patience",
        Signal::Saturation => "saturation",
        Signal::Change => "change of the answer",
        Signal::Gate(_) => "learned gate",
    }
}

fn written_in_words<S: Serializer>(signal: &Signal, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(in_words(signal))
}

impl TaskExits {
    /// The boldest that costs at most so much of the score.
    #[must_use]
    pub fn within(&self, lost: f64) -> Option<&Leaving> {
        self.leaving.iter().rfind(|exit| self.full - exit.score <= lost + 1e-12)
    }
}

/// Two ways to leave where the answer is a number, on the samples that the gate has not learned from.
///
/// # Errors
///
/// What the gate reports, and scoring.
pub fn number_exits(
    task: Task,
    model: &Bert,
    (features, logits): (&[Tensor], &[Tensor]),
    numbers: &[f32],
) -> Result<Vec<TaskExits>> {
    let (learn, test): (Vec<u32>, Vec<u32>) =
        (0..numbers.len() as u32).partition(|sample| sample % GATE_EVERY == 0);
    let rows = |layers: &[Tensor], rows: &[u32]| -> Result<Vec<Tensor>> {
        let rows = Tensor::new(rows, layers[0].device())?;
        layers.iter().map(|layer| Ok(layer.index_select(&rows, 0)?)).collect()
    };
    let answers = rows(logits, &learn)?;
    let answers = answers.iter().map(|z| z.flatten_all()?.to_vec1::<f32>());
    let answers = answers.collect::<candle_core::Result<Vec<_>>>()?;
    let learned = rows(features, &learn)?;
    let (features, logits) = (rows(features, &test)?, rows(logits, &test)?);
    let targets = Targets::Numbers(test.iter().map(|&sample| numbers[sample as usize]).collect());
    let change = HeldOut::from_logits(Signal::Change, &logits)?;
    let mut exits = vec![task_exits(task, Signal::Change, &change, &logits, &targets)?];
    let inner = answers.len() - 1;
    let close = |answer: &Vec<f32>| -> Vec<bool> {
        answer.iter().zip(&answers[inner]).map(|(inner, last)| (inner - last).abs() <= CLOSE).collect()
    };
    let right: Vec<Vec<bool>> = answers[..inner].iter().map(close).collect();
    match Gate::fit(&learned[..inner], &right) {
        Ok(gate) => {
            let gate = Signal::Gate(gate);
            let gated = HeldOut::from_features(model, gate.clone(), &features)?;
            exits.push(task_exits(task, gate, &gated, &logits, &targets)?);
        }
        // All inner answers are close, or none: nothing to learn.
        Err(ExitError::OneSided { .. } | ExitError::Empty) => {}
        Err(error) => return Err(error).context("the learned gate"),
    }
    Ok(exits)
}

/// What leaving at each of some thresholds gives, from each of the layers on, of the logits of layers `1..=L`: where the first layers know
/// nothing, samples that leave there cost what later ones save.
///
/// # Errors
///
/// When the logits are not of the samples held out, or scoring them fails.
pub fn task_exits(
    task: Task,
    signal: Signal,
    held_out: &HeldOut,
    logits: &[Tensor],
    targets: &Targets,
) -> Result<TaskExits> {
    let depth = logits.len();
    let all = Tensor::stack(logits, 0)?; // (L, samples, classes)
    let (_, samples, classes) = all.dims3()?;
    let all = all.reshape((depth * samples, classes))?;
    let mut paths = Vec::new();
    for from in 1..depth {
        let checked: Vec<usize> = (from..depth).collect();
        paths.extend(held_out.path(&checked, STEPS)?.into_iter().map(|thresholds| (from, thresholds)));
    }
    let mut leaving = Vec::new();
    for (from, thresholds) in paths {
        let layers = held_out.exits(&thresholds)?;
        let rows = layers.iter().enumerate().map(|(sample, layer)| ((layer - 1) * samples + sample) as u32);
        let answered = all.index_select(&Tensor::from_iter(rows, all.device())?, 0)?;
        let histogram = held_out.outcome(&thresholds)?.histogram;
        leaving.push(Leaving {
            threshold: thresholds.at.values().next().copied().unwrap_or_default(),
            layer_ratio: layer_ratio(&histogram),
            score: score(task, &answered, targets)?,
            histogram,
            from,
            thresholds,
        });
    }
    let leaving = not_dominated(leaving);
    let full = score(task, &logits[depth - 1], targets)?;
    Ok(TaskExits { signal, samples, full, leaving })
}

/// Those than which no other saves more and scores as well, from cautious to bold.
fn not_dominated(mut all: Vec<Leaving>) -> Vec<Leaving> {
    let better =
        |a: &Leaving, b: &Leaving| b.layer_ratio.total_cmp(&a.layer_ratio).then(b.score.total_cmp(&a.score));
    all.sort_by(better);
    let mut best = f64::NEG_INFINITY;
    all.retain(|exit| {
        let keeps = exit.score > best;
        best = best.max(exit.score);
        keeps
    });
    all.reverse();
    all
}

/// Writes beside a model of a number when to leave it: as boldly as costs at most a point of the score on the samples held out. What is there
/// already stays.
///
/// # Errors
///
/// When what is there cannot be read, or nothing can be written.
pub fn keep_exits(folder: &Path, depth: usize, exits: Option<&TaskExits>) -> Result<()> {
    match SavedExits::load(folder, depth) {
        Err(ExitError::NotCalibrated { .. }) => {}
        there => return there.map(|_| ()).context("when to leave"),
    }
    let Some(leaving) = exits.and_then(|exits| exits.within(A_POINT)) else {
        progress::line(&format!(
            "{}: every threshold costs more than a point, so none is kept beside the model",
            folder.display()
        ));
        return Ok(());
    };
    let thresholds = leaving.thresholds.clone();
    Ok(SavedExits { depth, thresholds, calibration: Calibration::Given }.save(folder)?)
}
