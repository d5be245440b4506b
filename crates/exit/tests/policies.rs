//! Every policy: decides as defined, and the same for each sample whatever batch, order or pool it is in.

use candle_core::{Device::Cpu, Tensor};
use layerwise_exit::{
    Compaction, CostTable, Engine, Error, FixedDepth, Gate, HeldOut, Oracle, Policy, PoolConfig, Pools,
    Random, Result, Signal, Thresholds, histogram, leave_early,
};
use layerwise_models::{Batch, Pass, Tapped, tap};
use layerwise_testkit::{Counted, Scripted, TinyStack, assert_close, random};
use proptest::prelude::*;

/// Rows computed in another batch: gemm picks its kernel by the number of rows, and each sums in another order.
const OTHER_BATCH: f64 = 1e-5;

/// Layers after which the scripted samples leave.
fn layers(policy: &dyn Policy, script: &[Vec<[f32; 3]>]) -> Result<Vec<usize>> {
    let depth = script[0].len();
    let flat: Vec<f32> = script.iter().flatten().flatten().copied().collect();
    let script = Tensor::from_vec(flat, (script.len(), depth, 3), &Cpu)?;
    Ok(leave_early(&Scripted { depth }, &script.into(), policy)?.layer)
}

const A: [f32; 3] = [4., 0., 0.];
const B: [f32; 3] = [0., 4., 0.];
const UNSURE: [f32; 3] = [0.2, 0., 0.1];

#[test]
fn patience_counts_checks_with_one_answer() -> Result<()> {
    let script = [vec![A, A, A, A], vec![A, B, B, A], vec![A, B, A, B], vec![UNSURE, A, B, B]];
    for (patience, want) in [(1., [1, 1, 1, 1]), (2., [2, 3, 4, 2]), (3., [3, 4, 4, 4])] {
        let policy = Thresholds::common(Signal::Patience, patience, 4);
        assert_eq!(layers(&policy, &script)?, want, "patience {patience}");
    }
    // Checks that are left out do not count.
    let few = Thresholds { signal: Signal::Patience, at: [(1, 2.), (3, 2.)].into() };
    assert_eq!(layers(&few, &script)?, [3, 4, 3, 4]);
    Ok(())
}

#[test]
fn margin_and_entropy_leave_as_defined() -> Result<()> {
    // Margins 0.95 and 0.07; entropies 0.18 and 1.09 nats.
    let script = [vec![UNSURE, A, UNSURE], vec![UNSURE, UNSURE, A]];
    for (signal, threshold) in [(Signal::Margin, 0.5), (Signal::Entropy, 0.5)] {
        assert_eq!(layers(&Thresholds::common(signal, threshold, 3), &script)?, [2, 3]);
    }
    assert_eq!(layers(&Thresholds::common(Signal::Entropy, 1.2, 3), &script)?, [1, 1]);
    assert_eq!(layers(&Thresholds::common(Signal::Entropy, 0., 3), &script)?, [3, 3]);
    Ok(())
}

#[test]
fn only_the_layers_with_a_threshold_are_checked() -> Result<()> {
    let model = Counted::new(TinyStack::new(6, 8, 4, 1)?);
    let batch = Batch::from(random(2, &[30, 8]));
    let policy = Thresholds { signal: Signal::MaxProbability, at: [(2, 0.9), (4, 0.6)].into() };
    let out = leave_early(&model, &batch, &policy)?;
    assert!(out.layer.iter().all(|layer| [2, 4, 6].contains(layer)), "{:?}", out.layer);
    let exits = model.exits();
    assert_eq!((exits[0], exits[1], exits[2], exits[4]), (0, 30, 0, 0));
    assert!(exits[3] > 0 && exits[5] > 0);
    Ok(())
}

#[test]
fn saturation_and_gates_need_no_head_for_those_who_stay() -> Result<()> {
    let model = Counted::new(TinyStack::new(6, 8, 4, 1)?);
    let batch = Batch::from((random(2, &[60, 8]) * 1.2)?);
    let features = tap::features(&model, &batch, Pass::EVAL)?;
    let cos = |a: &[f32], b: &[f32]| {
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(x, y)| f64::from(x * y)).sum::<f64>();
        dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
    };
    let rows: Vec<Vec<Vec<f32>>> =
        features.iter().map(Tensor::to_vec2).collect::<candle_core::Result<_>>()?;
    let threshold = 0.97;
    let want: Vec<usize> = (0..60)
        .map(|i| (2..6).find(|&l| cos(&rows[l][i], &rows[l - 1][i]) > threshold).unwrap_or(6))
        .collect();
    let out = leave_early(&model, &batch, &Thresholds::common(Signal::Saturation, threshold, 6))?;
    assert_eq!(out.layer, want);
    assert!(histogram(&out.layer, 6).iter().filter(|m| **m > 0).count() > 2, "{:?}", out.layer);
    assert_eq!(model.exits(), histogram(&out.layer, 6));

    let model = Counted::new(TinyStack::new(6, 8, 4, 1)?);
    let gate = Gate { weights: (0..8).map(|i| f64::from(i) - 3.5).collect(), bias: -1. };
    let want: Vec<usize> =
        (0..60).map(|i| (1..6).find(|&l| gate.probability(&rows[l][i]) > 0.8).unwrap_or(6)).collect();
    let out = leave_early(&model, &batch, &Thresholds::common(Signal::Gate(gate), 0.8, 6))?;
    assert_eq!((&out.layer, model.exits()), (&want, histogram(&want, 6)));
    Ok(())
}

