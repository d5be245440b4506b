//! What each objective minimises at which step: against PyTorch, finite differences and by hand.

mod common;

use std::fs;

use candle_core::{DType, Device::Cpu, Result as CandleResult, Tensor, Var};
use layerwise_models::{Batch, Heads, Hidden, Pass, Tapped, VitConfig};
use layerwise_testkit::{TinyStack, assert_close, check_gradients, random, tiny_vit, tiny_vit_config};
use layerwise_train::{
    Error, Hooks, LayerWeights, Loss, Moment, Objective, TensorSamples, Terms, TrainConfig, Unit, loss,
    take_gradients, train,
};

use crate::common::{Done, config, two_classes};

const LINEAR: LayerWeights = LayerWeights::Linear;
/// A few roundings of f64.
const F64: f64 = 1e-14;

/// A model whose features and logits after layer `l` are `script[:, l - 1]`, of `(rows, depth, classes)`.
struct Script(Tensor);

impl Tapped for Script {
    fn depth(&self) -> usize {
        self.0.dim(1).expect("three dimensions")
    }

    fn embed(&self, batch: &Batch, _pass: Pass) -> CandleResult<Hidden> {
        Ok(Hidden { xs: batch.inputs.clone(), mask: None })
    }

    fn block(&self, layer: usize, _hidden: &Hidden, _pass: Pass) -> CandleResult<Hidden> {
        Ok(Hidden { xs: self.0.narrow(1, layer - 1, 1)?.squeeze(1)?, mask: None })
    }

    fn feature(&self, hidden: &Hidden) -> CandleResult<Tensor> {
        Ok(hidden.xs.clone())
    }

    fn exit(&self, _layer: usize, feature: &Tensor, _pass: Pass) -> CandleResult<Tensor> {
        Ok(feature.clone())
    }
}

fn script() -> CandleResult<Tensor> {
    let rows: [[[f64; 3]; 3]; 2] = [
        [[1.5, -0.3, 0.2], [0.4, 2.0, -1.0], [0.0, 0.7, 3.1]],
        [[-2.0, 0.7, 0.1], [1.1, 0.2, -0.4], [2.5, -0.5, 0.3]],
    ];
    Tensor::new(&rows, &Cpu)
}

fn scripted(script: &Tensor, terms: &Terms) -> Done<Loss> {
    smoothed(script, terms, 0.)
}

fn smoothed(script: &Tensor, terms: &Terms, label_smoothing: f64) -> Done<Loss> {
    let labels = Tensor::new(&[2u32, 0], &Cpu)?;
    let model = Script(script.clone());
    Ok(loss(&model, &Batch::from(script.clone()), &labels, terms, label_smoothing, Pass::EVAL)?)
}

fn total(script: &Tensor, terms: &Terms) -> CandleResult<Tensor> {
    scripted(script, terms).map(|loss| loss.total).map_err(|error| candle_core::Error::Msg(error.to_string()))
}

fn turn(objective: &Objective, depth: usize) -> Result<Terms, Error> {
    objective.turn(depth, Moment { step: 0, steps: 1, micro_batch: 0 })
}

fn distilled() -> Objective {
    Objective::Distilled { weights: LINEAR, share: 0.25, temperature: 2. }
}

fn regularised() -> Objective {
    Objective::CosineRegularised { beta: 0.7, weights: LINEAR }
}

