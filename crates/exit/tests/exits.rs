//! The engine: who leaves where, with which logits, and what is not computed any more.

use candle_core::{Device::Cpu, Tensor};
use layerwise_exit::{
    Compaction, CostTable, Engine, Error, Exited, FixedDepth, Policy, Result, Signal, Thresholds, histogram,
    layer_ratio,
};
use layerwise_models::{Batch, Hidden, Pass, Tapped, Vit, tap};
use layerwise_testkit::{
    Counted, Padded, Scripted, TinyStack, assert_close, random, tiny_vit, tiny_vit_config,
};

/// Rows computed in another batch: gemm picks its kernel by the number of rows, and each sums in another order.
const OTHER_BATCH: f64 = 1e-5;

const DEPTH: usize = 5;
const ROWS: usize = 60;

/// Untrained, but of spread confidence: at 0.6 samples leave after every layer.
fn stack() -> Result<(TinyStack, Batch)> {
    let model = TinyStack::new(DEPTH, 8, 4, 1)?;
    Ok((model, Batch::from((random(2, &[ROWS, 8]) * 1.2)?)))
}

/// The paper's: one threshold on the largest probability; `None` for no exits.
fn leave_early(model: &impl Tapped, batch: &Batch, threshold: impl Into<Option<f64>>) -> Result<Exited> {
    let policy = match threshold.into() {
        Some(threshold) => Thresholds::common(Signal::MaxProbability, threshold, model.depth()),
        None => Thresholds::none(),
    };
    layerwise_exit::leave_early(model, batch, &policy)
}

fn vit() -> (Vit, Batch) {
    (tiny_vit(tiny_vit_config(), 1), Batch::from(random(2, &[20, 3, 8, 8])))
}

#[test]
fn without_exits_it_is_the_full_model_bit_for_bit() -> Result<()> {
    fn check(model: &impl Tapped, batch: &Batch) -> Result<()> {
        let want = tap::forward(model, batch, Pass::EVAL)?.to_vec2::<f32>()?;
        // No probability is above 1: all exits are looked at, and nobody leaves.
        for threshold in [None, Some(1.)] {
            let out = leave_early(model, batch, threshold)?;
            assert_eq!(out.logits.to_vec2::<f32>()?, want);
            assert_eq!(out.layer, vec![model.depth(); batch.rows()?]);
        }
        Ok(())
    }
    let (model, batch) = stack()?;
    check(&model, &batch)?;
    let (model, batch) = vit();
    check(&model, &batch)?;
    check(&model.frozen(), &batch)
}

#[test]
fn at_zero_all_leave_after_layer_one() -> Result<()> {
    let (model, batch) = stack()?;
    let want = tap::layer_logits(&model, &batch, Pass::EVAL)?[0].to_vec2::<f32>()?;
    let out = leave_early(&model, &batch, 0.)?;
    assert_eq!(out.layer, [1; ROWS]);
    assert_eq!(out.logits.to_vec2::<f32>()?, want);
    Ok(())
}

#[test]
fn a_sample_leaves_at_the_first_confidence_above_the_threshold() -> Result<()> {
    // Two classes, margins of ln 4 and ln 9: confidences 0.8 and 0.9.
    let (sure, surer) = ([4f32.ln(), 0.], [0., 9f32.ln()]);
    let script = Tensor::new(&[[sure, [0., 0.], surer], [[0., 0.], surer, sure], [[0., 0.]; 3]], &Cpu)?;
    let model = Scripted { depth: 3 };
    let layers = |threshold| Ok::<_, Error>(leave_early(&model, &script.clone().into(), threshold)?.layer);
    assert_eq!(layers(0.49)?, [1, 1, 1]);
    assert_eq!(layers(0.7)?, [1, 2, 3]);
    assert_eq!(layers(0.85)?, [3, 2, 3]);
    assert_eq!(layers(0.95)?, [3, 3, 3]);
    // "Exceeds": a confidence of exactly 1/2 does not leave at 0.5.
    assert_eq!(layers(0.5)?, [1, 2, 3]);
    let out = leave_early(&model, &script.into(), 0.7)?;
    assert_eq!(out.logits.to_vec2::<f32>()?, [sure, surer, [0., 0.]]);
    Ok(())
}

#[test]
fn a_higher_threshold_never_leaves_earlier() -> Result<()> {
    let (model, batch) = stack()?;
    let mut before = vec![0; ROWS];
    for i in 0..=50 {
        let layer = leave_early(&model, &batch, f64::from(i) / 50.)?.layer;
        assert!(before.iter().zip(&layer).all(|(before, after)| before <= after), "at {i}/50");
        before = layer;
    }
    Ok(())
}

#[test]
fn compacted_batches_answer_as_single_samples() -> Result<()> {
    fn check(model: &impl Tapped, batch: &Batch, threshold: f64) -> Result<()> {
        let together = leave_early(model, batch, threshold)?;
        assert!(histogram(&together.layer, model.depth()).iter().all(|m| *m > 0), "{:?}", together.layer);
        one_by_one(model, batch, threshold, &together)
    }
    let (model, batch) = stack()?;
    check(&model, &batch, 0.6)?;
    let (model, batch) = vit();
    check(&model, &batch, 0.6)
}

