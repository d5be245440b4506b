//! Scores of every exit, and what a threshold gives and saves.

use candle_core::{Device::Cpu, Tensor};
use layerwise_exit::{
    Compaction, Engine, Error, Oracle, Result, Signal, Thresholds, evaluate, histogram, layer_ratio,
    leave_early, measure, minimal_depth,
};
use layerwise_models::{Batch, Gpt2, Gpt2Config, Tapped};
use layerwise_ops::init;
use layerwise_testkit::{Scripted, TinyStack, random};

/// Logits `(4 samples, 2 layers, 3 classes)`; samples 1 and 3 have ties in layer 1.
const SCRIPT: [[[f32; 3]; 2]; 4] = [
    [[2., 0., 1.], [0.4, 0.2, 0.3]],
    [[0.5, 0.5, -1.], [4., -4., 0.]],
    [[-1., 3., 0.], [1., 1.5, -2.]],
    [[0., 0., 0.], [-3., 0., 3.]],
];

/// Equivalent Python, for each layer's logits `x`:
///
/// ```python
/// y = torch.tensor([0, 1, 1, 2])
/// print((x.argmax(1) == y).double().mean(), F.cross_entropy(x, y))
/// ```
#[test]
fn accuracy_and_loss_equal_pytorch() -> Result<()> {
    let batch = (Tensor::new(&SCRIPT, &Cpu)?.into(), Tensor::new(&[0u32, 1, 1, 2], &Cpu)?);
    let scores = evaluate(&Scripted { depth: 2 }, [Ok(batch)])?;
    assert_eq!((scores.accuracy, scores.samples), (vec![0.5, 0.75], 4));
    // The logits are f32, which rounds 0.3 by 1e-8; all sums are f64.
    for (got, want) in scores.loss.iter().zip([0.5927545854279113, 2.3910167669197997]) {
        assert!((got - want).abs() < 5e-8, "{got} instead of {want}");
    }
    Ok(())
}

#[test]
fn scores_do_not_depend_on_batches() -> Result<()> {
    let model = TinyStack::new(4, 8, 3, 1)?;
    let (inputs, labels) = samples(50)?;
    let scores = |size| evaluate(&model, batches(&inputs, &labels, size)?);
    let whole = scores(50)?;
    assert_eq!((whole.samples, whole.accuracy.len(), whole.loss.len()), (50, 4, 4));
    for size in [1, 7, 49] {
        let parts = scores(size)?;
        assert_eq!((parts.samples, &parts.accuracy), (50, &whole.accuracy));
        // Logits of about 1, whose last bits depend on gemm's kernel for that many rows.
        assert!(parts.loss.iter().zip(&whole.loss).all(|(a, b)| (a - b).abs() < 1e-6));
    }
    Ok(())
}

/// A head of so many words that its logits are never in memory together says what it says of a few rows at a time.
#[test]
fn large_heads_score_as_small_ones() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let config = Gpt2Config {
        vocab_size: 5003,
        n_positions: 60,
        n_embd: 12,
        n_layer: 2,
        n_head: 3,
        ..Default::default()
    };
    let model = Gpt2::new(config, &mut init::rng(3), &Cpu)?;
    let (rows, words) = (5, 5003);
    let id = |i: u32| i * i * 31 % words;
    let inputs = Tensor::from_iter((0..rows * 60).map(id), &Cpu)?.reshape((rows as usize, 60))?;
    let labels = Tensor::from_iter((0..rows * 60).map(|i| if i % 3 == 0 { id(i) } else { id(i + 1) }), &Cpu)?;
    let whole = |labels: &Tensor| evaluate(&model, [Ok((inputs.clone().into(), labels.clone()))]);
    let part = |i: usize| Ok((inputs.narrow(0, i, 1)?.into(), labels.narrow(0, i * 60, 60)?));
    let (scores, parts) = (whole(&labels)?, evaluate(&model, (0..5).map(part))?);
    assert_eq!((scores.samples, &scores.accuracy), (300, &parts.accuracy));
    assert!(scores.accuracy[1] > 0.);
    assert!(scores.loss.iter().zip(&parts.loss).all(|(a, b)| (a - b).abs() < 1e-6));

    let wrong = Tensor::from_iter((0..300u32).map(|i| if i == 71 { 5003u32 } else { 1 }), &Cpu)?;
    let error = whole(&wrong).unwrap_err();
    assert!(matches!(error, Error::Label { row: 71, label: 5003, classes: 5003 }), "{error}");
    assert!(matches!(whole(&wrong.narrow(0, 0, 50)?), Err(Error::Rows { rows: 300, labels: 50 })));
    let words = model.params().iter().find(|(name, _)| *name == "transformer.wpe.weight");
    let (_, places) = words.ok_or("no positions")?;
    let nan = Tensor::full(f32::NAN, (1, 12), &Cpu)?;
    places.set(&places.slice_assign(&[7..8, 0..12], &nan)?)?;
    assert!(matches!(whole(&labels), Err(Error::NotFinite { layer: 1, .. })));
    Ok(())
}