/// The numbers are PyTorch 2.15's, in f64 on [`script`]:
///
/// ```python
/// # z: (rows, layers, classes); y = torch.tensor([2, 0]); w = torch.tensor([1, 2, 3]) / 6
/// ce = [F.cross_entropy(z[:, l], y) for l in range(3)]
/// kl = [F.kl_div(F.log_softmax(z[:, l] / 2, -1), F.softmax(z[:, 2] / 2, -1), reduction="batchmean") for l in range(3)]
/// print(w[2] * ce[2] + sum(w[l] * (0.75 * ce[l] + 0.25 * 4 * kl[l]) for l in range(2)))
/// cos = [F.cosine_similarity(z[:, l], z[:, 2], dim=-1).mean() for l in range(3)]
/// print(ce[2] + 0.7 * sum(w[l] * (1 - cos[l]) for l in range(3)))
/// zz = z.clone().requires_grad_()
/// g = [torch.autograd.grad(F.cross_entropy(zz[:, l], y), zz)[0].norm() for l in range(3)]
/// print(sum(w[l] * min(1, g[2] / g[l]) * ce[l] for l in range(3)))
/// # and once more with label_smoothing=0.1 in each cross_entropy
/// ```
#[test]
fn losses_equal_pytorchs() -> Done {
    for (objective, hard, smooth) in [
        (distilled(), 1.0674928129711492, 1.1366594796378158),
        (regularised(), 0.4708700017016124, 0.6492033350349458),
        (Objective::Balanced { weights: LINEAR }, 0.23169228129007477, 0.24682906165248386),
    ] {
        let terms = turn(&objective, 3)?;
        assert_close(&scripted(&script()?, &terms)?.total, &Tensor::new(hard, &Cpu)?, F64)?;
        assert_close(&smoothed(&script()?, &terms, 0.1)?.total, &Tensor::new(smooth, &Cpu)?, F64)?;
    }
    Ok(())
}

#[test]
fn gradients_equal_finite_differences() -> Done {
    let (all, regularised) = (script()?, turn(&regularised(), 3)?);
    check_gradients(std::slice::from_ref(&all), 1e-8, |inputs| total(&inputs[0], &regularised))?;
    // The last exit teaches and does not learn from it: hold it still.
    let (inner, last) = (all.narrow(1, 0, 2)?.contiguous()?, all.narrow(1, 2, 1)?);
    let distilled = turn(&distilled(), 3)?;
    check_gradients(&[inner], 1e-8, |inputs| {
        let script = Tensor::cat(&[&inputs[0], &last], 1)?;
        total(&script, &distilled)
    })?;
    Ok(())
}

#[test]
fn the_last_exit_learns_nothing_from_those_it_teaches() -> Done {
    let gradient = |terms: &Terms| -> Done<Tensor> {
        let var = Var::from_tensor(&script()?)?;
        let gradients = scripted(&var, terms)?.total.backward()?;
        Ok(gradients.get(&var).ok_or("no gradient")?.narrow(1, 2, 1)?)
    };
    let terms = turn(&distilled(), 3)?;
    let alone = Terms::from(vec![0., 0., terms.cross_entropy[2]]);
    Ok(assert_close(&gradient(&terms)?, &gradient(&alone)?, 0.)?)
}

#[test]
fn no_exit_pulls_harder_for_its_weight_than_the_last() -> Done {
    let pulls = |terms: &Terms| -> Done<Vec<f64>> {
        let var = Var::from_tensor(&script()?)?;
        let gradients = scripted(&var, terms)?.total.backward()?;
        let gradient = gradients.get(&var).ok_or("no gradient")?.sqr()?.sum((0, 2))?.sqrt()?;
        Ok(gradient.to_vec1::<f64>()?)
    };
    let plain = pulls(&turn(&Objective::Aligned { weights: LINEAR }, 3)?)?;
    let balanced = pulls(&turn(&Objective::Balanced { weights: LINEAR }, 3)?)?;
    let weights = LINEAR.weights(3)?;
    let relative: Vec<f64> = balanced.iter().zip(&weights).map(|(pull, weight)| pull / weight).collect();
    assert!(relative.iter().all(|pull| (pull - relative[2]).abs() < 1e-12), "{relative:?}");
    assert!(plain[0] / weights[0] > 2. * relative[0] && plain[2] == balanced[2], "{plain:?} {balanced:?}");
    // An exit that pulls less is left as it is.
    let easier = Tensor::cat(&[&script()?.narrow(1, 2, 1)?, &script()?.narrow(1, 0, 1)?], 1)?;
    let [plain, balanced] = [false, true].map(|balanced| Terms { balanced, ..vec![0.5, 0.5].into() });
    Ok(assert_close(&scripted(&easier, &balanced)?.total, &scripted(&easier, &plain)?.total, F64)?)
}

