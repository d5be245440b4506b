//! A run that was interrupted ends as one that was not, bit for bit; and a folder that is not this run's is left alone.

mod common;

use std::{
    collections::{BTreeMap, HashMap},
    ffi::OsString,
    fs,
    path::Path,
};

use candle_core::{Device::Cpu, Tensor};
use layerwise_models::{Heads, VitConfig};
use layerwise_ops::init;
use layerwise_testkit::{TinyStack, random, tiny_vit, tiny_vit_config};
use layerwise_train::{
    AdamWConfig, Error, Event, Hooks, LayerWeights, Objective, Schedule, TensorSamples, TrainConfig,
    TrainReport, audit, train,
};
use rand::Rng;
use safetensors::{SafeTensors, tensor::TensorView};
use serde_json::Value;
use tempfile::tempdir;

use crate::common::{Done, Noisy, config, metrics, state, train_until, two_classes, values};

/// Steps of 8, 8 and 6 samples, alternating, each in two parts, at a rate that changes; 12 in all.
fn settings() -> TrainConfig {
    TrainConfig { accumulation: 2, schedule: Schedule::OneCycle, checkpoint_every: 5, ..config() }
}

fn model() -> TinyStack {
    TinyStack::new(3, 6, 2, 1).expect("a small model").with_dropout(0.2)
}

fn data() -> Noisy {
    Noisy(two_classes(22, 6, 3))
}

/// To the end, or the last step `last`; a new model each time, as a new process would make it.
fn run(last: usize, config: &TrainConfig, folder: &Path) -> layerwise_train::Result<TrainReport> {
    let model = model();
    train_until(last, &model, model.params(), &data(), config, folder)
}

#[test]
fn interrupted_runs_end_like_uninterrupted_ones() -> Done {
    let whole = tempdir()?;
    assert_eq!(run(usize::MAX, &settings(), whole.path())?.steps, 12);
    let lines = metrics(whole.path());
    assert_eq!(lines.len(), 12);
    // In the middle of an epoch and at its end, at a checkpoint and beside one.
    for last in 1..12 {
        let folder = tempdir()?;
        let report = run(last, &settings(), folder.path())?;
        assert_eq!((report.steps, report.stopped), (last, true));
        let report = run(usize::MAX, &settings(), folder.path())?;
        assert_eq!((report.steps, report.stopped), (12, false));
        assert!(state(folder.path()) == state(whole.path()), "stopped after {last}: another state");
        assert_eq!(metrics(folder.path()), lines, "stopped after {last}");
    }
    // Stopped after every step.
    let folder = tempdir()?;
    for last in 1..=12 {
        assert_eq!(run(last, &settings(), folder.path())?.steps, last);
    }
    assert!(state(folder.path()) == state(whole.path()));
    assert_eq!(metrics(folder.path()), lines);
    Ok(())
}

/// Whose inner exits have no gradient in every second step.
#[test]
fn a_vit_with_dropout_and_heads_of_its_exits_resumes_too() -> Done {
    let images = Noisy(TensorSamples {
        inputs: random(1, &[10, 3, 8, 8]),
        labels: Tensor::from_vec((0..10u32).map(|i| i % 5).collect(), 10, &Cpu)?,
    });
    let config = TrainConfig { batch_size: 4, epochs: 2, ..settings() };
    let run = |last, folder: &Path| {
        let exits = VitConfig {
            hidden_dropout_prob: 0.1,
            attention_probs_dropout_prob: 0.1,
            heads: Heads::PerLayer,
            ..tiny_vit_config()
        };
        let vit = tiny_vit(exits, 1);
        train_until(last, &vit, vit.params(), &images, &config, folder).map(|_| values(vit.params()))
    };
    let (whole, parts) = (tempdir()?, tempdir()?);
    let want = run(usize::MAX, whole.path())?;
    run(4, parts.path())?;
    assert!(run(usize::MAX, parts.path())? == want);
    assert!(state(parts.path()) == state(whole.path()));
    Ok(())
}

