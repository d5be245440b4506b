//! What every layer of a model says of samples: features, and the scores of the exits.

use std::{
    ops::Range,
    sync::atomic::{AtomicBool, Ordering},
};

use anyhow::{Result, ensure};
use candle_core::{D, DType, Device, Tensor};
use layerwise_exit::LayerScores;
use layerwise_models::{Batch, Hidden, Pass, Tapped, tap};
use layerwise_ops::cross_entropy;
use serde_json::Value;

use crate::{Progress, run::Interrupted};

/// Samples in order that models are measured on.
pub trait Source {
    /// How many there are.
    fn samples(&self) -> usize;

    /// Samples `rows`, as the model takes them.
    ///
    /// # Errors
    ///
    /// When one cannot be read.
    fn batch(&self, rows: Range<usize>, device: &Device) -> Result<Batch>;

    /// What to call a sample.
    fn name(&self, sample: usize) -> String;

    /// Labels, where they are known.
    fn labels(&self) -> Option<&[u32]>;

    /// Names of the classes; none where labels are not known.
    fn classes(&self) -> &[String];

    /// How samples are prepared, for `results.json`.
    fn settings(&self) -> Value;

    /// Names of the files, in the order of the rows, where each sample has one.
    fn files(&self) -> Option<Vec<String>> {
        None
    }
}

/// Features `(samples, width)` of layers `0..=L` of the first `samples`, `at_once` at a time.
///
/// # Errors
///
/// [`Interrupted`] after Ctrl-C; when a state is not finite, naming layer and sample; what the samples or the model report.
pub fn features<M: Tapped + ?Sized>(
    model: &M,
    from: &dyn Source,
    size: (usize, usize),
    device: &Device,
    stop: &AtomicBool,
) -> Result<Vec<Tensor>> {
    features_with(model, from, size, device, stop, &mut |_, _, _, _| Ok(()))
}

/// As [`features`]; `see` gets each state as soon as it is there: its layer, its first sample, the state of all tokens, and the
/// feature.
///
/// # Errors
///
/// As [`features`], and what `see` reports.
pub fn features_with<M: Tapped + ?Sized>(
    model: &M,
    from: &dyn Source,
    (samples, at_once): (usize, usize),
    device: &Device,
    stop: &AtomicBool,
    see: &mut dyn FnMut(usize, usize, &Hidden, &Tensor) -> Result<()>,
) -> Result<Vec<Tensor>> {
    let mut features: Vec<Vec<Tensor>> = vec![Vec::new(); model.depth() + 1];
    let mut bar = Progress::new("hidden states", samples as u64);
    for start in (0..samples).step_by(at_once) {
        if stop.load(Ordering::Relaxed) {
            return Err(Interrupted("stopped; no results were written").into());
        }
        let end = samples.min(start + at_once);
        let batch = from.batch(start..end, device)?;
        tap::for_each_layer(model, &batch, Pass::EVAL, |layer, state| {
            let feature = model.feature(state)?;
            for (row, values) in feature.to_vec2::<f32>()?.iter().enumerate() {
                let finite = values.iter().all(|x| x.is_finite());
                ensure!(finite, "layer {layer}: the state of {} is not finite", from.name(start + row));
            }
            see(layer, start, state, &feature)?;
            features[layer].push(feature);
            anyhow::Ok(())
        })?;
        bar.set(end as u64, "");
    }
    bar.finish("done");
    Ok(features.iter().map(|parts| Tensor::cat(parts, 0)).collect::<candle_core::Result<_>>()?)
}

/// Every class must have one of these samples, which `what` names.
///
/// # Errors
///
/// Naming the first class that has none.
pub fn every_class(labels: &[usize], classes: &[String], what: &str) -> Result<()> {
    for (class, name) in classes.iter().enumerate() {
        let samples = labels.len();
        ensure!(
            labels.contains(&class),
            "no image of class {name} among the {samples} {what}: every class is needed"
        );
    }
    Ok(())
}

/// Labels as indices.
#[must_use]
pub fn indices(labels: &[u32]) -> Vec<usize> {
    labels.iter().map(|&label| label as usize).collect()
}

/// The first `samples` with their labels, `size` at a time, as evaluation and exits take them; none without labels.
pub fn labelled(
    from: &dyn Source,
    samples: usize,
    size: usize,
    device: &Device,
) -> impl Iterator<Item = candle_core::Result<(Batch, Tensor)>> {
    let labels = from.labels().unwrap_or_default();
    let samples = samples.min(labels.len());
    (0..samples).step_by(size.max(1)).map(move |start| {
        let rows = start..samples.min(start + size);
        let batch =
            from.batch(rows.clone(), device).map_err(|e| candle_core::Error::Msg(format!("{e:#}")))?;
        Ok((batch, Tensor::new(&labels[rows], device)?))
    })
}

/// Accuracy and loss of the exit after each layer `1..=L`, and its answers, `(L, samples)`; of [`features`] of the first samples.
/// None without labels, or where the model's `classes` are not these.
///
/// # Errors
///
/// When a label is no class.
pub fn scores<M: Tapped + ?Sized>(
    (model, classes): (&M, usize),
    features: &[Tensor],
    from: &dyn Source,
) -> Result<Option<(LayerScores, Vec<Vec<u32>>)>> {
    match from.labels() {
        Some(labels) if classes == from.classes().len() => {
            let samples = features[0].dim(0)?;
            score(model, features, &labels[..samples]).map(Some)
        }
        _ => Ok(None),
    }
}

/// As [`scores`], for any model with a head for these labels.
///
/// # Errors
///
/// When labels do not fit the model's head.
pub fn score<M: Tapped + ?Sized>(
    model: &M,
    features: &[Tensor],
    labels: &[u32],
) -> Result<(LayerScores, Vec<Vec<u32>>)> {
    let mut scores = LayerScores { samples: labels.len(), ..Default::default() };
    let mut answers = Vec::new();
    for (layer, feature) in features.iter().enumerate().skip(1) {
        let labels = Tensor::new(labels, feature.device())?;
        let logits = model.exit(layer, feature, Pass::EVAL)?;
        let answer = logits.argmax(D::Minus1)?;
        scores.accuracy.push(answer.eq(&labels)?.to_dtype(DType::F64)?.mean_all()?.to_scalar()?);
        let loss = cross_entropy(&logits, &labels, None, &Default::default())?;
        scores.loss.push(f64::from(loss.to_scalar::<f32>()?));
        answers.push(answer.to_vec1()?);
    }
    Ok((scores, answers))
}
