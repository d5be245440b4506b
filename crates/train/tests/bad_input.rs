//! What is wrong is named, and costs neither the parameters nor the last checkpoint.

mod common;

use std::fs;

use candle_core::{Device::Cpu, Tensor, Var};
use layerwise_models::{Batch, Hidden, Params, Pass, Tapped};
use layerwise_testkit::{TinyStack, random};
use layerwise_train::{
    AdamWConfig, Error, Hooks, LayerWeights, Objective, ParamGroup, Schedule, TensorSamples, TrainConfig,
    epoch_order, train,
};
use tempfile::tempdir;

use crate::common::{Done, config, state, train_until, two_classes, values};

fn run(data: &TensorSamples, config: &TrainConfig) -> Result<usize, Error> {
    let model = TinyStack::new(2, 6, 2, 1)?;
    let before = values(model.params());
    let result = train(&model, model.params(), data, config, None, Hooks::default());
    assert_eq!(result.is_err(), values(model.params()) == before, "parameters changed by a run that failed");
    Ok(result?.steps)
}

#[test]
fn no_samples() -> Done {
    let data = two_classes(4, 6, 1);
    let none = TensorSamples { inputs: data.inputs.narrow(0, 0, 0)?, labels: data.labels.narrow(0, 0, 0)? };
    assert!(matches!(run(&none, &config()), Err(Error::Empty)));
    Ok(())
}

#[test]
fn inputs_and_labels_of_different_lengths() -> Done {
    let data = two_classes(8, 6, 1);
    for (inputs, labels) in [(8, 7), (7, 8), (8, 0)] {
        let data = TensorSamples {
            inputs: data.inputs.narrow(0, 0, inputs)?,
            labels: data.labels.narrow(0, 0, labels)?,
        };
        let error = run(&data, &config()).unwrap_err();
        let named = matches!(error, Error::Samples { inputs: a, labels: b } if (a, b) == (inputs, labels));
        assert!(named, "{error}");
    }
    Ok(())
}

#[test]
fn a_label_without_class() -> Done {
    let mut data = two_classes(8, 6, 1);
    data.labels = Tensor::new(&[0u32, 1, 0, 1, 0, 7, 0, 1], &Cpu)?;
    let row = epoch_order(8, 0, 0).iter().position(|&i| i == 5);
    match run(&data, &config()).unwrap_err() {
        Error::Label { row: got, label: 7, classes: 2 } => assert_eq!(Some(got), row),
        other => panic!("{other}"),
    }
    Ok(())
}

#[test]
fn a_batch_may_be_larger_than_the_data() -> Done {
    assert_eq!(run(&two_classes(5, 6, 1), &TrainConfig { batch_size: 1000, ..config() })?, 4);
    assert_eq!(
        run(&two_classes(1, 6, 1), &TrainConfig { batch_size: 1000, accumulation: 50, ..config() })?,
        4
    );
    Ok(())
}