/// Samples whose answers become right at a layer that one direction of their feature tells.
#[test]
fn a_gate_learns_where_exits_are_right() -> Result<()> {
    let (train, test) = (random(1, &[400, 6]), random(2, &[400, 6]));
    let right = |xs: &Tensor| -> Result<Vec<bool>> {
        Ok(xs.to_vec2::<f32>()?.iter().map(|row| row[0] + 0.5 * row[1] > row[2]).collect())
    };
    let gate = Gate::fit(&[train.clone(), (&train * 3.)?], &[right(&train)?, right(&train)?])?;
    let hits = test
        .to_vec2::<f32>()?
        .iter()
        .zip(right(&test)?)
        .filter(|(row, right)| (gate.probability(row) > 0.5) == *right)
        .count();
    assert!(hits > 370, "{hits} of 400");

    assert!(matches!(Gate::fit(&[], &[]), Err(Error::Empty)));
    assert!(matches!(
        Gate::fit(std::slice::from_ref(&train), &[vec![true; 400]]),
        Err(Error::OneSided { right: 400, of: 400 })
    ));
    assert!(matches!(Gate::fit(std::slice::from_ref(&train), &[vec![true; 3]]), Err(Error::Rows { .. })));
    let nan = Tensor::new(&[[f32::NAN, 0.], [0., 1.]], &Cpu)?;
    assert!(matches!(Gate::fit(&[nan], &[vec![true, false]]), Err(Error::Fit(_))));
    Ok(())
}

#[test]
fn an_oracle_leaves_after_the_first_right_layer() -> Result<()> {
    let answers = [vec![0, 1, 2, 0], vec![1, 1, 2, 0], vec![1, 0, 2, 0]];
    assert_eq!(Oracle::right(&answers, &[1, 1, 2, 3])?.layers(), [2, 1, 1, 1]);
    assert_eq!(Oracle::agreeing(&answers)?.layers(), [2, 3, 1, 1]);
    assert!(matches!(Oracle::right(&answers, &[0]), Err(Error::Rows { .. })));
    assert!(matches!(Oracle::agreeing(&[]), Err(Error::Empty)));
    // A sample it was not made from.
    let script = vec![vec![A, A, A]; 5];
    let error = layers(&Oracle::agreeing(&answers)?, &script).unwrap_err();
    assert!(matches!(error, Error::Key { key: 4, samples: 4 }), "{error}");
    Ok(())
}

#[test]
fn random_exits_follow_their_weights() -> Result<()> {
    let script = vec![vec![UNSURE; 3]; 4000];
    let random = Random { seed: 1, weights: vec![1., 0., 3.] };
    let counts = histogram(&layers(&random, &script)?, 3);
    // 1,000 expected, with a deviation of 27.
    assert!(counts[1] == 0 && (counts[0] as f64 - 1000.).abs() < 5. * 27.4, "{counts:?}");
    assert_ne!(layers(&Random { seed: 2, ..random.clone() }, &script)?, layers(&random, &script)?);
    for weights in [vec![1.; 2], vec![0.; 3], vec![1., -1., 1.], vec![f64::NAN; 3]] {
        assert!(Random { seed: 1, weights: weights.clone() }.validate(3).is_err(), "{weights:?}");
    }
    Ok(())
}

#[test]
fn thresholds_out_of_range_are_refused() {
    let bad = [
        (Signal::MaxProbability, vec![-0.1, 1.1, f64::NAN]),
        (Signal::Margin, vec![-0.1, 1.1, f64::INFINITY]),
        (Signal::Entropy, vec![-0.1, f64::NAN, f64::INFINITY]),
        (Signal::Patience, vec![0., 1.5, f64::NAN]),
        (Signal::Saturation, vec![-1.1, 1.1]),
        (Signal::Gate(Gate::default()), vec![-0.1, 1.1]),
    ];
    for (signal, thresholds) in bad {
        for threshold in thresholds {
            let error = Thresholds::common(signal.clone(), threshold, 4).validate(4).unwrap_err();
            assert!(
                matches!(error, Error::Setting { field: "threshold", .. }),
                "{signal:?}, {threshold}: {error}"
            );
        }
    }
    for layer in [0, 4, 9] {
        let policy = Thresholds { at: [(layer, 0.5)].into(), ..Default::default() };
        let error = policy.validate(4).unwrap_err();
        assert!(matches!(error, Error::Layer { first: 1, last: 3, depth: 4, .. }), "{error}");
    }
}