#[test]
fn equal_seeds_give_equal_bytes_and_others_do_not() -> Done {
    let bytes = |config: &TrainConfig| -> Result<Vec<u8>, Error> {
        let folder = tempdir().unwrap();
        run(usize::MAX, config, folder.path())?;
        Ok(state(folder.path()))
    };
    let first = bytes(&settings())?;
    assert!(first == bytes(&settings())?);
    assert!(first != bytes(&TrainConfig { seed: 1, ..settings() })?);
    Ok(())
}

#[test]
fn each_draw_depends_on_the_seed() -> Done {
    // One batch holds all samples, so that their order alone changes rounding only; noise and dropout change the loss.
    let losses = |noisy: bool, dropout: f64, seed| -> Result<Vec<f64>, Error> {
        let model = TinyStack::new(2, 6, 2, 1)?.with_dropout(dropout);
        let config = TrainConfig { epochs: 2, batch_size: 22, seed, ..config() };
        let samples = two_classes(22, 6, 3);
        let records = match noisy {
            true => common::records(&model, model.params(), &Noisy(samples), &config)?,
            false => common::records(&model, model.params(), &samples, &config)?,
        };
        Ok(records.iter().map(|record| record.loss).collect())
    };
    let apart = |a: &[f64], b: &[f64]| a.iter().zip(b).all(|(a, b)| (a - b).abs() > 1e-5);
    assert!(!apart(&losses(false, 0., 0)?, &losses(false, 0., 1)?));
    assert!(apart(&losses(true, 0., 0)?, &losses(true, 0., 1)?));
    assert!(apart(&losses(false, 0.3, 0)?, &losses(false, 0.3, 1)?));
    Ok(())
}

#[test]
fn a_finished_run_is_not_trained_again() -> Done {
    let folder = tempdir()?;
    run(usize::MAX, &settings(), folder.path())?;
    let (bytes, lines) = (state(folder.path()), metrics(folder.path()));
    let model = model();
    let mut events = Vec::new();
    let on_event = |event: &Event| events.push(format!("{event:?}"));
    let hooks = Hooks { on_event: Some(Box::new(on_event)), ..Default::default() };
    let report = train(&model, model.params(), &data(), &settings(), Some(folder.path()), hooks)?;
    assert_eq!((report.steps, report.stopped), (12, false));
    assert_eq!(events, ["Started { done: 12, steps: 12 }"]);
    assert!(state(folder.path()) == bytes && metrics(folder.path()) == lines);
    // The model now has the trained parameters.
    let saved = candle_core::safetensors::load_buffer(&bytes, &Cpu)?;
    for (name, var) in model.params().iter() {
        layerwise_testkit::assert_close(var.as_tensor(), &saved[&format!("param.{name}")], 0.)?;
    }
    Ok(())
}

#[test]
fn a_run_that_fits_its_data_perfectly_still_resumes() -> Done {
    // Far apart and at a high rate: probabilities become exactly 0 and 1, gradients exactly 0.
    let data = TensorSamples {
        inputs: Tensor::new(&[[9f32, 9.], [-9., -9.]], &Cpu)?,
        labels: Tensor::new(&[0u32, 1], &Cpu)?,
    };
    let settings = TrainConfig {
        objective: Objective::Aligned { weights: LayerWeights::Linear },
        optimiser: AdamWConfig { lr: 10., ..Default::default() },
        epochs: 6,
        ..config()
    };
    let folder = tempdir()?;
    let run = |last| {
        let model = TinyStack::new(2, 2, 2, 1).unwrap();
        let report = train_until(last, &model, model.params(), &data, &settings, folder.path())?;
        let batch = data.inputs.clone().into();
        let audit = audit(&model, model.params(), &batch, &data.labels, &[0.5, 0.5], &[]);
        Ok::<_, Error>((report.steps, audit))
    };
    let (steps, audit) = run(4)?;
    assert!(steps == 4 && matches!(audit, Err(Error::Audit { .. })), "the gradients have not vanished");
    assert_eq!(run(usize::MAX)?.0, 6);
    Ok(())
}

