//! Thresholds for a budget and with a promise, what is saved, and the monitor.

use std::fs;

use candle_core::{Device::Cpu, Tensor};
use layerwise_exit::{
    Budget, Calibration, Costs, Error, Figures, Guarantee, HeldOut, Monitor, Result, Risk, SavedExits,
    Signal, Test, Thresholds, binomial_cdf, binomial_upper, guaranteed, leave_early, milliseconds,
    within_budget,
};
use layerwise_models::{Batch, Vit};
use layerwise_ops::init::{self, ChaCha8Rng};
use layerwise_testkit::{TinyStack, random, tiny_vit, tiny_vit_config};
use rand::Rng;

/// Held-out samples of three layers, two classes. The last layer is right on 95 %; layer 2 answers as it does on 99 %; layer 1 is unsure
/// of `unsure` of them, and answers otherwise the more often the less sure it is.
fn held_out(samples: usize, unsure: f64, rng: &mut ChaCha8Rng) -> Result<HeldOut> {
    let (mut layers, mut labels) = (vec![Vec::new(); 3], Vec::new());
    for _ in 0..samples {
        let label = rng.random_range(0..2u32);
        let doubt: f64 = if rng.random_bool(unsure) { rng.random() } else { 0. };
        let last = if (label == 0) == rng.random_bool(0.95) { 1f32 } else { -1. };
        let as_last = |same: bool| if same { last } else { -last };
        layers[0].extend([as_last(!rng.random_bool(doubt / 2.)) * 4. * (1. - doubt as f32), 0.]);
        layers[1].extend([as_last(rng.random_bool(0.99)) * 6., 0.]);
        layers[2].extend([last * 6., 0.]);
        labels.push(label);
    }
    let logits: Vec<Tensor> = layers
        .into_iter()
        .map(|l| Tensor::from_vec(l, (samples, 2), &Cpu))
        .collect::<candle_core::Result<_>>()?;
    HeldOut::from_logits(Signal::MaxProbability, &logits)?.with_labels(labels)
}

fn path(held_out: &HeldOut) -> Result<Vec<Thresholds>> {
    held_out.path(&[1, 2], 60)
}

#[test]
fn a_path_goes_from_nobody_to_everybody() -> Result<()> {
    let held_out = held_out(500, 0.5, &mut init::rng(1))?;
    let path = path(&held_out)?;
    let layers: Vec<f64> = path.iter().map(|t| Ok(held_out.outcome(t)?.layers)).collect::<Result<_>>()?;
    assert!(layers.is_sorted_by(|a, b| a >= b), "{layers:?}");
    assert_eq!((layers[0], layers[59]), (3., 1.));
    for signal in [Signal::Margin, Signal::Entropy, Signal::Saturation, Signal::Patience] {
        let grid = signal.grid(40, 10, 11);
        let threshold = |t: f64| Thresholds::common(signal.clone(), t, 12);
        assert!(
            grid.iter().all(|&t| layerwise_exit::Policy::validate(&threshold(t), 12).is_ok()),
            "{signal:?}: {grid:?}"
        );
        let looser = |a: &f64, b: &f64| if signal == Signal::Entropy { a < b } else { a > b };
        assert!(grid.is_sorted_by(looser), "{signal:?}: {grid:?}");
    }
    assert!(matches!(held_out.path(&[3], 10), Err(Error::Layer { layer: 3, .. })));
    Ok(())
}

#[test]
fn a_budget_is_kept_by_the_best_thresholds_there_are() -> Result<()> {
    let held_out = held_out(2000, 0.5, &mut init::rng(1))?;
    let path = path(&held_out)?;
    for most in [1.2, 1.8, 2.5, 3.] {
        let (_, outcome) = within_budget(&held_out, &path, &Budget::Layers(most))?;
        assert!(outcome.layers <= most);
        for other in &path {
            let other = held_out.outcome(other)?;
            assert!(other.layers > most || other.accuracy <= outcome.accuracy);
        }
    }
    let error = within_budget(&held_out, &path, &Budget::Layers(0.5)).unwrap_err();
    assert!(matches!(error, Error::Budget { least: 1., .. }), "{error}");
    assert!(matches!(within_budget(&held_out, &[], &Budget::Layers(1.)), Err(Error::Empty)));
    for wrong in [0., -1., f64::NAN, f64::INFINITY] {
        let error = within_budget(&held_out, &path, &Budget::Layers(wrong)).unwrap_err();
        assert!(matches!(error, Error::Setting { field: "budget", .. }), "{error}");
    }
    Ok(())
}

