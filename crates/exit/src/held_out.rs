use candle_core::{D, DType, Tensor};
use layerwise_models::{Batch, Pass, Tapped, tap};

use crate::{
    Error, Policy, Reads, Result, Signal, Thresholds,
    accounting::histogram,
    engine::{not_finite, one_a_sample},
    signal::Values,
};

/// What all exits say of held-out samples: enough to know what any thresholds of one signal would do, without running the model again.
#[derive(Clone, Debug, PartialEq)]
pub struct HeldOut {
    signal: Signal,
    classes: usize,
    /// The class that each exit answers, `(L, samples)`.
    answers: Vec<Vec<u32>>,
    /// The signal after each layer, `(L, samples)`.
    values: Vec<Vec<f64>>,
    labels: Option<Vec<u32>>,
}

/// What leaving at some thresholds gives on held-out samples.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// Samples that leave after layer `1..=L`.
    pub histogram: Vec<usize>,
    /// Mean number of layers of a sample.
    pub layers: f64,
    /// Share of samples answered otherwise than by the last layer.
    pub disagreement: f64,
    /// Share of samples answered rightly, where labels are known.
    pub accuracy: Option<f64>,
}

impl HeldOut {
    /// Runs the whole model and keeps each exit's answer and the signal after each layer; not the logits.
    ///
    /// # Errors
    ///
    /// [`Error::Empty`] without samples, [`Error::NotFinite`] naming layer and sample of a NaN, [`Error::Width`] for a gate of another
    /// model, [`Error::Answers`] for a model that predicts more or less than one row a sample; otherwise what the batches or the model report.
    pub fn observe<M: Tapped + ?Sized>(
        model: &M,
        signal: Signal,
        batches: impl IntoIterator<Item = candle_core::Result<Batch>>,
    ) -> Result<Self> {
        let mut all = Self::nothing(signal, model.depth());
        for batch in batches {
            let mut memory = None;
            let seen = all.samples();
            let batch = batch?;
            let samples = batch.rows()?;
            tap::for_each_layer(model, &batch, Pass::EVAL, |layer, hidden| {
                if layer > 0 {
                    let feature = model.feature(hidden)?;
                    let logits = model.exit(layer, &feature, Pass::EVAL)?;
                    one_a_sample(layer, &logits, samples)?;
                    memory = all.add((layer, seen), &logits, Some(&feature), memory.take())?;
                }
                Ok::<_, Error>(())
            })?;
        }
        all.finished()
    }

    /// As [`observe`](Self::observe), of features `(samples, width)` of layers `1..=L` that are known already.
    ///
    /// # Errors
    ///
    /// As [`observe`](Self::observe); [`Error::Depth`] for features of another number of layers.
    pub fn from_features<M: Tapped + ?Sized>(model: &M, signal: Signal, features: &[Tensor]) -> Result<Self> {
        if features.len() != model.depth() {
            return Err(Error::Depth { made_for: features.len(), depth: model.depth() });
        }
        let mut all = Self::nothing(signal, model.depth());
        let mut memory = None;
        for (i, feature) in features.iter().enumerate() {
            let logits = model.exit(i + 1, feature, Pass::EVAL)?;
            memory = all.add((i + 1, 0), &logits, Some(feature), memory.take())?;
        }
        all.finished()
    }

    /// From logits `(samples, classes)` of layers `1..=L`.
    ///
    /// # Errors
    ///
    /// [`Error::Empty`] without layers or samples, [`Error::Rows`] where layers differ in samples, [`Error::NotFinite`], and
    /// [`Error::Setting`] for a signal that reads features.
    pub fn from_logits(signal: Signal, logits: &[Tensor]) -> Result<Self> {
        if signal.reads() != Reads::Logits {
            let expected = "one that reads logits; this one reads features";
            return Err(Error::Setting { field: "signal", value: format!("{signal:?}"), expected });
        }
        let mut all = Self::nothing(signal, logits.len());
        let mut memory = None;
        for (i, logits) in logits.iter().enumerate() {
            memory = all.add((i + 1, 0), logits, None, memory.take())?;
        }
        all.finished()
    }

    /// With a label for each sample, in their order.
    ///
    /// # Errors
    ///
    /// [`Error::Rows`] and [`Error::Label`] for labels that do not fit.
    pub fn with_labels(self, labels: Vec<u32>) -> Result<Self> {
        if labels.len() != self.samples() {
            return Err(Error::Rows { rows: self.samples(), labels: labels.len() });
        }
        match labels.iter().position(|&label| label as usize >= self.classes) {
            Some(row) => Err(Error::Label { row, label: labels[row], classes: self.classes }),
            None => Ok(Self { labels: Some(labels), ..self }),
        }
    }

    fn nothing(signal: Signal, depth: usize) -> Self {
        Self {
            signal,
            classes: 0,
            answers: vec![Vec::new(); depth],
            values: vec![Vec::new(); depth],
            labels: None,
        }
    }

    fn add(
        &mut self,
        (layer, seen): (usize, usize),
        logits: &Tensor,
        feature: Option<&Tensor>,
        memory: Option<Tensor>,
    ) -> Result<Option<Tensor>> {
        let (_, classes) = logits.dims2()?;
        self.classes = classes;
        if let Some(row) = not_finite(logits)? {
            return Err(Error::NotFinite { layer, row: seen + row });
        }
        let Values { values, memory } = self.signal.values(Some(logits), feature, memory.as_ref())?;
        self.answers[layer - 1].extend(logits.to_dtype(DType::F32)?.argmax(D::Minus1)?.to_vec1::<u32>()?);
        self.values[layer - 1].extend(values);
        Ok(memory)
    }