#[test]
fn other_settings_are_refused_by_the_field_that_differs() -> Done {
    let folder = tempdir()?;
    run(3, &settings(), folder.path())?;
    let (bytes, lines) = (state(folder.path()), metrics(folder.path()));
    let base = settings;
    let changes: [(&str, TrainConfig); 8] = [
        ("seed", TrainConfig { seed: 9, ..base() }),
        ("epochs", TrainConfig { epochs: 9, ..base() }),
        ("batch_size", TrainConfig { batch_size: 9, ..base() }),
        ("accumulation", TrainConfig { accumulation: 1, ..base() }),
        ("clip_norm", TrainConfig { clip_norm: None, ..base() }),
        ("objective", TrainConfig { objective: Objective::Standard, ..base() }),
        ("schedule", TrainConfig { schedule: Schedule::Constant, ..base() }),
        ("optimiser", TrainConfig { optimiser: AdamWConfig { lr: 2e-2, ..base().optimiser }, ..base() }),
    ];
    for (name, config) in changes {
        match run(usize::MAX, &config, folder.path()).unwrap_err() {
            Error::Config { field, path, .. } => {
                assert_eq!((field.as_str(), path), (name, folder.path().join("config.json")));
            }
            other => panic!("{name}: {other}"),
        }
    }
    // More samples make another run too.
    let (model, more) = (model(), Noisy(two_classes(24, 6, 3)));
    let error =
        train_until(usize::MAX, &model, model.params(), &more, &settings(), folder.path()).unwrap_err();
    assert!(matches!(&error, Error::Config { field, .. } if field == "samples"), "{error}");
    assert!(error.to_string().contains("samples = 22, now it is 24"), "{error}");
    assert!(state(folder.path()) == bytes && metrics(folder.path()) == lines);
    Ok(())
}

#[test]
fn how_often_it_is_evaluated_and_saved_may_change() -> Done {
    let (whole, folder) = (tempdir()?, tempdir()?);
    run(usize::MAX, &settings(), whole.path())?;
    run(3, &settings(), folder.path())?;
    let now = TrainConfig { evaluate_every: 3, checkpoint_every: 2, ..settings() };
    assert_eq!(run(usize::MAX, &now, folder.path())?.steps, 12);
    assert!(state(folder.path()) == state(whole.path()));
    let saved = fs::read_to_string(folder.path().join("config.json"))?;
    assert_eq!(serde_json::from_str::<TrainConfig>(&saved)?, now);
    Ok(())
}

#[test]
fn settings_from_before_a_field_was_added_are_recognised() -> Done {
    let (whole, folder) = (tempdir()?, tempdir()?);
    run(usize::MAX, &settings(), whole.path())?;
    run(3, &settings(), folder.path())?;
    let file = folder.path().join("config.json");
    let text = fs::read_to_string(&file)?;
    let mut saved: Value = serde_json::from_str(&text)?;
    saved.as_object_mut().unwrap().remove("label_smoothing");
    saved["optimiser"].as_object_mut().unwrap().remove("groups");
    fs::write(&file, saved.to_string())?;
    // What they did not have is what it is by default.
    let other = run(usize::MAX, &TrainConfig { label_smoothing: 0.1, ..settings() }, folder.path());
    assert!(matches!(other, Err(Error::Config { field, .. }) if field == "label_smoothing"));
    run(usize::MAX, &settings(), folder.path())?;
    assert!(state(folder.path()) == state(whole.path()));
    assert_eq!(fs::read_to_string(&file)?, text);
    Ok(())
}