#[test]
fn milliseconds_count_blocks_and_heads() -> Result<()> {
    let costs: Costs = Figures {
        rows: vec![1, 8],
        block_s: vec![0.002, 0.008],
        select_s: vec![0.; 2],
        exit_s: vec![0.001, 0.004],
    }
    .try_into()?;
    // Two layers checked of four; four samples leave after layer 2, four after the last.
    let thresholds = Thresholds { at: [(1, 0.9), (2, 0.9)].into(), ..Default::default() };
    let got = milliseconds(&thresholds, &[0, 4, 0, 4], &costs, 8);
    let (block, exit) = (1., 0.5);
    assert!((got - ((2. * block + 2. * exit) + (4. * block + 3. * exit)) / 2.).abs() < 1e-9, "{got}");
    // A signal that needs no head pays it once.
    let saturation = Thresholds { signal: Signal::Saturation, ..thresholds };
    let got = milliseconds(&saturation, &[0, 4, 0, 4], &costs, 8);
    assert!((got - ((2. * block + exit) + (4. * block + exit)) / 2.).abs() < 1e-9, "{got}");

    let held_out = held_out(500, 0.5, &mut init::rng(1))?;
    let budget = |most| Budget::Milliseconds { most, costs: &costs, rows: 8 };
    let (thresholds, outcome) = within_budget(&held_out, &path(&held_out)?, &budget(3.))?;
    assert!(milliseconds(&thresholds, &outcome.histogram, &costs, 8) <= 3.);
    assert!(matches!(within_budget(&held_out, &path(&held_out)?, &budget(0.1)), Err(Error::Budget { .. })));
    Ok(())
}

/// The promise holds for the distribution that the samples come from, at most a share `delta` of the times excepted: 400 calibrations on
/// fresh samples, against the risk on 40,000 others.
#[test]
fn a_promise_is_kept() -> Result<()> {
    let mut rng = init::rng(3);
    let population = held_out(40_000, 0.5, &mut rng)?;
    for (risk, test) in [
        (Risk::Accuracy, Test::ExactBinomial),
        (Risk::Disagreement, Test::ExactBinomial),
        (Risk::Disagreement, Test::HoeffdingBentkus),
    ] {
        let promise = Guarantee { risk, test, tolerance: 0.08, delta: 0.1 };
        let (mut broken, mut layers, runs) = (0, 0., 400);
        for _ in 0..runs {
            let calibration = held_out(400, 0.5, &mut rng)?;
            let (thresholds, outcome) = guaranteed(&calibration, &path(&calibration)?, &promise)?;
            layers += outcome.layers / f64::from(runs);
            let exits = population.exits(&thresholds)?;
            let (answers, labels) = (population.answers(), population.labels().unwrap());
            let bad = exits.iter().enumerate().filter(|&(i, &layer)| {
                let (answer, full) = (answers[layer - 1][i], answers[2][i]);
                answer != full && (risk == Risk::Disagreement || full == labels[i])
            });
            broken += usize::from(bad.count() as f64 > promise.tolerance * 40_000.);
        }
        // What is seen at a rate of exactly delta is below this but for one run of this test in a million.
        let most = (0..400).find(|&k| binomial_cdf(k, 400, promise.delta) > 1. - 1e-6).unwrap();
        assert!(broken <= most, "{risk:?}, {test:?}: {broken} of 400 broken");
        // And it is worth something.
        assert!(layers < 2.9, "{risk:?}, {test:?}: {layers} layers");
    }
    Ok(())
}