    fn finished(self) -> Result<Self> {
        let samples = self.samples();
        if samples == 0 {
            return Err(Error::Empty);
        }
        match self.answers.iter().find(|layer| layer.len() != samples) {
            Some(layer) => Err(Error::Rows { rows: layer.len(), labels: samples }),
            None => Ok(self),
        }
    }

    /// Number of samples.
    #[must_use]
    pub fn samples(&self) -> usize {
        self.answers.first().map_or(0, Vec::len)
    }

    /// Layers of the model.
    #[must_use]
    pub fn depth(&self) -> usize {
        self.answers.len()
    }

    /// Number of classes.
    #[must_use]
    pub fn classes(&self) -> usize {
        self.classes
    }

    /// The signal that was observed.
    #[must_use]
    pub fn signal(&self) -> &Signal {
        &self.signal
    }

    /// The class that each exit answers, `(L, samples)`.
    #[must_use]
    pub fn answers(&self) -> &[Vec<u32>] {
        &self.answers
    }

    /// Labels, where they are known.
    #[must_use]
    pub fn labels(&self) -> Option<&[u32]> {
        self.labels.as_deref()
    }

    /// These samples only, in this order.
    ///
    /// # Errors
    ///
    /// [`Error::Empty`] for none, [`Error::Sample`] for one that there is not.
    pub fn select(&self, samples: &[usize]) -> Result<Self> {
        if samples.is_empty() {
            return Err(Error::Empty);
        }
        if let Some(&sample) = samples.iter().find(|&&sample| sample >= self.samples()) {
            return Err(Error::Sample { sample, samples: self.samples() });
        }
        Ok(Self {
            signal: self.signal.clone(),
            classes: self.classes,
            answers: self.answers.iter().map(|layer| samples.iter().map(|&i| layer[i]).collect()).collect(),
            values: self.values.iter().map(|layer| samples.iter().map(|&i| layer[i]).collect()).collect(),
            labels: self.labels.as_ref().map(|labels| samples.iter().map(|&i| labels[i]).collect()),
        })
    }

    /// The layer after which each sample leaves.
    ///
    /// # Errors
    ///
    /// [`Error::Signal`] for thresholds of another signal, and what [`Policy::validate`] finds.
    pub fn exits(&self, thresholds: &Thresholds) -> Result<Vec<usize>> {
        thresholds.validate(self.depth())?;
        if !thresholds.at.is_empty() && thresholds.signal != self.signal {
            return Err(Error::Signal);
        }
        let checks: Vec<(usize, f64)> = thresholds.at.iter().map(|(&layer, &at)| (layer, at)).collect();
        Ok((0..self.samples()).map(|sample| self.exit(&checks, sample)).collect())
    }

    fn exit(&self, checks: &[(usize, f64)], sample: usize) -> usize {
        // Patience counts the checks that there are, not the layers.
        let (mut answer, mut same) = (None, 0.);
        for &(layer, threshold) in checks {
            let value = if self.signal == Signal::Patience {
                let now = Some(self.answers[layer - 1][sample]);
                same = if now == answer { same + 1. } else { 1. };
                answer = now;
                same
            } else {
                self.values[layer - 1][sample]
            };
            if self.signal.is_sure(value, threshold) {
                return layer;
            }
        }
        self.depth()
    }

    /// What leaving there gives.
    ///
    /// # Errors
    ///
    /// As [`exits`](Self::exits).
    pub fn outcome(&self, thresholds: &Thresholds) -> Result<Outcome> {
        let layers = self.exits(thresholds)?;
        let share = |of: &dyn Fn(usize, usize) -> bool| {
            let count = layers.iter().enumerate().filter(|&(sample, &layer)| of(sample, layer)).count();
            count as f64 / layers.len() as f64
        };
        let last = self.depth() - 1;
        let histogram = histogram(&layers, self.depth());
        Ok(Outcome {
            layers: layers.iter().sum::<usize>() as f64 / layers.len() as f64,
            histogram,
            disagreement: share(&|i, layer| self.answers[layer - 1][i] != self.answers[last][i]),
            accuracy: self
                .labels
                .as_ref()
                .map(|labels| share(&|i, layer| self.answers[layer - 1][i] == labels[i])),
        })
    }

    /// Thresholds from cautious to bold, one for all of `layers`, as [`Signal::grid`] has them: the sequence that budgets and guarantees are
    /// looked for in. Fixed by the signal and the number of classes, not by the samples.
    ///
    /// # Errors
    ///
    /// [`Error::Layer`] for a layer that cannot be left early.
    pub fn path(&self, layers: &[usize], steps: usize) -> Result<Vec<Thresholds>> {
        let path: Vec<Thresholds> = self
            .signal
            .grid(steps, self.classes, layers.len())
            .into_iter()
            .map(|threshold| Thresholds {
                signal: self.signal.clone(),
                at: layers.iter().map(|&layer| (layer, threshold)).collect(),
            })
            .collect();
        path.iter().try_for_each(|thresholds| thresholds.validate(self.depth()))?;
        Ok(path)
    }
}