fn one_by_one(model: &impl Tapped, batch: &Batch, threshold: f64, together: &Exited) -> Result<()> {
    let single: Vec<Exited> =
        batch.split(1)?.iter().map(|sample| leave_early(model, sample, threshold)).collect::<Result<_>>()?;
    let layers: Vec<usize> = single.iter().flat_map(|out| out.layer.clone()).collect();
    assert_eq!(together.layer, layers);
    let logits: Vec<&Tensor> = single.iter().map(|out| &out.logits).collect();
    Ok(assert_close(&together.logits, &Tensor::cat(&logits, 0)?, OTHER_BATCH)?)
}

#[test]
fn a_permuted_batch_gives_permuted_answers() -> Result<()> {
    let (model, batch) = stack()?;
    let order: Vec<u32> = (0..ROWS as u32).map(|i| (i * 7 + 3) % ROWS as u32).collect();
    let rows = Tensor::new(order.as_slice(), &Cpu)?;
    let plain = leave_early(&model, &batch, 0.6)?;
    let permuted = leave_early(&model, &batch.inputs.index_select(&rows, 0)?.into(), 0.6)?;
    let want: Vec<usize> = order.iter().map(|&i| plain.layer[i as usize]).collect();
    assert_eq!(permuted.layer, want);
    assert_close(&permuted.logits, &plain.logits.index_select(&rows, 0)?, OTHER_BATCH)?;
    Ok(())
}

#[test]
fn an_answer_is_the_logits_of_the_exit_it_left_by() -> Result<()> {
    let (model, batch) = stack()?;
    let out = leave_early(&model, &batch, 0.6)?;
    let all = tap::layer_logits(&model, &batch, Pass::EVAL)?;
    for (row, &layer) in out.layer.iter().enumerate() {
        assert_close(&out.logits.get(row)?, &all[layer - 1].get(row)?, OTHER_BATCH)?;
    }
    Ok(())
}

#[test]
fn rows_that_left_are_not_computed_further() -> Result<()> {
    let (model, batch) = stack()?;
    let model = Counted::new(model);
    let layer = leave_early(&model, &batch, 0.6)?.layer;
    let reached: Vec<usize> = (1..=DEPTH).map(|l| layer.iter().filter(|left| **left >= l).count()).collect();
    assert_eq!(model.blocks(), reached);
    assert_eq!(model.exits(), reached);
    // The ratio is what its closed form says of the blocks that ran.
    let counts = histogram(&layer, DEPTH);
    assert_eq!(counts.iter().sum::<usize>(), ROWS);
    assert_eq!(layer_ratio(&counts), (DEPTH * ROWS) as f64 / reached.iter().sum::<usize>() as f64);

    let (model, _) = stack()?;
    let model = Counted::new(model);
    leave_early(&model, &batch, None)?;
    assert_eq!((model.blocks(), model.exits()), (vec![ROWS; DEPTH], vec![0, 0, 0, 0, ROWS]));
    leave_early(&model, &batch, 0.)?;
    assert_eq!((model.blocks()[1], model.exits()), (ROWS, vec![ROWS, 0, 0, 0, ROWS]));
    Ok(())
}

#[test]
fn one_sample_is_a_batch() -> Result<()> {
    let (model, batch) = stack()?;
    let one = Batch::from(batch.inputs.narrow(0, 7, 1)?);
    for threshold in [Some(0.), Some(0.6), None] {
        let out = leave_early(&model, &one, threshold)?;
        assert_eq!((out.logits.dims(), out.layer.len()), (&[1, 4][..], 1));
    }
    Ok(())
}

#[test]
fn a_padding_mask_stays_with_its_rows() -> Result<()> {
    let (rows, tokens) = (24, 6);
    let model = Padded { depth: 4, head: random(1, &[4, 3]) };
    // Row i has 1 + i % 6 tokens, so that a mask which slips by a row is another mask.
    let mask = (0..rows * tokens).map(|i| u8::from(i % tokens <= i / tokens % tokens)).collect();
    let batch = Batch {
        inputs: random(2, &[rows, tokens, 4]),
        mask: Some(Tensor::from_vec(mask, (rows, tokens), &Cpu)?),
        token_types: None,
    };
    let out = leave_early(&model, &batch, 0.9)?;
    assert!(histogram(&out.layer, 4).iter().all(|m| *m > 0), "{:?}", out.layer);
    one_by_one(&model, &batch, 0.9, &out)
}

