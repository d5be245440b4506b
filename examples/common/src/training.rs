//! Training with progress, Ctrl-C and resume: the one way every example trains.

use std::{fs, path::Path, sync::atomic::AtomicBool};

use anyhow::{Context, Result, bail, ensure};
use candle_core::{DType, Tensor};
use layerwise_exit::evaluate;
use layerwise_models::{Batch, Bert, Gpt2, Mlp, Params, Tapped, Vit};
use layerwise_train::{Evaluation, Event, Hooks, Samples, TrainConfig, train};
use serde_json::{Value, json};

use crate::{
    Progress,
    files::{create_folder, write_atomic},
    run::Interrupted,
};

/// What `results.json` says of a recipe that several models are trained by: all but the objective and the seed, which are each model's own.
#[must_use]
pub fn recipe_settings(config: &TrainConfig) -> Value {
    let mut settings = json!(config);
    if let Some(fields) = settings.as_object_mut() {
        fields.retain(|name, _| name != "objective" && name != "seed");
    }
    settings
}

/// A model that examples train.
pub trait Trainable: Tapped + Sized {
    /// The trainable parameters.
    fn params(&self) -> &Params;

    /// The same weights without a graph; sees every update.
    fn frozen(&self) -> Self;

    /// The same model that computes in this type of number, whose masters are this one's weights.
    ///
    /// # Errors
    ///
    /// When the device cannot allocate.
    fn mixed(&self, dtype: DType) -> layerwise_models::Result<Self>;

    /// What fixes its shape.
    ///
    /// # Errors
    ///
    /// When it cannot be written down.
    fn shape(&self) -> serde_json::Result<Value>;
}

macro_rules! trainable {
    ($model:ty) => {
        impl Trainable for $model {
            fn params(&self) -> &Params {
                <$model>::params(self)
            }

            fn frozen(&self) -> Self {
                <$model>::frozen(self)
            }

            fn mixed(&self, dtype: DType) -> layerwise_models::Result<Self> {
                <$model>::mixed(self, dtype)
            }

            fn shape(&self) -> serde_json::Result<Value> {
                serde_json::to_value(self.config())
            }
        }
    };
}

trainable!(Vit);
trainable!(Bert);
trainable!(Gpt2);
trainable!(Mlp);

/// Data that examples train on.
pub trait Data: Samples {
    /// What tells it, and how it is prepared, from other data; an object.
    fn identity(&self) -> Value;

    /// Labelled batches on which every exit is scored while a model learns; none where there are no classes.
    fn held_out(&self) -> Option<HeldOutBatches<'_>>;
}

/// Batches and labels.
pub type HeldOutBatches<'a> = Box<dyn Iterator<Item = candle_core::Result<(Batch, Tensor)>> + 'a>;

/// What a training gave.
#[derive(Clone, Debug)]
pub struct Trained {
    /// Scores of every exit on the samples held out.
    pub evaluations: Vec<Evaluation>,
    /// Seconds that its steps took, those of earlier pieces included; evaluations are not counted.
    pub seconds: f64,
    /// Whether this call took a step; a run that was complete takes none.
    pub stepped: bool,
}

impl Trained {
    /// Has `write` put the model into a folder for other programs. A model that is there and was not trained further stays as it is, with what others
    /// have added to it, such as thresholds; it is there when the `last` file is that `write` writes.
    ///
    /// # Errors
    ///
    /// When the folder cannot be created, and what `write` reports.
    pub fn keep(&self, folder: &Path, last: &str, write: impl FnOnce() -> Result<()>) -> Result<()> {
        if !self.stepped && folder.join(last).is_file() {
            return Ok(());
        }
        create_folder(folder)?;
        write()
    }
}

/// Trains `model`, or goes on where the `run` folder stands: a run that is complete there costs no step.
/// `config` says how often every exit is scored on the samples held out.
///
/// # Errors
///
/// [`Interrupted`] after Ctrl-C, with everything saved; when the folder holds a run of another model, other data or other
/// settings; whatever training reports.
pub fn trained<M: Trainable>(
    label: &str,
    model: &M,
    data: &impl Data,
    config: &TrainConfig,
    run: &Path,
    stop: &AtomicBool,
) -> Result<Trained> {
    same_task(run, &task(model, data)?)?;
    let frozen = model.frozen();
    let mut bar = None;
    let on_event = |event: &Event| match event {
        Event::Started { done, steps } if done < steps => {
            bar = Some(Progress::new(&format!("training {label}"), *steps as u64));
        }
        Event::Step(step) => {
            if let Some(bar) = &mut bar {
                bar.set(step.step as u64, &format!("loss {:.3}", step.loss));
            }
        }
        _ => {}
    };
    let score = || evaluate(&frozen, data.held_out().into_iter().flatten());
    let hooks = Hooks {
        evaluate: data.held_out().is_some().then(|| Box::new(score) as _),
        stop: Some(stop),
        on_event: Some(Box::new(on_event)),
    };
    let report = train(model, model.params(), data, config, Some(run), hooks)?;
    let stepped = bar.is_some();
    if let Some(bar) = bar {
        bar.finish(&format!("{} steps", report.steps));
    }
    if report.stopped {
        return Err(
            Interrupted("stopped; what is done is saved, and the same command goes on from there").into()
        );
    }
    Ok(Trained { evaluations: report.evaluations, seconds: step_seconds(run)?, stepped })
}

/// Seconds of all steps in the folder's `metrics.jsonl`.
fn step_seconds(run: &Path) -> Result<f64> {
    let file = run.join("metrics.jsonl");
    let text = fs::read_to_string(&file).with_context(|| file.display().to_string())?;
    let seconds = |line: &str| serde_json::from_str::<Value>(line).ok()?["seconds"].as_f64();
    Ok(text.lines().filter_map(seconds).sum())
}