#[test]
fn a_models_folder_is_refused_and_left_as_it_is() -> Done {
    let folder = tempdir()?;
    tiny_vit(tiny_vit_config(), 1).save(folder.path())?;
    let files = || -> std::io::Result<BTreeMap<OsString, Vec<u8>>> {
        let files = fs::read_dir(folder.path())?;
        files.map(|file| file.and_then(|file| Ok((file.file_name(), fs::read(file.path())?)))).collect()
    };
    let before = files()?;
    let error = run(usize::MAX, &settings(), folder.path()).unwrap_err();
    let file = folder.path().join("config.json");
    assert!(matches!(&error, Error::Checkpoint { path, .. } if *path == file), "{error}");
    assert!(error.to_string().contains("unknown field"), "{error}");
    assert!(files()? == before);
    Ok(())
}

#[test]
fn a_state_or_metrics_without_settings_are_refused() -> Done {
    for name in ["state.safetensors", "metrics.jsonl"] {
        let folder = tempdir()?;
        run(3, &settings(), folder.path())?;
        for other in ["config.json", "state.safetensors", "metrics.jsonl"] {
            if other != name {
                fs::remove_file(folder.path().join(other))?;
            }
        }
        let bytes = fs::read(folder.path().join(name))?;
        let error = run(usize::MAX, &settings(), folder.path()).unwrap_err();
        let file = folder.path().join("config.json");
        assert!(matches!(&error, Error::Checkpoint { path, .. } if *path == file), "{error}");
        assert!(error.to_string().contains(name), "{error}");
        assert!(fs::read(folder.path().join(name))? == bytes && !file.exists());
    }
    Ok(())
}

#[test]
fn any_learning_rate_is_recognised_again() -> Done {
    let mut rng = init::rng(5);
    for _ in 0..40 {
        let optimiser = AdamWConfig { lr: rng.random_range(1e-5..1e-2), ..Default::default() };
        let config = TrainConfig { optimiser, epochs: 1, batch_size: 11, ..config() };
        let folder = tempdir()?;
        run(1, &config, folder.path())?;
        run(2, &config, folder.path())?;
    }
    Ok(())
}

#[test]
fn a_folder_in_use_is_refused() -> Done {
    let folder = tempdir()?;
    let mut refused = 0;
    let on_event = |event: &Event| {
        if matches!(event, Event::Step(_)) {
            let error = run(usize::MAX, &settings(), folder.path()).unwrap_err();
            assert!(matches!(error, Error::Busy { .. }), "{error}");
            refused += 1;
        }
    };
    let model = model();
    let hooks = Hooks { on_event: Some(Box::new(on_event)), ..Default::default() };
    train(&model, model.params(), &data(), &settings(), Some(folder.path()), hooks)?;
    assert_eq!(refused, 12);
    run(usize::MAX, &settings(), folder.path())?;
    Ok(())
}

