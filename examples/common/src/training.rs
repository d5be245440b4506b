//! Training with progress, Ctrl-C and resume: the one way every example trains.

use std::{fs, path::Path, sync::atomic::AtomicBool};

use anyhow::{Context, Result, bail, ensure};
use layerwise_exit::evaluate;
use layerwise_models::{Mlp, Params, Tapped, Vit};
use layerwise_train::{Evaluation, Event, Hooks, TrainConfig, train};
use serde_json::{Value, json};

use crate::{
    Progress,
    files::{create_folder, write_atomic},
    images::Images,
    run::Interrupted,
};

/// A model that examples train.
pub trait Trainable: Tapped + Sized {
    /// The trainable parameters.
    fn params(&self) -> &Params;

    /// The same weights without a graph; sees every update.
    fn frozen(&self) -> Self;

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

            fn shape(&self) -> serde_json::Result<Value> {
                serde_json::to_value(self.config())
            }
        }
    };
}

trainable!(Vit);
trainable!(Mlp);

/// Trains `model`, or goes on where the `run` folder stands: a run that is complete there costs no step. Gives the scores of
/// every exit on the images held out, which `config` says how often to take.
///
/// # Errors
///
/// [`Interrupted`] after Ctrl-C, with everything saved; when the folder holds a run of another model, other data or other
/// settings; whatever training reports.
pub fn trained<M: Trainable>(
    label: &str,
    model: &M,
    data: &Images,
    config: &TrainConfig,
    run: &Path,
    stop: &AtomicBool,
) -> Result<Vec<Evaluation>> {
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
    let hooks = Hooks {
        evaluate: Some(Box::new(|| evaluate(&frozen, data.test_batches()))),
        stop: Some(stop),
        on_event: Some(Box::new(on_event)),
    };
    let report = train(model, model.params(), data, config, Some(run), hooks)?;
    if let Some(bar) = bar {
        bar.finish(&format!("{} steps", report.steps));
    }
    if report.stopped {
        return Err(
            Interrupted("stopped; what is done is saved, and the same command goes on from there").into()
        );
    }
    Ok(report.evaluations)
}

/// What a run learns with what, where the trainer's own settings do not say so; of an untrained model.
fn task<M: Trainable>(model: &M, data: &Images) -> Result<Value> {
    let mut weights = crc32fast::Hasher::new();
    for (name, var) in model.params().iter() {
        weights.update(name.as_bytes());
        for value in var.flatten_all()?.to_vec1::<f32>()? {
            weights.update(&value.to_le_bytes());
        }
    }
    let images = json!({ "name": data.name, "train": data.train_len(), "held_out": data.test_len(), "crc32": data.checksum() });
    let weights = json!({ "crc32": weights.finalize() });
    Ok(
        json!({ "data": images, "augment": data.augment, "model": model.shape()?, "initial_weights": weights }),
    )
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
    use layerwise_models::MlpConfig;
    use layerwise_ops::init;
    use layerwise_train::Objective;

    use super::*;
    use crate::data_sets::embedded_digits;

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
        let scores = trained("first", &first, &data, &config, folder.path(), &stop)?;
        let again = mlp(&shape)?;
        assert_eq!(trained("again", &again, &data, &config, folder.path(), &stop)?, scores);
        for ((name, first), (_, again)) in first.params().iter().zip(again.params().iter()) {
            assert_eq!(
                first.flatten_all()?.to_vec1::<f32>()?,
                again.flatten_all()?.to_vec1::<f32>()?,
                "{name}"
            );
        }
        // Tensors of equal shapes in another model: the trainer alone could not tell.
        let plain = mlp(&MlpConfig { residual: false, ..shape.clone() })?;
        let error = trained("plain", &plain, &data, &config, folder.path(), &stop).unwrap_err().to_string();
        assert!(error.contains("task.json") && error.contains("differs in model"), "{error}");
        let mut turned = embedded_digits(60, &Cpu)?;
        turned.augment.rotation_degrees = 90.;
        let error =
            trained("turned", &again, &turned, &config, folder.path(), &stop).unwrap_err().to_string();
        assert!(error.contains("differs in augment"), "{error}");
        let fewer = embedded_digits(59, &Cpu)?;
        let error = trained("fewer", &again, &fewer, &config, folder.path(), &stop).unwrap_err().to_string();
        assert!(error.contains("differs in data"), "{error}");
        let longer = TrainConfig { epochs: 3, ..config.clone() };
        assert!(trained("longer", &again, &data, &longer, folder.path(), &stop).is_err());
        // A state of which nobody knows what it is the state of.
        fs::remove_file(folder.path().join("task.json"))?;
        let error = trained("unknown", &again, &data, &config, folder.path(), &stop).unwrap_err().to_string();
        assert!(error.contains("task.json") && error.contains("beside a saved run"), "{error}");
        Ok(())
    }
}