#[test]
fn a_gate_of_another_width_is_refused() -> Result<()> {
    let gate = Signal::Gate(Gate { weights: vec![1.; 5], bias: 0. });
    let error = leave_early(
        &TinyStack::new(3, 8, 4, 1)?,
        &Batch::from(random(2, &[4, 8])),
        &Thresholds::common(gate, 0.5, 3),
    );
    assert!(matches!(error, Err(Error::Width { gate: 5, width: 8 })), "{error:?}");
    Ok(())
}

/// How close each decision of a sample, alone, was to going the other way.
struct Alone {
    layer: usize,
    logits: Tensor,
}

/// Each sample in a batch of its own.
fn alone(model: &TinyStack, batch: &Batch, policy: &dyn Policy) -> Result<Vec<Alone>> {
    let engine = Engine { policy, compaction: Compaction::Always };
    let one = |(key, sample): (usize, &Batch)| {
        let out = engine.run_keyed(model, sample, &[key as u64])?;
        Ok(Alone { layer: out.layer[0], logits: out.logits })
    };
    batch.split(1)?.iter().enumerate().map(one).collect()
}

fn any_policy(depth: usize, width: usize) -> impl Strategy<Value = Box<dyn Policy>> {
    let at = move |range: std::ops::Range<f64>| prop::collection::btree_map(1..depth, range, 0..depth);
    let thresholds =
        |signal: Signal| move |at| Box::new(Thresholds { signal: signal.clone(), at }) as Box<dyn Policy>;
    let whole =
        |at: std::collections::BTreeMap<usize, f64>| at.into_iter().map(|(l, t)| (l, t.round())).collect();
    prop_oneof![
        at(0.2..1.).prop_map(thresholds(Signal::MaxProbability)),
        at(0. ..1.).prop_map(thresholds(Signal::Margin)),
        at(0. ..1.6).prop_map(thresholds(Signal::Entropy)),
        at(1. ..4.).prop_map(whole).prop_map(thresholds(Signal::Patience)),
        at(0.8..1.).prop_map(thresholds(Signal::Saturation)),
        (at(0. ..1.), prop::collection::vec(-2. ..2., width), -1. ..1.).prop_map(|(at, weights, bias)| {
            Box::new(Thresholds { signal: Signal::Gate(Gate { weights, bias }), at }) as Box<dyn Policy>
        }),
        (1..=depth).prop_map(|layer| Box::new(FixedDepth(layer)) as Box<dyn Policy>),
        (any::<u64>(), prop::collection::vec(0.1..1., depth)).prop_map(|(seed, weights)| Box::new(Random {
            seed,
            weights
        })
            as Box<dyn Policy>),
        prop::collection::vec(prop::collection::vec(0u32..3, ROWS), depth)
            .prop_map(|answers| Box::new(Oracle::agreeing(&answers).expect("layers of one length"))
                as Box<dyn Policy>),
    ]
}