/// Resuming from `bytes` fails with what `Error::Checkpoint` says, and changes neither the file nor the model.
fn refused(folder: &Path, bytes: &[u8]) -> String {
    let file = folder.join("state.safetensors");
    fs::write(&file, bytes).expect("a writable folder");
    let (model, lines) = (model(), metrics(folder));
    let before = values(model.params());
    let result = train_until(usize::MAX, &model, model.params(), &data(), &settings(), folder);
    assert!(state(folder) == bytes && metrics(folder) == lines && values(model.params()) == before);
    match result {
        Err(Error::Checkpoint { path, what }) => {
            assert_eq!(path, file);
            what
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn truncated_and_damaged_states_are_refused_and_kept() -> Done {
    let folder = tempdir()?;
    run(3, &settings(), folder.path())?;
    let whole = state(folder.path());
    let lengths = (0..64).chain((64..whole.len()).step_by(97)).chain(whole.len() - 3..whole.len());
    for length in lengths {
        refused(folder.path(), &whole[..length]);
    }
    refused(folder.path(), &[&whole[..], &[0]].concat());
    // A header that is not JSON, and one that claims to be longer than any file.
    for at in [0, 7, 8, 9, 20] {
        let mut bytes = whole.clone();
        bytes[at] = 0xff;
        refused(folder.path(), &bytes);
    }
    fs::write(folder.path().join("state.safetensors"), whole)?;
    assert_eq!(run(usize::MAX, &settings(), folder.path())?.steps, 12);
    Ok(())
}

#[test]
fn states_of_other_models_are_refused_by_what_differs() -> Done {
    let folder = tempdir()?;
    run(3, &settings(), folder.path())?;
    let whole = state(folder.path());
    type Tensors<'a> = HashMap<String, TensorView<'a>>;
    let changed = |progress: Option<&str>, change: &dyn Fn(&mut Tensors<'_>)| {
        let mut tensors: Tensors<'_> =
            SafeTensors::deserialize(&whole).unwrap().tensors().into_iter().collect();
        change(&mut tensors);
        let metadata = progress.map(|text| HashMap::from([("progress".to_owned(), text.to_owned())]));
        safetensors::serialize(tensors, metadata).unwrap()
    };
    let good = r#"{"step":3,"samples":22}"#;
    let missing = changed(Some(good), &|tensors| drop(tensors.remove("m.block.2.weight")));
    assert!(refused(folder.path(), &missing).contains("`m.block.2.weight` is missing"));
    let shape = changed(Some(good), &|tensors| {
        let bias = tensors["param.head.bias"].clone();
        tensors.insert("param.head.weight".into(), bias);
    });
    assert!(refused(folder.path(), &shape).contains("`param.head.weight` has shape [2], expected [2, 6]"));
    let extra = changed(Some(good), &|tensors| {
        let bias = tensors["param.head.bias"].clone();
        tensors.insert("param.tail.bias".into(), bias);
    });
    assert!(refused(folder.path(), &extra).contains("25 tensors, expected 24"));
    let more = r#"{"step":3,"samples":22,"fewer_updates":{"head.bias":4}}"#;
    assert!(refused(folder.path(), &changed(Some(more), &|_| ())).contains("4 updates of `head.bias` in 3"));
    for progress in [None, Some("3"), Some(r#"{"samples":22}"#), Some(r#"{"step":-1,"samples":22}"#)] {
        assert!(refused(folder.path(), &changed(progress, &|_| ())).contains("`step`"), "{progress:?}");
    }
    // Unchanged, it is accepted.
    fs::write(folder.path().join("state.safetensors"), changed(Some(good), &|_| ()))?;
    assert_eq!(run(usize::MAX, &settings(), folder.path())?.steps, 12);
    Ok(())
}

#[test]
fn metrics_newer_or_older_than_the_state_are_brought_in_line() -> Done {
    let (whole, folder) = (tempdir()?, tempdir()?);
    run(usize::MAX, &settings(), whole.path())?;
    let lines = metrics(whole.path());
    run(7, &settings(), folder.path())?;
    let file = folder.path().join("metrics.jsonl");
    let text = fs::read_to_string(&file)?;
    // Two steps more than the state, the second torn.
    fs::write(&file, format!("{text}{}\n{}", lines[7], &lines[8].to_string()[..20]))?;
    run(usize::MAX, &settings(), folder.path())?;
    assert_eq!(metrics(folder.path()), lines);
    assert!(state(folder.path()) == state(whole.path()));
    // Lost metrics do not lose the run.
    fs::remove_file(&file)?;
    assert_eq!(run(usize::MAX, &settings(), folder.path())?.steps, 12);
    assert!(metrics(folder.path()).is_empty());
    Ok(())
}

#[test]
fn a_folder_changes_no_bit() -> Done {
    let folder = tempdir()?;
    let trained = |folder: Option<&Path>| {
        let model = model();
        train(&model, model.params(), &data(), &settings(), folder, Hooks::default())?;
        Ok::<_, Error>(values(model.params()))
    };
    assert!(trained(None)? == trained(Some(folder.path()))?);
    Ok(())
}