fn samples(n: usize) -> Result<(Batch, Tensor)> {
    let labels = (0..n as u32).map(|i| i * i % 3).collect();
    Ok((Batch::from(random(2, &[n, 8])), Tensor::from_vec(labels, n, &Cpu)?))
}

type Batches = Vec<candle_core::Result<(Batch, Tensor)>>;

/// Samples in batches of `size`.
fn batches(inputs: &Batch, labels: &Tensor, size: usize) -> Result<Batches> {
    let rows = labels.dim(0)?;
    let labels = (0..rows).step_by(size).map(|start| labels.narrow(0, start, size.min(rows - start)));
    Ok(inputs.split(size)?.into_iter().zip(labels).map(|(batch, labels)| Ok((batch, labels?))).collect())
}

#[test]
fn wrong_samples_are_named() -> Result<()> {
    let model = Scripted { depth: 2 };
    let script = Tensor::new(&SCRIPT, &Cpu)?;
    let score = |script: &Tensor, labels: &[u32]| {
        evaluate(&model, [Ok((script.clone().into(), Tensor::new(labels, &Cpu)?))])
    };
    assert!(matches!(evaluate(&model, []), Err(Error::Empty)));
    let error = score(&script, &[0, 1, 3, 0]).unwrap_err();
    assert!(matches!(error, Error::Label { row: 2, label: 3, classes: 3 }), "{error}");
    let error = score(&script, &[0, 1]).unwrap_err();
    assert!(matches!(error, Error::Rows { rows: 4, labels: 2 }), "{error}");
    let mut bad = SCRIPT;
    bad[3][1][0] = f32::NAN;
    let error = score(&Tensor::new(&bad, &Cpu)?, &[0, 1, 1, 2]).unwrap_err();
    assert!(matches!(error, Error::NotFinite { layer: 2, row: 3 }), "{error}");
    let unread = [Err(candle_core::Error::Msg("no such file".into()))];
    assert!(evaluate(&model, unread).unwrap_err().to_string().contains("no such file"));
    Ok(())
}

fn at(threshold: f64) -> Thresholds {
    Thresholds::common(Signal::MaxProbability, threshold, 4)
}

fn engine(policy: &Thresholds) -> Engine<'_> {
    Engine { policy, compaction: Compaction::Always }
}

#[test]
fn measure_reports_what_leave_early_does() -> Result<()> {
    let model = TinyStack::new(4, 8, 3, 1)?;
    let (inputs, labels) = samples(50)?;
    let policies = [at(0.), at(0.6), Thresholds::none()];
    let engines: Vec<Engine<'_>> = policies.iter().map(engine).collect();
    let reports = measure(&model, || batches(&inputs, &labels, 16).unwrap(), &engines, 2)?;
    assert_eq!(reports.len(), 3);
    let label = labels.to_vec1::<u32>()?;
    for (report, policy) in reports.iter().zip(&policies) {
        let (mut layers, mut answers) = (Vec::new(), Vec::new());
        for batch in inputs.split(16)? {
            let out = leave_early(&model, &batch, policy)?;
            layers.extend(out.layer);
            answers.extend(out.logits.argmax(1)?.to_vec1::<u32>()?);
        }
        let hits = answers.iter().zip(&label).filter(|(answer, label)| answer == label).count();
        assert_eq!(report.batch, 16);
        assert_eq!(report.histogram, histogram(&layers, 4));
        assert_eq!(report.accuracy, hits as f64 / 50.);
        assert_eq!(report.layer_ratio, layer_ratio(&report.histogram));
        assert!(report.wall_ratio.is_finite() && report.wall_ratio > 0.);
        assert!(0. < report.p50_ms && report.p50_ms <= report.p95_ms && report.samples_per_s > 0.);
    }
    // The ends are the scores of the first and of the last exit.
    let scores = evaluate(&model, [Ok((inputs, labels))])?;
    assert_eq!((reports[0].accuracy, reports[2].accuracy), (scores.accuracy[0], scores.accuracy[3]));
    assert_eq!((reports[0].layer_ratio, reports[2].layer_ratio), (4., 1.));
    assert!(reports[1].histogram.iter().filter(|m| **m > 0).count() > 1, "{:?}", reports[1].histogram);
    Ok(())
}

