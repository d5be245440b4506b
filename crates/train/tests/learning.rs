//! Training learns, tells what it does, and keeps what it did.

mod common;

use std::{
    cell::{Cell, RefCell},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::atomic::{AtomicBool, Ordering},
};

use layerwise_exit::{LayerScores, evaluate};
use layerwise_models::Batch;
use layerwise_testkit::TinyStack;
use layerwise_train::{
    Error, Evaluation, Event, Hooks, LayerWeights, Objective, TensorSamples, TrainConfig, TrainReport, train,
};
use tempfile::tempdir;

use crate::common::{Done, config, metrics, two_classes};

#[test]
fn every_exit_of_an_aligned_model_learns_two_classes() -> Done {
    let model = TinyStack::new(4, 8, 2, 1)?;
    let objective = Objective::Aligned { weights: LayerWeights::Linear };
    let config = TrainConfig { objective, batch_size: 32, ..config() };
    let held_out = two_classes(1000, 8, 9);
    let score = || scores(&model, &held_out);
    let chance = score()?;
    let hooks = Hooks { evaluate: Some(Box::new(score)), ..Default::default() };
    let report = train(&model, model.params(), &two_classes(512, 8, 3), &config, None, hooks)?;
    let last = &report.evaluations.last().unwrap().evaluation;
    // The best rule (the sign of the sum) is right for 99.8 %: the classes' centres are 2 sqrt(8) deviations apart.
    assert!(last.accuracy.iter().all(|a| *a > 0.98), "{last:?}");
    assert!(last.loss.iter().zip(&chance.loss).all(|(after, before)| after < before), "{last:?}");
    Ok(())
}

fn scores(model: &TinyStack, data: &TensorSamples) -> layerwise_exit::Result<LayerScores> {
    evaluate(model, [Ok((Batch::from(data.inputs.clone()), data.labels.clone()))])
}

/// Steps of 8 and 2 samples; three epochs of two steps.
fn settings() -> TrainConfig {
    TrainConfig { epochs: 3, evaluate_every: 2, checkpoint_every: 0, ..config() }
}

/// What a test wants to see of an event.
fn short(event: &Event) -> String {
    match event {
        Event::Started { done, steps } => format!("started {done}/{steps}"),
        Event::Step(record) => format!("step {} of epoch {}", record.step, record.epoch),
        Event::Checkpoint(step) => format!("checkpoint {step}"),
        Event::Evaluated(evaluation) => format!("evaluated {} after {}", evaluation.step, evaluation.epoch),
        other => panic!("{other:?}"),
    }
}

/// One run in `folder`, evaluating with `score`; stops after step `last`.
fn run(
    folder: &std::path::Path,
    config: &TrainConfig,
    last: usize,
    score: &dyn Fn() -> layerwise_exit::Result<LayerScores>,
) -> (Vec<String>, Result<TrainReport, Error>) {
    let model = TinyStack::new(2, 6, 2, 1).expect("a small model");
    let (stop, events) = (AtomicBool::new(false), RefCell::new(Vec::new()));
    let on_event = |event: &Event| {
        events.borrow_mut().push(short(event));
        if matches!(event, Event::Step(record) if record.step == last) {
            stop.store(true, Ordering::Relaxed);
        }
    };
    let hooks =
        Hooks { evaluate: Some(Box::new(score)), stop: Some(&stop), on_event: Some(Box::new(on_event)) };
    let result = train(&model, model.params(), &two_classes(10, 6, 1), config, Some(folder), hooks);
    (events.into_inner(), result)
}

fn no_score() -> LayerScores {
    LayerScores { accuracy: vec![0.5, 0.5], loss: vec![0.7, 0.7], samples: 2 }
}

#[test]
fn events_come_in_order() -> Done {
    let (events, report) = run(tempdir()?.path(), &settings(), usize::MAX, &|| Ok(no_score()));
    let want = [
        "started 0/6",
        "step 1 of epoch 1",
        "step 2 of epoch 1",
        "step 3 of epoch 2",
        "step 4 of epoch 2",
        "checkpoint 4",
        "evaluated 4 after 2",
        "step 5 of epoch 3",
        "step 6 of epoch 3",
        "checkpoint 6",
        "evaluated 6 after 3",
    ];
    assert_eq!(events, want);
    let steps: Vec<usize> = report?.evaluations.iter().map(|evaluation| evaluation.step).collect();
    assert_eq!(steps, [4, 6]);
    let (events, _) =
        run(tempdir()?.path(), &TrainConfig { evaluate_every: 0, ..settings() }, 0, &|| Ok(no_score()));
    assert_eq!(events.iter().filter(|event| event.starts_with("evaluated")).count(), 1);
    Ok(())
}