#[test]
fn without_anything_to_promise_nobody_leaves() -> Result<()> {
    // The last layer is right on almost all, the first never: no exit may be taken.
    let layer = |x: f32| Tensor::new(&[x, 0.], &Cpu)?.repeat((1000, 1));
    let held_out = HeldOut::from_logits(Signal::MaxProbability, &[layer(-9.)?, layer(1.)?])?
        .with_labels(vec![0; 1000])?;
    let path = held_out.path(&[1], 50)?;
    let (_, outcome) = guaranteed(&held_out, &path, &Guarantee::default())?;
    assert_eq!((outcome.layers, outcome.accuracy), (2., Some(1.)));
    // Even where the sequence begins too boldly.
    let (thresholds, outcome) = guaranteed(&held_out, &path[49..], &Guarantee::default())?;
    assert_eq!((thresholds, outcome.layers), (Thresholds::none(), 2.));
    Ok(())
}

#[test]
fn the_first_thresholds_that_fail_end_the_sequence() -> Result<()> {
    let held_out = held_out(2000, 0.5, &mut init::rng(1))?;
    let (cautious, bold) = (
        Thresholds::common(Signal::MaxProbability, 0.97, 3),
        Thresholds::common(Signal::MaxProbability, 0.1, 3),
    );
    let promise = Guarantee { risk: Risk::Disagreement, tolerance: 0.05, ..Default::default() };
    let first = |path: &[Thresholds]| Ok::<_, Error>(guaranteed(&held_out, path, &promise)?.0);
    assert_eq!(first(&[cautious.clone(), bold.clone()])?, cautious);
    // Tested alone they would pass, after a failure they are not tested.
    assert_eq!(first(&[bold, cautious])?, Thresholds::none());
    Ok(())
}

#[test]
fn too_few_samples_are_told_how_many_are_needed() -> Result<()> {
    let mut rng = init::rng(1);
    let promise = Guarantee { tolerance: 0.005, ..Default::default() };
    assert_eq!(promise.samples_needed()?, 598);
    let few = held_out(597, 0.5, &mut rng)?;
    let error = guaranteed(&few, &path(&few)?, &promise).unwrap_err();
    assert!(matches!(error, Error::TooFewSamples { samples: 597, needed: 598, .. }), "{error}");
    assert!(error.to_string().contains("needs at least 598"), "{error}");
    // As many are enough, if none of them is bad.
    let layer = Tensor::new(&[9f32, 0.], &Cpu)?.repeat((598, 1))?;
    let perfect =
        HeldOut::from_logits(Signal::MaxProbability, &[layer.clone(), layer])?.with_labels(vec![0; 598])?;
    assert_eq!(guaranteed(&perfect, &perfect.path(&[1], 50)?, &promise)?.1.layers, 1.);
    for (tolerance, delta) in [(0., 0.1), (1., 0.1), (0.1, 0.), (0.1, 1.), (f64::NAN, 0.1)] {
        let promise = Guarantee { tolerance, delta, ..Default::default() };
        assert!(
            matches!(guaranteed(&perfect, &[], &promise), Err(Error::Setting { .. })),
            "{tolerance}, {delta}"
        );
    }
    let unlabelled = HeldOut::from_logits(
        Signal::MaxProbability,
        &[Tensor::ones((400, 2), candle_core::DType::F32, &Cpu)?],
    )?;
    assert!(matches!(
        guaranteed(&unlabelled, &[Thresholds::none()], &Guarantee::default()),
        Err(Error::NoLabels)
    ));
    Ok(())
}