#[test]
fn every_setting_has_its_range() {
    let optimiser = |change: fn(&mut AdamWConfig)| {
        let mut optimiser = AdamWConfig::default();
        change(&mut optimiser);
        TrainConfig { optimiser, ..config() }
    };
    let schedule = |schedule| TrainConfig { schedule, ..config() };
    let cosine = |warmup, floor| schedule(Schedule::WarmupCosine { warmup, floor });
    let steps = |warmup, milestone, gamma| {
        schedule(Schedule::MultiStep { warmup, milestones: vec![0.5, milestone], gamma })
    };
    let group = |lr_scale, weight_decay| {
        let groups = vec![ParamGroup { prefix: "head.".into(), lr_scale, weight_decay }];
        TrainConfig { optimiser: AdamWConfig { groups, ..Default::default() }, ..config() }
    };
    let weights = |list| TrainConfig {
        objective: Objective::Aligned { weights: LayerWeights::List(list) },
        ..config()
    };
    let wrong = [
        ("epochs", TrainConfig { epochs: 0, ..config() }),
        ("batch_size", TrainConfig { batch_size: 0, ..config() }),
        ("accumulation", TrainConfig { accumulation: 0, ..config() }),
        ("optimiser.lr", optimiser(|o| o.lr = -1e-3)),
        ("optimiser.lr", optimiser(|o| o.lr = f64::NAN)),
        ("optimiser.lr", optimiser(|o| o.lr = f64::INFINITY)),
        ("optimiser.beta1", optimiser(|o| o.beta1 = 1.)),
        ("optimiser.beta1", optimiser(|o| o.beta1 = -0.1)),
        ("optimiser.beta2", optimiser(|o| o.beta2 = 1.5)),
        ("optimiser.eps", optimiser(|o| o.eps = 0.)),
        ("optimiser.eps", optimiser(|o| o.eps = -1e-8)),
        ("optimiser.weight_decay", optimiser(|o| o.weight_decay = -0.1)),
        ("label_smoothing", TrainConfig { label_smoothing: 1., ..config() }),
        ("label_smoothing", TrainConfig { label_smoothing: -0.1, ..config() }),
        ("clip_norm", TrainConfig { clip_norm: Some(0.), ..config() }),
        ("clip_norm", TrainConfig { clip_norm: Some(f64::NAN), ..config() }),
        ("schedule.warmup", cosine(-0.1, 0.)),
        ("schedule.warmup", cosine(1.1, 0.)),
        ("schedule.warmup", cosine(f64::NAN, 0.)),
        ("schedule.floor", cosine(0., -0.1)),
        ("schedule.floor", cosine(0., 1.1)),
        ("schedule.floor", cosine(0., f64::NAN)),
        ("schedule.warmup", steps(-0.1, 0.5, 0.1)),
        ("schedule.warmup", steps(100., 0.5, 0.1)),
        ("schedule.milestones", steps(0., -0.1, 0.1)),
        ("schedule.milestones", steps(0., 100., 0.1)),
        ("schedule.milestones", steps(0., f64::NAN, 0.1)),
        ("schedule.gamma", steps(0., 0.5, 0.)),
        ("schedule.gamma", steps(0., 0.5, f64::NAN)),
        ("optimiser.groups.lr_scale", group(-1., None)),
        ("optimiser.groups.lr_scale", group(f64::INFINITY, None)),
        ("optimiser.groups.weight_decay", group(1., Some(-0.1))),
        ("optimiser.groups.weight_decay", group(1., Some(f64::NAN))),
        ("weights", weights(vec![1.])),
        ("weights", weights(vec![1., -1.])),
    ];
    let data = two_classes(8, 6, 1);
    for (name, config) in wrong {
        match run(&data, &config).unwrap_err() {
            Error::Setting { field, .. } => assert_eq!(field, name),
            other => panic!("{name}: {other}"),
        }
    }
    // The ends that belong to their ranges.
    let zeros = optimiser(|o| (o.beta1, o.beta2, o.weight_decay) = (0., 0., 0.));
    let schedules = [cosine(0., 0.), cosine(1., 1.), steps(0., 0., 1.), steps(1., 1., 1.)];
    let others = [zeros, group(1., Some(0.)), TrainConfig { clip_norm: None, ..config() }];
    for config in schedules.into_iter().chain(others) {
        run(&data, &config).unwrap();
    }
}

#[test]
fn an_input_that_is_not_finite_stops_the_run_before_its_step() -> Done {
    let (data, folder) = (two_classes(24, 6, 1), tempdir()?);
    let config = TrainConfig { checkpoint_every: 1, ..config() };
    // A sample of the first epoch's third batch.
    let bad = epoch_order(24, config.seed, 0)[2 * config.batch_size + 3];
    let mut rows = data.inputs.to_vec2::<f32>()?;
    rows[bad][2] = f32::NAN;
    let spoilt = TensorSamples { inputs: Tensor::new(rows, &Cpu)?, labels: data.labels.clone() };

    let stack = || TinyStack::new(2, 6, 2, 1);
    let (want, model) = (stack()?, stack()?);
    train_until(2, &want, want.params(), &data, &config, tempdir()?.path())?;
    // Again and again: the checkpoint stays and loads.
    for model in [model, stack()?] {
        let error =
            train_until(usize::MAX, &model, model.params(), &spoilt, &config, folder.path()).unwrap_err();
        assert!(matches!(error, Error::Loss { step: 3, loss } if loss.is_nan()), "{error}");
        assert!(values(model.params()) == values(want.params()));
    }
    // With the sample mended the run goes on.
    let model = stack()?;
    assert_eq!(train_until(usize::MAX, &model, model.params(), &data, &config, folder.path())?.steps, 12);
    Ok(())
}

#[test]
fn an_input_that_is_not_finite_in_the_first_batch_is_a_loss_too() -> Done {
    for bad in [f32::NAN, f32::INFINITY] {
        let mut data = two_classes(8, 6, 1);
        data.inputs = (data.inputs * f64::from(bad))?;
        let error = run(&data, &config()).unwrap_err();
        assert!(matches!(error, Error::Loss { step: 1, loss } if loss.is_nan()), "{error}");
    }
    Ok(())
}

/// Logits `w x`: a gradient of `x`, however small `w x` is.
struct Scale {
    params: Params,
}

impl Tapped for Scale {
    fn depth(&self) -> usize {
        1
    }

    fn embed(&self, batch: &Batch, _pass: Pass) -> candle_core::Result<Hidden> {
        Ok(Hidden { xs: batch.inputs.clone(), mask: None })
    }

    fn block(&self, _layer: usize, hidden: &Hidden, _pass: Pass) -> candle_core::Result<Hidden> {
        Ok(hidden.clone())
    }

