//! What the tests of several files need.

#![allow(dead_code)] // Each file uses a part.

use std::{
    cell::RefCell,
    fs,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
};

use candle_core::{Device::Cpu, Tensor};
use layerwise_models::{Batch, Params, Tapped};
use layerwise_ops::init::{self, ChaCha8Rng};
use layerwise_testkit::random;
use layerwise_train::{
    AdamWConfig, Event, Hooks, Result, Samples, Schedule, StepRecord, TensorSamples, TrainConfig,
    TrainReport, train,
};
use serde_json::Value;

pub(crate) type Done<T = ()> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Inputs `(n, width)` of two classes in turn: unit normal around -1 and around 1 in every direction.
pub(crate) fn two_classes(n: usize, width: usize, seed: u64) -> TensorSamples {
    let labels: Vec<u32> = (0..n as u32).map(|i| i % 2).collect();
    let centres: Vec<f32> = labels.iter().map(|&label| label as f32 * 2. - 1.).collect();
    let centres = Tensor::from_vec(centres, (n, 1), &Cpu).expect("n values");
    let inputs = random(seed, &[n, width]).broadcast_add(&centres).expect("n rows");
    TensorSamples { inputs, labels: Tensor::from_vec(labels, n, &Cpu).expect("n values") }
}

/// Samples with noise from the generator that the trainer gives.
pub(crate) struct Noisy(pub(crate) TensorSamples);

impl Samples for Noisy {
    fn len(&self) -> usize {
        self.0.len()
    }

    fn batch(&self, indices: &[usize], rng: &mut ChaCha8Rng) -> candle_core::Result<(Batch, Tensor)> {
        let (batch, labels) = self.0.batch(indices, rng)?;
        let noise = init::normal(rng, batch.inputs.shape(), 0.1, &Cpu)?;
        Ok(((batch.inputs + noise)?.into(), labels))
    }
}

/// A few epochs of small batches at one rate.
pub(crate) fn config() -> TrainConfig {
    TrainConfig {
        epochs: 4,
        batch_size: 8,
        optimiser: AdamWConfig { lr: 1e-2, ..Default::default() },
        schedule: Schedule::Constant,
        ..Default::default()
    }
}

/// Samples that keep the sizes of the batches drawn, the audit's first.
pub(crate) struct Sizes(pub(crate) TensorSamples, pub(crate) RefCell<Vec<usize>>);

impl Samples for Sizes {
    fn len(&self) -> usize {
        self.0.len()
    }

    fn batch(&self, indices: &[usize], rng: &mut ChaCha8Rng) -> candle_core::Result<(Batch, Tensor)> {
        self.1.borrow_mut().push(indices.len());
        self.0.batch(indices, rng)
    }
}

/// Trains until the step `last` is done, or to the end.
pub(crate) fn train_until(
    last: usize,
    model: &impl Tapped,
    params: &Params,
    data: &impl Samples,
    config: &TrainConfig,
    folder: &Path,
) -> Result<TrainReport> {
    let stop = AtomicBool::new(false);
    let on_event = |event: &Event| {
        if matches!(event, Event::Step(record) if record.step == last) {
            stop.store(true, Ordering::Relaxed);
        }
    };
    let hooks = Hooks { stop: Some(&stop), on_event: Some(Box::new(on_event)), ..Default::default() };
    train(model, params, data, config, Some(folder), hooks)
}

/// Trains without a folder; the records of all steps.
pub(crate) fn records(
    model: &impl Tapped,
    params: &Params,
    data: &impl Samples,
    config: &TrainConfig,
) -> Result<Vec<StepRecord>> {
    let mut records = Vec::new();
    let on_event = |event: &Event| {
        if let Event::Step(record) = event {
            records.push(record.clone());
        }
    };
    train(
        model,
        params,
        data,
        config,
        None,
        Hooks { on_event: Some(Box::new(on_event)), ..Default::default() },
    )?;
    Ok(records)
}

/// Parameters, moments and step of a run folder, as the bytes of the file.
pub(crate) fn state(folder: &Path) -> Vec<u8> {
    fs::read(folder.join("state.safetensors")).expect("a state")
}

/// Lines of a run folder's metrics, without the time that steps took.
pub(crate) fn metrics(folder: &Path) -> Vec<Value> {
    let text = fs::read_to_string(folder.join("metrics.jsonl")).expect("metrics");
    let without_seconds = |line| {
        let mut line: Value = serde_json::from_str(line).expect("JSON a line");
        line.as_object_mut().expect("an object a line").remove("seconds");
        line
    };
    text.lines().map(without_seconds).collect()
}

/// Names and values of all parameters.
pub(crate) fn values(params: &Params) -> Vec<(String, Vec<f32>)> {
    let values = |tensor: Tensor| tensor.flatten_all().and_then(|xs| xs.to_vec1::<f32>()).expect("f32");
    params.iter().map(|(name, var)| (name.to_owned(), values(var.as_detached_tensor()))).collect()
}