#[test]
fn held_out_samples_that_do_not_fit_are_named() -> Result<()> {
    let logits = Tensor::new(&[[0f32, 1.], [2., 0.]], &Cpu)?;
    let of = |layers: &[Tensor]| HeldOut::from_logits(Signal::MaxProbability, layers);
    assert!(matches!(of(&[]), Err(Error::Empty)));
    assert!(matches!(of(&[logits.clone(), logits.narrow(0, 0, 1)?]), Err(Error::Rows { .. })));
    let nan = Tensor::new(&[[0f32, 1.], [f32::NAN, 0.]], &Cpu)?;
    assert!(matches!(of(&[logits.clone(), nan]), Err(Error::NotFinite { layer: 2, row: 1 })));
    let held_out = of(&[logits.clone(), logits.clone()])?;
    assert!(matches!(held_out.clone().with_labels(vec![0]), Err(Error::Rows { rows: 2, labels: 1 })));
    assert!(matches!(
        held_out.clone().with_labels(vec![0, 2]),
        Err(Error::Label { row: 1, label: 2, classes: 2 })
    ));
    assert!(matches!(held_out.select(&[0, 2]), Err(Error::Sample { sample: 2, samples: 2 })));
    assert!(matches!(held_out.select(&[]), Err(Error::Empty)));
    assert_eq!(held_out.select(&[1, 1, 0])?.answers()[0], [0, 0, 1]);
    assert!(matches!(held_out.exits(&Thresholds::common(Signal::Margin, 0.5, 2)), Err(Error::Signal)));
    let error = HeldOut::from_logits(Signal::Saturation, &[logits]).unwrap_err();
    assert!(matches!(error, Error::Setting { field: "signal", .. }), "{error}");
    let none: [candle_core::Result<Batch>; 0] = [];
    assert!(matches!(
        HeldOut::observe(&TinyStack::new(2, 4, 3, 1)?, Signal::Margin, none),
        Err(Error::Empty)
    ));
    Ok(())
}

fn exits() -> SavedExits {
    let promise = Guarantee { tolerance: 0.02, ..Default::default() };
    SavedExits {
        depth: 3,
        thresholds: Thresholds { signal: Signal::Margin, at: [(1, 0.875), (2, 0.5)].into() },
        calibration: Calibration::Guarantee { promise, layers: 1.75, samples: 1000 },
    }
}

#[test]
fn exits_are_kept_with_the_model() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let folder = tempfile::tempdir()?;
    let folder = folder.path();
    let vit = tiny_vit(tiny_vit_config(), 1);
    vit.save(folder)?;
    assert!(matches!(SavedExits::load(folder, 3), Err(Error::NotCalibrated { .. })));
    exits().save(folder)?;
    assert_eq!(SavedExits::load(folder, 3)?, exits());
    // The model does not mind, and the exits run on it.
    let loaded = Vit::load(folder, &Cpu)?;
    let batch = Batch::from(random(2, &[4, 3, 8, 8]));
    assert_eq!(leave_early(&loaded, &batch, &SavedExits::load(folder, 3)?.thresholds)?.layer.len(), 4);
    // Another model of the folder was not calibrated; nor is one that is cut.
    loaded.cut(2)?.save(&folder.join("cut"))?;
    assert!(matches!(SavedExits::load(&folder.join("cut"), 2), Err(Error::NotCalibrated { .. })));
    loaded.save(folder)?;
    assert!(matches!(SavedExits::load(folder, 3), Err(Error::NotCalibrated { .. })));
    // A folder without `layerwise.json` gets one; a gate's weights come back to the last bit.
    let gate = layerwise_exit::Gate { weights: vec![0.1, -1. / 3.], bias: 1e-9 };
    let gated = SavedExits {
        thresholds: Thresholds::common(Signal::Gate(gate), 0.5, 3),
        calibration: Calibration::Given,
        ..exits()
    };
    let other = tempfile::tempdir()?;
    gated.save(other.path())?;
    assert_eq!(SavedExits::load(other.path(), 3)?, gated);
    Ok(())
}