#[test]
fn a_feature_of_zeros_has_no_direction_but_a_gradient() -> Done {
    let zeros = Var::from_tensor(&Tensor::zeros((2, 3, 3), DType::F32, &Cpu)?)?;
    let loss = scripted(&zeros, &turn(&regularised(), 3)?)?;
    assert_close(&loss.total, &Tensor::new(3f32.ln() + 0.7 * 0.5, &Cpu)?, 1e-6)?;
    let gradients = loss.total.backward()?;
    let gradient = gradients.get(&zeros).ok_or("no gradient")?.flatten_all()?.to_vec1::<f32>()?;
    assert!(gradient.iter().all(|x| x.is_finite()), "{gradient:?}");
    Ok(())
}

#[test]
fn only_exits_that_a_term_needs_are_computed() -> Done {
    let computed = |objective: &Objective| -> Done<Vec<bool>> {
        let loss = scripted(&script()?, &turn(objective, 3)?)?;
        Ok(loss.per_layer.iter().map(Option::is_some).collect())
    };
    assert_eq!(computed(&regularised())?, [false, false, true]);
    assert_eq!(computed(&Objective::Rotating { weights: LINEAR, period: 2 })?, [true, false, true]);
    // The teacher is needed even where it has no weight of its own.
    let weights = LayerWeights::List(vec![0., 1., 0.]);
    assert_eq!(computed(&Objective::Balanced { weights: weights.clone() })?, [false, true, true]);
    let taught = Objective::Distilled { weights, share: 0.5, temperature: 1. };
    assert_eq!(computed(&taught)?, [false, true, true]);
    Ok(())
}

#[test]
fn turns_alternate_by_their_unit_standard_first() -> Done {
    // Two layers: a standard turn weighs layer 1 with 0, an aligned one with 1/3. Four steps of three micro-batches.
    let turns = |objective: &Objective| -> Result<String, Error> {
        let (standard, aligned) = (Terms::from(vec![0., 1.]), LINEAR.weights(2)?.into());
        let mut turns = String::new();
        for step in 0..4 {
            for i in 0..3 {
                let terms = objective.turn(2, Moment { step, steps: 4, micro_batch: step * 3 + i })?;
                turns.push(if terms == standard { 's' } else { 'a' });
                assert!(terms == standard || terms == aligned);
            }
        }
        Ok(turns)
    };
    let alternating = |unit| Objective::Alternating { weights: LINEAR, unit };
    let aligned = Objective::Aligned { weights: LINEAR };
    let after = |share, then: &Objective| Objective::StandardFirst { share, then: Box::new(then.clone()) };
    assert_eq!(turns(&alternating(Unit::Step))?, "sssaaasssaaa");
    assert_eq!(turns(&alternating(Unit::MicroBatch))?, "sasasasasasa");
    assert_eq!(turns(&Objective::Standard)?, "ssssssssssss");
    assert_eq!(turns(&aligned)?, "aaaaaaaaaaaa");
    assert_eq!(turns(&after(0.5, &aligned))?, "ssssssaaaaaa");
    assert_eq!(turns(&after(0.3, &aligned))?, "sssaaaaaaaaa");
    assert_eq!(turns(&after(0., &aligned))?, "aaaaaaaaaaaa");
    assert_eq!(turns(&after(1., &aligned))?, "ssssssssssss");
    // What follows begins at its own step 0.
    assert_eq!(turns(&after(0.25, &alternating(Unit::Step)))?, "ssssssaaasss");
    assert_eq!(turns(&after(0.5, &after(0.5, &aligned)))?, "sssssssssaaa");
    assert_eq!(Objective::default(), alternating(Unit::Step));
    Ok(())
}

#[test]
fn rotating_exits_weigh_in_a_period_what_aligned_does() -> Done {
    let depth = 7;
    for period in [1, 2, 3, 6, 20] {
        let objective = Objective::Rotating { weights: LINEAR, period };
        let mut sum = vec![0.; depth];
        for step in 5..5 + period {
            let weights = objective.turn(depth, Moment { step, steps: 50, micro_batch: 0 })?.cross_entropy;
            assert!(weights[depth - 1] > 0.);
            let inner = weights[..depth - 1].iter().filter(|weight| **weight > 0.).count();
            assert!(inner <= (depth - 1).div_ceil(period), "{period}: {weights:?}");
            sum.iter_mut().zip(&weights).for_each(|(sum, weight)| *sum += weight);
        }
        for (sum, weight) in sum.iter().zip(LINEAR.weights(depth)?) {
            assert!((sum - weight * period as f64).abs() < F64 * period as f64, "{period}: {sum} {weight}");
        }
    }
    Ok(())
}