#[test]
fn wrong_input_is_named() -> Result<()> {
    let (model, batch) = stack()?;
    for threshold in [f64::NAN, f64::INFINITY, -0.1, 1.1] {
        let error = leave_early(&model, &batch, threshold).unwrap_err();
        assert!(matches!(error, Error::Setting { field: "threshold", .. }), "{error}");
    }
    let none = Batch::from(Tensor::zeros((0, 8), candle_core::DType::F32, &Cpu)?);
    assert!(matches!(leave_early(&model, &none, 0.5), Err(Error::Empty)));
    let policy = Thresholds::none();
    let engine = Engine { policy: &policy, compaction: Compaction::Always };
    let error = engine.run_keyed(&model, &batch, &[1, 2]).unwrap_err();
    assert!(matches!(error, Error::Keys { keys: 2, samples: ROWS }), "{error}");
    Ok(())
}

#[test]
fn logits_that_are_not_finite_are_named_by_layer_and_row_of_the_batch() -> Result<()> {
    let sure = [9f32, 0.];
    for bad in [f32::NAN, f32::INFINITY] {
        // Row 0 is gone when row 2 turns bad after layer 2.
        let script = Tensor::new(&[[sure; 3], [[0., 0.]; 3], [[0., 0.], [bad, 0.], sure]], &Cpu)?;
        let error = leave_early(&Scripted { depth: 3 }, &script.into(), 0.9).unwrap_err();
        assert!(matches!(error, Error::NotFinite { layer: 2, row: 2 }), "{error}");
    }
    Ok(())
}

/// Two answers a sample, as a language model has one for each position.
struct PerToken(Scripted);

impl Tapped for PerToken {
    fn depth(&self) -> usize {
        self.0.depth()
    }

    fn embed(&self, batch: &Batch, pass: Pass) -> candle_core::Result<Hidden> {
        self.0.embed(batch, pass)
    }

    fn block(&self, layer: usize, hidden: &Hidden, pass: Pass) -> candle_core::Result<Hidden> {
        self.0.block(layer, hidden, pass)
    }

    fn feature(&self, hidden: &Hidden) -> candle_core::Result<Tensor> {
        Tensor::cat(&[&hidden.xs, &hidden.xs], 0)
    }

    fn exit(&self, layer: usize, feature: &Tensor, pass: Pass) -> candle_core::Result<Tensor> {
        self.0.exit(layer, feature, pass)
    }
}

#[test]
fn a_model_that_answers_tokens_is_refused() -> Result<()> {
    let script = Tensor::zeros((3, 2, 4), candle_core::DType::F32, &Cpu)?;
    for threshold in [Some(0.5), None] {
        let model = PerToken(Scripted { depth: 2 });
        let error = leave_early(&model, &script.clone().into(), threshold).unwrap_err();
        assert!(matches!(error, Error::Answers { answers: 6, samples: 3, .. }), "{error}");
    }
    Ok(())
}

#[test]
fn whether_rows_are_taken_out_changes_no_answer() -> Result<()> {
    let (model, batch) = stack()?;
    let policy = Thresholds::common(Signal::MaxProbability, 0.6, DEPTH);
    let costs = CostTable::default();
    let want = Engine { policy: &policy, compaction: Compaction::Always }.run(&model, &batch)?;
    for compaction in [Compaction::Never, Compaction::Profitable(&costs), Compaction::Late] {
        let got = Engine { policy: &policy, compaction }.run(&model, &batch)?;
        assert_eq!(got.layer, want.layer, "{compaction:?}");
        assert_close(&got.logits, &want.logits, OTHER_BATCH)?;
    }
    // Those that left are computed to the end, and answered once.
    let counted = Counted::new(model);
    Engine { policy: &policy, compaction: Compaction::Never }.run(&counted, &batch)?;
    assert_eq!(counted.blocks(), [ROWS; DEPTH]);
    // Those that leave a block later have been through one more.
    let rows = |compaction| {
        let counted = Counted::new(stack()?.0);
        Engine { policy: &policy, compaction }.run(&counted, &batch)?;
        Ok::<_, Error>(counted.blocks())
    };
    let (at_once, late) = (rows(Compaction::Always)?, rows(Compaction::Late)?);
    assert_eq!((late[0], &late[1..]), (ROWS, &at_once[..DEPTH - 1]));
    Ok(())
}

#[test]
fn a_fixed_depth_is_the_cut_model_and_costs_one_head() -> Result<()> {
    let (model, batch) = stack()?;
    let want = tap::layer_logits(&model, &batch, Pass::EVAL)?;
    let model = Counted::new(model);
    for (depth, want) in (1..=DEPTH).zip(&want) {
        let out = layerwise_exit::leave_early(&model, &batch, &FixedDepth(depth))?;
        assert_eq!((out.layer, out.logits.to_vec2::<f32>()?), (vec![depth; ROWS], want.to_vec2::<f32>()?));
    }
    assert_eq!(model.exits(), [ROWS; DEPTH]);
    for depth in [0, DEPTH + 1] {
        let error = FixedDepth(depth).validate(DEPTH).unwrap_err();
        assert!(matches!(error, Error::Layer { first: 1, last: DEPTH, .. }), "{error}");
    }
    Ok(())
}