const DEPTH: usize = 5;
const WIDTH: usize = 8;
const ROWS: usize = 24;

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 200, ..ProptestConfig::default() })]

    /// Batches cut and ordered at random, rows taken out or left in, pools run in any order: every sample as if it were alone.
    /// No tie is close enough to rounding to be met in these random numbers; the logits are compared to rounding.
    #[test]
    fn every_sample_as_if_it_were_alone(
        policy in any_policy(DEPTH, WIDTH),
        seed in 0u64..1000,
        order in Just((0..ROWS).collect::<Vec<usize>>()).prop_shuffle(),
        cuts in prop::collection::vec(1usize..8, ROWS),
        schedule in prop::collection::vec((0usize..DEPTH, 1usize..10), 0..60),
    ) {
        let model = TinyStack::new(DEPTH, WIDTH, 4, seed).unwrap();
        let batch = Batch::from((random(seed + 1, &[ROWS, WIDTH]) * 1.2).unwrap());
        let want = alone(&model, &batch, &*policy).unwrap();
        let check = |samples: &[usize], layer: &[usize], logits: &Tensor| {
            for (row, &sample) in samples.iter().enumerate() {
                prop_assert_eq!(layer[row], want[sample].layer, "sample {}", sample);
                let logits = logits.narrow(0, row, 1).unwrap();
                let close = assert_close(&logits, &want[sample].logits, OTHER_BATCH);
                prop_assert!(close.is_ok(), "sample {}: {:?}", sample, close);
            }
            Ok(())
        };
        // Requests: some samples each, in a random order.
        let mut requests = Vec::new();
        let mut rest = order.as_slice();
        for &cut in &cuts {
            let (some, others) = rest.split_at(cut.min(rest.len()));
            if !some.is_empty() { requests.push(some.to_vec()); }
            rest = others;
        }
        let of = |samples: &[usize]| {
            let rows: Vec<u32> = samples.iter().map(|&row| row as u32).collect();
            let rows = Tensor::new(rows, &Cpu).unwrap();
            let keys: Vec<u64> = samples.iter().map(|&row| row as u64).collect();
            (Batch::from(batch.inputs.index_select(&rows, 0).unwrap()), keys)
        };
        let costs = CostTable::default();
        for compaction in [Compaction::Always, Compaction::Never, Compaction::Late] {
            let engine = Engine { policy: &*policy, compaction };
            for samples in &requests {
                let (batch, keys) = of(samples);
                let out = engine.run_keyed(&model, &batch, &keys).unwrap();
                check(samples, &out.layer, &out.logits)?;
            }
        }
        let config = PoolConfig { max_batch: 7, ..Default::default() };
        let mut pools = Pools::new(&model, &*policy, &costs, config).unwrap();
        // Half of the requests come while the others are on their way.
        let (first, second) = requests.split_at(requests.len() / 2);
        let submit = |pools: &mut Pools<'_, TinyStack>, requests: &[Vec<usize>]| {
            pools.submit_keyed(requests.iter().map(|samples| of(samples)).collect())
        };
        let mut numbers = submit(&mut pools, first);
        let (early, late) = schedule.split_at(schedule.len() / 2);
        for &(done, rows) in early { pools.step_at(done, rows); }
        numbers.extend(submit(&mut pools, second));
        for &(done, rows) in late { pools.step_at(done, rows); }
        while pools.step() {}
        let mut finished = pools.finished();
        finished.sort_by_key(|(number, _)| *number);
        prop_assert_eq!(finished.iter().map(|(number, _)| *number).collect::<Vec<_>>(), numbers);
        for ((_, answer), samples) in finished.iter().zip(&requests) {
            let out = answer.as_ref().unwrap();
            check(samples, &out.layer, &out.logits)?;
        }
        prop_assert_eq!(pools.rows(), 0);
        let layers: Vec<usize> = want.iter().map(|alone| alone.layer).collect();
        prop_assert_eq!(&pools.work().histogram, &histogram(&layers, DEPTH));
    }

    /// What is computed from held-out values is what the engine does.
    #[test]
    fn held_out_samples_leave_where_the_engine_lets_them(
        seed in 0u64..1000,
        which in 0usize..6,
        at in prop::collection::btree_map(1..DEPTH, 0f64..1., 0..DEPTH),
    ) {
        let gate = Gate { weights: (0..WIDTH).map(|i| i as f64 - 3.5).collect(), bias: 0.3 };
        let signal = [
            Signal::MaxProbability, Signal::Margin, Signal::Entropy, Signal::Patience, Signal::Saturation, Signal::Gate(gate),
        ][which].clone();
        let at = if signal == Signal::Patience { at.into_iter().map(|(l, t)| (l, (3. * t).ceil().max(1.))).collect() } else { at };
        let policy = Thresholds { signal: signal.clone(), at };
        let model = TinyStack::new(DEPTH, WIDTH, 4, seed).unwrap();
        let batch = Batch::from((random(seed + 1, &[ROWS, WIDTH]) * 1.2).unwrap());
        let held_out = HeldOut::observe(&model, signal, batch.split(10).unwrap().into_iter().map(Ok)).unwrap();
        let out = leave_early(&model, &batch, &policy).unwrap();
        prop_assert_eq!(held_out.exits(&policy).unwrap(), out.layer.clone());
        let outcome = held_out.outcome(&policy).unwrap();
        prop_assert_eq!(outcome.histogram, histogram(&out.layer, DEPTH));
        let full = tap::forward(&model, &batch, Pass::EVAL).unwrap().argmax(1).unwrap().to_vec1::<u32>().unwrap();
        let answers = out.logits.argmax(1).unwrap().to_vec1::<u32>().unwrap();
        let differ = full.iter().zip(&answers).filter(|(a, b)| a != b).count();
        prop_assert_eq!(outcome.disagreement, differ as f64 / ROWS as f64);
    }
}

#[test]
fn a_policy_is_an_object() {
    fn takes(policy: &dyn Policy) -> bool {
        policy.reads(1, 2) == layerwise_exit::Reads::Nothing
    }
    assert!(takes(&Thresholds::none()) && model_is_object(&Scripted { depth: 1 }));
    fn model_is_object(model: &dyn Tapped) -> bool {
        model.depth() == 1
    }
}