#[test]
fn saved_exits_that_do_not_fit_are_named() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("layerwise.json");
    let told = |text: &str| {
        fs::write(&file, text)?;
        let error = SavedExits::load(folder.path(), 3).unwrap_err();
        let shown = error.to_string();
        assert!(shown.contains("layerwise.json"), "{shown}");
        Ok::<_, std::io::Error>((error, shown))
    };
    assert!(matches!(SavedExits::load(folder.path(), 3), Err(Error::NotCalibrated { .. })));
    assert!(matches!(told("{}")?.0, Error::NotCalibrated { .. }));
    for text in ["", "[]", "{\"exits\": 1}", "{\"exits\": {\"depth\": 3}}"] {
        assert!(matches!(told(text)?.0, Error::Json { .. }), "{text}");
    }
    let valid = serde_json::to_value(exits())?;
    let with = |key: &str, value: serde_json::Value| {
        let mut exits = valid.clone();
        exits[key] = value;
        serde_json::json!({ "exits": exits }).to_string()
    };
    let (_, shown) = told(&with("depth", 12.into()))?;
    assert!(shown.contains("made for a model of 12 layers, this one has 3"), "{shown}");
    let at =
        |layer: &str, threshold: f64| serde_json::json!({ "signal": "margin", "at": { layer: threshold } });
    assert!(told(&with("thresholds", at("1", 1.5)))?.1.contains("threshold is 1.5"));
    assert!(told(&with("thresholds", at("3", 0.5)))?.1.contains("layer 3"));
    assert!(matches!(told(&with("surprise", 1.into()))?.0, Error::Json { .. }));
    // What cannot be loaded cannot be saved either.
    let wrong = SavedExits { depth: 2, ..exits() };
    assert!(matches!(wrong.save(folder.path()), Err(Error::Layer { .. })));
    fs::write(&file, "no JSON")?;
    assert!(matches!(exits().save(folder.path()), Err(Error::Json { .. })));
    assert_eq!(fs::read_to_string(&file)?, "no JSON");
    assert!(matches!(exits().save(&file.join("below")), Err(Error::Io { .. })));
    Ok(())
}

#[test]
fn a_monitor_notices_a_rate_above_the_promise_and_seldom_one_below() -> Result<()> {
    let mut rng = init::rng(5);
    let mut alarms = |rate: f64, samples: usize| {
        let runs = (0..300).map(|_| {
            let mut monitor = Monitor::new(0.01, 0.05)?;
            for _ in 0..samples {
                monitor.observe(rng.random_bool(rate));
            }
            Ok(monitor.alarm())
        });
        runs.collect::<Result<Vec<Option<usize>>>>().map(|alarms| alarms.iter().flatten().count())
    };
    // At the tolerance, however long it runs: at most 5 % of the runs (of 300 seen: 33 but for one test in a million).
    assert!((0..=300).find(|&k| binomial_cdf(k, 300, 0.05) > 1. - 1e-6).unwrap() <= 36);
    let false_alarms = alarms(0.01, 20_000)?;
    assert!(false_alarms <= 36, "{false_alarms} of 300");
    assert!(alarms(0.02, 10_000)? >= 295);
    assert!(alarms(0.1, 300)? >= 295);
    // A change that comes after a long time is noticed almost as soon.
    let mut monitor = Monitor::new(0.01, 0.05)?;
    assert!(!(0..100_000).any(|i| monitor.observe(i % 200 == 0)));
    let after = (0..5000).position(|i| monitor.observe(i % 20 == 0));
    assert!(after.is_some_and(|after| after < 1500), "{after:?}");

    // Of what calibration samples showed, the upper bound.
    let after = Monitor::after(46, 4000, 0.05)?;
    assert_eq!(after.tolerance(), binomial_upper(46, 4000, 0.025));
    assert!(matches!(Monitor::after(3, 3, 0.05), Err(Error::Empty)));
    assert!(matches!(Monitor::after(1, 3, 2.), Err(Error::Setting { field: "alpha", .. })));

    let mut monitor = Monitor::new(0.1, 0.05)?;
    assert!(monitor.rate().is_nan() && !monitor.observe(false));
    for _ in 0..20 {
        monitor.observe(true);
    }
    let at = monitor.alarm().unwrap();
    assert!((2..=8).contains(&at), "{at}");
    // Raised once, it stays.
    assert!((0..1000).all(|_| monitor.observe(false)) && monitor.alarm() == Some(at));
    assert_eq!((monitor.observed(), monitor.rate()), (1021, 20. / 1021.));
    for (tolerance, alpha) in [(0., 0.1), (1., 0.1), (0.1, 0.), (0.1, 1.), (f64::NAN, 0.1)] {
        assert!(matches!(Monitor::new(tolerance, alpha), Err(Error::Setting { .. })));
    }
    Ok(())
}