#[test]
fn distillation_takes_its_share_of_each_inner_weight() -> Done {
    let terms = turn(&distilled(), 4)?;
    let weights = LINEAR.weights(4)?;
    for (layer, weight) in weights.iter().enumerate() {
        let share = if layer == 3 { 0. } else { 0.25 };
        assert!((terms.distillation[layer] - share * weight).abs() < F64, "{terms:?}");
        assert!((terms.cross_entropy[layer] - (1. - share) * weight).abs() < F64, "{terms:?}");
    }
    assert_eq!(terms.temperature, 2.);
    Ok(())
}

#[test]
fn the_gradient_of_a_stack_is_that_of_its_terms() -> Done {
    // Distillation alone: at `T = 1` its gradient at an inner exit is `softmax(z_l) - softmax(z_L)`, which cross-entropy with the
    // teacher's answers as soft labels has, too. With two classes and one row, both are a multiple of one direction.
    let stack = TinyStack::new(2, 6, 2, 1)?;
    let batch = Batch::from(random(3, &[1, 6]));
    let labels = Tensor::new(&[0u32], &Cpu)?;
    let gradients = |terms: &Terms| -> Done<_> {
        let loss = loss(&stack, &batch, &labels, terms, 0., Pass::EVAL)?;
        Ok(take_gradients(layerwise_ops::backward(&loss.total)?, stack.params()))
    };
    let soft = Terms { distillation: vec![1., 0.], ..vec![0., 0.].into() };
    let [soft, hard] = [gradients(&soft)?, gradients(&vec![1., 0.].into())?];
    let logits = layerwise_models::tap::layer_logits(&stack, &batch, Pass::EVAL)?;
    let probability = |layer: usize| -> Done<f64> {
        Ok(f64::from(layerwise_ops::softmax(&logits[layer])?.to_vec2::<f32>()?[0][0]))
    };
    let (inner, last) = (probability(0)?, probability(1)?);
    let ratio = (inner - last) / (inner - 1.);
    for name in ["block.1.weight", "head.weight"] {
        let (soft, hard) = (soft.get(name).ok_or("soft")?, hard.get(name).ok_or("hard")?);
        assert_close(soft, &(hard * ratio)?, 1e-5)?;
    }
    Ok(())
}

#[test]
fn settings_out_of_range_are_named_before_anything_is_trained() -> Done {
    let after = |share, then| Objective::StandardFirst { share, then: Box::new(then) };
    let taught = |share, temperature| Objective::Distilled { weights: LINEAR, share, temperature };
    let rotating = |period| Objective::Rotating { weights: LINEAR, period };
    let regularised = |beta| Objective::CosineRegularised { beta, weights: LINEAR };
    let model = TinyStack::new(2, 6, 2, 1)?;
    for (objective, wrong) in [
        (regularised(-1.), "beta"),
        (regularised(f64::NAN), "beta"),
        (after(1.5, Objective::Standard), "share"),
        (after(0.5, rotating(0)), "period"),
        (taught(1.1, 1.), "share"),
        (taught(0.5, 0.), "temperature"),
        (taught(0.5, f64::INFINITY), "temperature"),
        (after(0.9, Objective::Balanced { weights: LayerWeights::List(vec![1.]) }), "weights"),
    ] {
        let config = TrainConfig { objective, ..config() };
        let error = train(&model, model.params(), &two_classes(8, 6, 1), &config, None, Hooks::default());
        let error = error.expect_err(wrong);
        assert!(matches!(error, Error::Setting { field, .. } if field == wrong), "{wrong}: {error}");
    }
    Ok(())
}