#[test]
fn the_stop_flag_ends_the_run_after_the_step_in_progress() -> Done {
    let folder = tempdir()?;
    let score: &dyn Fn() -> _ = &|| Ok(no_score());
    let (events, report) = run(folder.path(), &settings(), 3, score);
    assert_eq!(
        events,
        ["started 0/6", "step 1 of epoch 1", "step 2 of epoch 1", "step 3 of epoch 2", "checkpoint 3"]
    );
    let report = report?;
    assert_eq!((report.steps, report.stopped), (3, true));
    // Stopped where an evaluation was due: it is done when the run goes on, and once.
    let (events, report) = run(folder.path(), &settings(), 4, score);
    assert_eq!(events, ["started 3/6", "step 4 of epoch 2", "checkpoint 4"]);
    assert_eq!((report?.stopped, metrics(folder.path()).len()), (true, 4));
    let (events, report) = run(folder.path(), &settings(), 6, score);
    assert_eq!(events[..2], ["started 4/6", "evaluated 4 after 2"]);
    assert_eq!(events[2..], ["step 5 of epoch 3", "step 6 of epoch 3", "checkpoint 6"]);
    assert!(report?.stopped);
    let (events, report) = run(folder.path(), &settings(), usize::MAX, score);
    assert_eq!(events, ["started 6/6", "evaluated 6 after 3"]);
    assert!(!report?.stopped);
    assert_eq!(run(folder.path(), &settings(), usize::MAX, score).0, ["started 6/6"]);
    // A flag that is set beforehand stops before the first step.
    let model = TinyStack::new(2, 6, 2, 1)?;
    let stop = AtomicBool::new(true);
    let hooks = Hooks { stop: Some(&stop), ..Default::default() };
    let report = train(&model, model.params(), &two_classes(10, 6, 1), &settings(), None, hooks)?;
    assert_eq!((report.steps, report.stopped), (0, true));
    Ok(())
}

#[test]
fn evaluations_are_kept_over_resume() -> Done {
    let config = TrainConfig { evaluate_every: 1, ..settings() };
    let score = |calls: &Cell<usize>| {
        calls.set(calls.get() + 1);
        // Thirds, which text holds only if it is not rounded.
        let third = calls.get() as f64 / 3.;
        Ok(LayerScores { accuracy: vec![third, 1. / third], loss: vec![third / 7., third], samples: 3 })
    };
    let (whole, parts, calls) = (tempdir()?, tempdir()?, Cell::new(0));
    let want = run(whole.path(), &config, usize::MAX, &|| score(&calls)).1?.evaluations;
    calls.set(0);
    let mut got = Vec::new();
    for last in [3, 5, usize::MAX] {
        got = run(parts.path(), &config, last, &|| score(&calls)).1?.evaluations;
    }
    assert_eq!(calls.get(), 3);
    assert_eq!(metrics(parts.path()), metrics(whole.path()));
    let at =
        |evaluations: &[Evaluation]| -> Vec<_> { evaluations.iter().map(|e| (e.step, e.epoch)).collect() };
    assert_eq!(at(&got), [(2, 1), (4, 2), (6, 3)]);
    assert_eq!(got, want);
    Ok(())
}

#[test]
fn an_evaluation_that_fails_loses_no_step() -> Done {
    let folder = tempdir()?;
    let (events, result) = run(folder.path(), &settings(), usize::MAX, &|| Err(layerwise_exit::Error::Empty));
    assert!(matches!(result, Err(Error::Exit(_))));
    assert_eq!(events.last().unwrap(), "checkpoint 4");
    let calls = Cell::new(0);
    let second_fails = || {
        calls.set(calls.get() + 1);
        if calls.get() == 2 { Err(layerwise_exit::Error::Empty) } else { Ok(no_score()) }
    };
    let (events, result) = run(folder.path(), &settings(), usize::MAX, &second_fails);
    assert!(result.is_err());
    assert_eq!(
        events,
        ["started 4/6", "evaluated 4 after 2", "step 5 of epoch 3", "step 6 of epoch 3", "checkpoint 6"]
    );
    let (events, result) = run(folder.path(), &settings(), usize::MAX, &|| Ok(no_score()));
    assert_eq!(
        (events, result?.evaluations.len()),
        (vec!["started 6/6".into(), "evaluated 6 after 3".into()], 2)
    );
    Ok(())
}

#[test]
fn a_callback_that_panics_loses_no_checkpoint_that_was_due() -> Done {
    let folder = tempdir()?;
    let model = TinyStack::new(2, 6, 2, 1)?;
    let on_event =
        |event: &Event| assert!(!matches!(event, Event::Step(record) if record.step == 6), "as planned");
    let hooks = Hooks { on_event: Some(Box::new(on_event)), ..Default::default() };
    let run_it =
        || train(&model, model.params(), &two_classes(10, 6, 1), &settings(), Some(folder.path()), hooks);
    assert!(catch_unwind(AssertUnwindSafe(run_it)).is_err());
    let (events, _) = run(folder.path(), &settings(), usize::MAX, &|| Ok(no_score()));
    assert_eq!(events, ["started 6/6", "evaluated 6 after 3"]);
    Ok(())
}