    fn feature(&self, hidden: &Hidden) -> candle_core::Result<Tensor> {
        Ok(hidden.xs.clone())
    }

    fn exit(&self, _layer: usize, feature: &Tensor, _pass: Pass) -> candle_core::Result<Tensor> {
        feature.broadcast_mul(self.params.get("w").expect("the one parameter"))
    }
}

#[test]
fn a_gradient_that_is_not_finite_stops_the_run_before_its_step() -> Done {
    // Finite logits of +-0.3, but a gradient of 0.65 * 6e38 is beyond f32.
    let params: Params = [("w".to_owned(), Var::new(&[1e-39f32], &Cpu)?)].into_iter().collect();
    let model = Scale { params };
    let order = epoch_order(2, 0, 0);
    let mut rows = [[1e30f32, -1e30]; 2];
    rows[order[1]] = [3e38, -3e38];
    let data = TensorSamples { inputs: Tensor::new(&rows, &Cpu)?, labels: Tensor::new(&[1u32, 1], &Cpu)? };
    // Without a learning rate, so that the first step does not move `w`.
    let optimiser = AdamWConfig { lr: 0., ..Default::default() };
    let folder = tempdir()?;
    let config = TrainConfig { batch_size: 1, checkpoint_every: 1, optimiser, ..config() };
    let error = train_until(usize::MAX, &model, &model.params, &data, &config, folder.path()).unwrap_err();
    assert!(
        matches!(error, Error::Gradient { step: 2, loss, norm } if loss < 2. && norm.is_infinite()),
        "{error}"
    );
    assert_eq!(model.params.get("w").unwrap().to_vec1::<f32>()?, [1e-39]);
    assert!(candle_core::safetensors::load_buffer(&state(folder.path()), &Cpu).is_ok());
    // In the first batch the audit finds it.
    let first = TensorSamples {
        inputs: Tensor::new(&[[3e38f32, -3e38]], &Cpu)?,
        labels: Tensor::new(&[1u32], &Cpu)?,
    };
    let error = train(&model, &model.params, &first, &config, None, Hooks::default()).unwrap_err();
    assert!(matches!(&error, Error::Audit { not_finite, .. } if not_finite == &["w"]), "{error}");
    Ok(())
}

#[test]
fn inputs_of_another_shape() {
    let data = TensorSamples { inputs: random(1, &[8, 7]), ..two_classes(8, 6, 1) };
    assert!(matches!(run(&data, &config()), Err(Error::Candle(_))));
}

#[test]
fn folders_that_cannot_be_written_are_named() -> Done {
    let (data, base) = (two_classes(8, 6, 1), tempdir()?);
    let train_in = |folder: &std::path::Path| {
        let model = TinyStack::new(2, 6, 2, 1)?;
        train_until(usize::MAX, &model, model.params(), &data, &config(), folder)
    };
    let file = base.path().join("file");
    fs::write(&file, "not a folder")?;
    for path in [file.clone(), file.join("run")] {
        let error = train_in(&path).unwrap_err();
        assert!(matches!(&error, Error::Io { path: got, .. } if *got == path), "{error}");
    }
    assert_eq!(fs::read_to_string(&file)?, "not a folder");
    // A folder where a file should be: the run's files cannot be written, whoever runs the test.
    for name in ["config.json", "metrics.jsonl", "state.safetensors", "lock"] {
        let folder = base.path().join(format!("with_{name}"));
        fs::create_dir_all(folder.join(name))?;
        if name != "config.json" {
            fs::write(folder.join("config.json"), serde_json::to_string(&config())?)?;
        }
        let error = train_in(&folder).unwrap_err();
        assert!(matches!(&error, Error::Io { path, .. } if path.starts_with(&folder)), "{error}");
        assert!(error.to_string().contains(name.split('.').next().unwrap()), "{error}");
    }
    Ok(())
}

#[test]
fn a_config_that_is_not_json_is_named() -> Done {
    let (data, folder) = (two_classes(8, 6, 1), tempdir()?);
    let train_in = |last| {
        let model = TinyStack::new(2, 6, 2, 1)?;
        train_until(last, &model, model.params(), &data, &config(), folder.path())
    };
    train_in(1)?;
    let file = folder.path().join("config.json");
    let text = fs::read_to_string(&file)?;
    for broken in ["", "{", "[]", &text[..text.len() / 2]] {
        fs::write(&file, broken)?;
        let error = train_in(usize::MAX).unwrap_err();
        assert!(matches!(&error, Error::Checkpoint { path, .. } if *path == file), "{broken:?}: {error}");
        assert_eq!(fs::read_to_string(&file)?, broken);
    }
    fs::write(&file, text)?;
    train_in(usize::MAX)?;
    Ok(())
}