#[test]
fn every_objective_trains_and_reads_back() -> Done {
    let balanced = Objective::Balanced { weights: LayerWeights::HalfLast };
    for objective in [
        distilled(),
        regularised(),
        balanced.clone(),
        Objective::Rotating { weights: LayerWeights::HalfLast, period: 2 },
        Objective::StandardFirst { share: 0.5, then: Box::new(balanced) },
    ] {
        let text = serde_json::to_string(&objective)?;
        assert_eq!(serde_json::from_str::<Objective>(&text)?, objective, "{text}");
        let model = TinyStack::new(3, 6, 2, 1)?;
        let data = two_classes(64, 6, 1);
        let config = TrainConfig { objective, epochs: 30, ..config() };
        train(&model, model.params(), &data, &config, None, Hooks::default())?;
        let scores =
            layerwise_exit::evaluate(&model, [Ok((data.inputs.clone().into(), data.labels.clone()))])?;
        let aligns = !matches!(config.objective, Objective::CosineRegularised { .. });
        assert!(scores.accuracy[2] > 0.9 && (!aligns || scores.accuracy[0] > 0.9), "{text}: {scores:?}");
    }
    Ok(())
}

#[test]
fn a_step_with_nothing_to_learn_is_named_before_the_first() -> Done {
    let first = |then: Objective| Objective::StandardFirst { share: 0.5, then: Box::new(then) };
    let inner = || LayerWeights::List(vec![1., 1., 0.]);
    let run = |objective: Objective| {
        let (model, folder) = (TinyStack::new(3, 6, 2, 1)?, tempfile::tempdir()?);
        let config = TrainConfig { objective, epochs: 4, ..config() };
        let result = train(
            &model,
            model.params(),
            &two_classes(8, 6, 1),
            &config,
            Some(folder.path()),
            Hooks::default(),
        );
        Ok::<_, Box<dyn std::error::Error>>((result, fs::read_dir(folder.path())?.count()))
    };
    // Layers 1 and 2 by turns, and in the third of three steps neither.
    let nothing = Objective::Rotating { weights: inner(), period: 3 };
    for objective in [nothing.clone(), Objective::StandardFirst { share: 0.25, then: Box::new(nothing) }] {
        let (result, files) = run(objective)?;
        assert!(matches!(result, Err(Error::Setting { field: "cross_entropy", .. })), "{result:?}");
        assert_eq!(files, 0);
    }
    // Distillation alone is something to learn.
    let soft = Objective::Distilled { weights: inner(), share: 1., temperature: 2. };
    assert_eq!(run(first(soft))?.0?.steps, 4);
    Ok(())
}

/// A model whose every inner exit has a head of its own: what is never weighed has no gradient.
#[test]
fn the_audit_looks_at_every_exit_that_is_ever_weighed() -> Done {
    let images = TensorSamples {
        inputs: random(5, &[6, 3, 8, 8]),
        labels: Tensor::new(&[0u32, 1, 2, 0, 1, 2], &Cpu)?,
    };
    let run = |heads, objective: &Objective| {
        let model = tiny_vit(VitConfig { heads, ..tiny_vit_config() }, 1);
        let config = TrainConfig { objective: objective.clone(), epochs: 1, batch_size: 3, ..config() };
        train(&model, model.params(), &images, &config, None, Hooks::default()).map(|report| report.steps)
    };
    let rotating = Objective::Rotating { weights: LINEAR, period: 2 };
    let first = |then: &Objective| Objective::StandardFirst { share: 0.5, then: Box::new(then.clone()) };
    for objective in
        [distilled(), Objective::Balanced { weights: LINEAR }, rotating.clone(), first(&rotating)]
    {
        assert_eq!(run(Heads::PerLayer, &objective)?, 2, "{objective:?}");
    }
    for objective in [regularised(), first(&Objective::Standard)] {
        let error = run(Heads::PerLayer, &objective).unwrap_err();
        assert!(
            matches!(&error, Error::Audit { missing, .. } if missing[0].starts_with("exits.1")),
            "{error}"
        );
    }
    // The last exit, where standard turns alone weigh it.
    let depth = tiny_vit_config().num_hidden_layers;
    let inner = LayerWeights::List((1..=depth).map(|layer| f64::from(u8::from(layer < depth))).collect());
    let aligned = Objective::Aligned { weights: inner.clone() };
    assert!(matches!(run(Heads::Shared, &aligned).unwrap_err(), Error::Audit { .. }));
    assert_eq!(run(Heads::Shared, &first(&aligned))?, 2);
    assert_eq!(run(Heads::Shared, &Objective::Alternating { weights: inner, unit: Unit::Step })?, 2);
    Ok(())
}