/// What a run learns with what, where the trainer's own settings do not say so; of an untrained model.
fn task<M: Trainable>(model: &M, data: &impl Data) -> Result<Value> {
    let mut weights = crc32fast::Hasher::new();
    for (name, var) in model.params().masters() {
        weights.update(name.as_bytes());
        for value in var.flatten_all()?.to_vec1::<f32>()? {
            weights.update(&value.to_le_bytes());
        }
    }
    let mut task = data.identity();
    task["model"] = model.shape()?;
    task["initial_weights"] = json!({ "crc32": weights.finalize() });
    Ok(task)
}

/// The folder's `task.json`, written into a new folder, must be this task: the trainer knows its own settings and the shapes of
/// tensors only.
fn same_task(run: &Path, task: &Value) -> Result<()> {
    create_folder(run)?;
    let file = run.join("task.json");
    if !file.exists() {
        let state = run.join("state.safetensors");
        ensure!(!state.exists(), "{}: missing beside a saved run; take another folder", file.display());
        let text = serde_json::to_string_pretty(task)? + "\n";
        return write_atomic(&file, text.as_bytes());
    }
    let bytes = fs::read(&file).with_context(|| file.display().to_string())?;
    let saved: Value = serde_json::from_slice(&bytes).with_context(|| file.display().to_string())?;
    if &saved != task {
        let keys = task.as_object().into_iter().flatten();
        let other: Vec<&str> =
            keys.filter(|(key, value)| saved[*key] != **value).map(|(key, _)| &**key).collect();
        bail!(
            "{}: the run in this folder differs in {}; take another folder",
            file.display(),
            other.join(", ")
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use candle_core::Device::Cpu;
    use layerwise_data::Preprocess;
    use layerwise_models::MlpConfig;
    use layerwise_ops::init;
    use layerwise_train::Objective;

    use super::*;
    use crate::{data_sets::embedded_digits, images::Images};

    #[test]
    fn a_run_is_found_again_and_no_other_is_taken_for_it() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let data = embedded_digits(60, &Cpu)?;
        let (stop, config) = (
            AtomicBool::new(false),
            TrainConfig { objective: Objective::Standard, epochs: 2, ..Default::default() },
        );
        let shape = MlpConfig { inputs: 64, width: 8, layers: 2, ..Default::default() };
        let mlp = |shape: &MlpConfig| Mlp::new(shape.clone(), &mut init::rng(0), &Cpu);
        let first = mlp(&shape)?;
        let first_trained = trained("first", &first, &data, &config, folder.path(), &stop)?;
        let again = mlp(&shape)?;
        let second = trained("again", &again, &data, &config, folder.path(), &stop)?;
        assert_eq!(second.evaluations, first_trained.evaluations);
        assert!(second.seconds == first_trained.seconds && second.seconds > 0.);
        // What others add to a model stays until it is trained further.
        let kept = folder.path().join("models/kept");
        let write = |words: &'static str| {
            let file = kept.join("config.json");
            move || Ok(fs::write(file, words)?)
        };
        let there = || fs::read_to_string(kept.join("config.json"));
        second.keep(&kept, "config.json", write("not there"))?;
        assert_eq!(there()?, "not there");
        second.keep(&kept, "config.json", write("nothing new"))?;
        assert_eq!(there()?, "not there");
        first_trained.keep(&kept, "config.json", write("trained"))?;
        assert_eq!(there()?, "trained");
        for ((name, first), (_, again)) in first.params().iter().zip(again.params().iter()) {
            assert_eq!(
                first.flatten_all()?.to_vec1::<f32>()?,
                again.flatten_all()?.to_vec1::<f32>()?,
                "{name}"
            );
        }
        let refused = |model: &Mlp, data: &Images, config: &TrainConfig, words: &[&str]| {
            let error = trained("other", model, data, config, folder.path(), &stop).unwrap_err().to_string();
            assert!(words.iter().all(|word| error.contains(word)), "{error}");
        };
        // Tensors of equal shapes in another model: the trainer alone could not tell.
        let plain = mlp(&MlpConfig { residual: false, ..shape.clone() })?;
        refused(&plain, &data, &config, &["task.json", "differs in model"]);
        let elsewhere = Mlp::new(shape.clone(), &mut init::rng(7), &Cpu)?;
        refused(&elsewhere, &data, &config, &["differs in initial_weights"]);
        let mut turned = embedded_digits(60, &Cpu)?;
        turned.augment.rotation_degrees = 90.;
        refused(&mlp(&shape)?, &turned, &config, &["differs in augment"]);
        refused(&mlp(&shape)?, &embedded_digits(59, &Cpu)?, &config, &["differs in data, preprocess"]);
        let darker = Preprocess { image_mean: vec![0.9], ..data.preprocess().clone() };
        refused(&mlp(&shape)?, &data.clone().prepared_by(darker), &config, &["differs in preprocess"]);
        let longer = TrainConfig { epochs: 3, ..config.clone() };
        refused(&mlp(&shape)?, &data, &longer, &["config.json", "epochs"]);
        // A state of which nobody knows what it is the state of.
        fs::remove_file(folder.path().join("task.json"))?;
        let error =
            trained("unknown", &mlp(&shape)?, &data, &config, folder.path(), &stop).unwrap_err().to_string();
        assert!(error.contains("task.json") && error.contains("beside a saved run"), "{error}");
        Ok(())
    }
}