#[test]
fn measure_knows_samples_by_their_place_among_all() -> Result<()> {
    let model = TinyStack::new(4, 8, 3, 1)?;
    let (inputs, labels) = samples(50)?;
    let logits = layerwise_models::tap::layer_logits(&model, &inputs, layerwise_models::Pass::EVAL)?;
    let answers = logits.iter().map(|l| l.argmax(1)?.to_vec1()).collect::<candle_core::Result<Vec<_>>>()?;
    let oracle = Oracle::right(&answers, &labels.to_vec1::<u32>()?)?;
    let engine = Engine { policy: &oracle, compaction: Compaction::Always };
    let report = &measure(&model, || batches(&inputs, &labels, 16).unwrap(), &[engine], 1)?[0];
    assert_eq!(report.histogram, histogram(oracle.layers(), 4));
    // Right wherever any layer is.
    let scores = evaluate(&model, [Ok((inputs, labels))])?;
    assert!(scores.accuracy.iter().all(|layer| report.accuracy >= *layer));
    Ok(())
}

#[test]
fn measure_names_what_is_wrong() -> Result<()> {
    let model = TinyStack::new(2, 8, 3, 1)?;
    let (inputs, labels) = samples(9)?;
    let policy = Thresholds::common(Signal::MaxProbability, 0.5, 2);
    let half = [engine(&policy)];
    let run =
        |labels: &Tensor, rounds| measure(&model, || [Ok((inputs.clone(), labels.clone()))], &half, rounds);
    assert!(matches!(run(&labels, 0), Err(Error::Setting { field: "rounds", .. })));
    assert!(matches!(run(&labels.narrow(0, 0, 5)?, 1), Err(Error::Rows { rows: 9, labels: 5 })));
    let wrong = Tensor::new(&[0u32, 1, 2, 0, 1, 2, 3, 0, 0], &Cpu)?;
    assert!(matches!(run(&wrong, 1), Err(Error::Label { row: 6, label: 3, classes: 3 })));
    assert!(matches!(measure(&model, || [], &half, 1), Err(Error::Empty)));
    let unread = || [Err(candle_core::Error::Msg("no such file".into()))];
    assert!(measure(&model, unread, &half, 1).unwrap_err().to_string().contains("no such file"));
    Ok(())
}

#[test]
fn nothing_records_a_graph_and_any_tapped_object_will_do() -> Result<()> {
    let (inputs, labels) = samples(9)?;
    let model: Box<dyn Tapped> = Box::new(TinyStack::new(3, 8, 3, 1)?);
    for policy in [Thresholds::common(Signal::MaxProbability, 0.6, 3), Thresholds::none()] {
        assert!(!leave_early(&*model, &inputs, &policy)?.logits.track_op(), "{policy:?}");
    }
    assert_eq!(evaluate(&*model, [Ok((inputs.clone(), labels.clone()))])?.samples, 9);
    let none = Thresholds::none();
    assert_eq!(measure(&*model, || [Ok((inputs.clone(), labels.clone()))], &[engine(&none)], 1)?.len(), 1);
    Ok(())
}

#[test]
fn minimal_depth_of_given_accuracies() {
    assert_eq!(minimal_depth(&[0.5, 0.9, 0.95, 0.94], 0.01), Some(3));
    assert_eq!(minimal_depth(&[0.5, 0.9, 0.95, 0.94], 0.1), Some(2));
    assert_eq!(minimal_depth(&[0.5, 0.9, 0.95, 0.94], 1.), Some(1));
    assert_eq!(minimal_depth(&[0.5, 0.9, 0.9, 0.9], 0.), Some(2)); // the first of equals
    assert_eq!(minimal_depth(&[0.25], 0.), Some(1));
    assert_eq!(minimal_depth(&[0.7, 0.8], 0.1), Some(1)); // 0.8 - 0.1 > 0.7 in f64
    assert_eq!(minimal_depth(&[f64::NAN, 0.5, 0.9], 0.5), Some(2));
    assert_eq!(minimal_depth(&[], 0.1), None);
    assert_eq!(minimal_depth(&[f64::NAN; 3], 0.1), None);
    assert_eq!(minimal_depth(&[0.5, 0.9], f64::NAN), None);
}
