//! Layer weights, the loss over all exits, and its gradient.

mod common;

use candle_core::{Device::Cpu, Tensor};
use layerwise_models::{Batch, Params, Pass, Tapped, tap};
use layerwise_testkit::{Counted, Scripted, TinyStack, assert_close, random, tiny_vit, tiny_vit_config};
use layerwise_train::{
    Error, Hooks, LayerWeights, Moment, Objective, Samples, audit, loss, take_gradients, train,
};

use crate::common::{Done, config, two_classes, values};

/// The sum of a few f32 terms of about 1.
const SUM: f64 = 1e-6;

#[test]
fn weights_are_the_formulas_and_sum_to_one() -> Done {
    for depth in [1, 2, 3, 12, 24] {
        let layers = || (1..=depth).map(|l| l as f64);
        let roots: f64 = layers().map(f64::sqrt).sum();
        let sum = (depth * (depth + 1)) as f64 / 2.;
        let half_last = layers().map(|l| (l / sum + f64::from(u8::from(l == depth as f64))) / 2.);
        let cases: [(LayerWeights, Vec<f64>); 5] = [
            (LayerWeights::HalfLast, half_last.collect()),
            (LayerWeights::Linear, layers().map(|l| 2. * l / (depth * (depth + 1)) as f64).collect()),
            (LayerWeights::Uniform, layers().map(|_| 1. / depth as f64).collect()),
            (LayerWeights::Sqrt, layers().map(|l| l.sqrt() / roots).collect()),
            (LayerWeights::List(vec![0.3; depth]), layers().map(|_| 1. / depth as f64).collect()),
        ];
        for (kind, want) in cases {
            let got = kind.weights(depth)?;
            // A few roundings of f64.
            assert!((got.iter().sum::<f64>() - 1.).abs() < 1e-14, "{kind:?}");
            assert!(got.iter().zip(&want).all(|(a, b)| (a - b).abs() < 1e-15), "{kind:?}: {got:?}");
        }
    }
    assert_eq!(LayerWeights::List(vec![0., 3., 1.]).weights(3)?, [0., 0.75, 0.25]);
    Ok(())
}

#[test]
fn lists_that_are_no_weights_are_refused() {
    for list in [vec![1., 1.], vec![0.; 3], vec![1., -1., 1.], vec![1., f64::NAN, 1.], vec![f64::INFINITY; 3]]
    {
        let error = LayerWeights::List(list).weights(3).unwrap_err();
        assert!(matches!(error, Error::Setting { field: "weights", .. }), "{error}");
    }
}

#[test]
fn one_layer_is_plain_cross_entropy() -> Done {
    let model = TinyStack::new(1, 6, 4, 1)?;
    let (batch, labels) = (Batch::from(random(2, &[9, 6])), labels(9, 4)?);
    let weights = LayerWeights::Linear.weights(1)?;
    let got = loss(&model, &batch, &labels, &weights.clone().into(), 0., Pass::EVAL)?;
    let want = candle_nn::loss::cross_entropy(&tap::forward(&model, &batch, Pass::EVAL)?, &labels)?;
    Ok(assert_close(&got.total, &want, SUM)?)
}

#[test]
fn equal_states_at_all_layers_are_plain_cross_entropy() -> Done {
    let logits = random(1, &[7, 1, 3]);
    let labels = labels(7, 3)?;
    let want = candle_nn::loss::cross_entropy(&logits.squeeze(1)?, &labels)?;
    let script = Batch::from(logits.repeat((1, 6, 1))?);
    for kind in [LayerWeights::Linear, LayerWeights::Uniform, LayerWeights::Sqrt] {
        let got = loss(&Scripted { depth: 6 }, &script, &labels, &kind.weights(6)?.into(), 0., Pass::EVAL)?;
        assert_close(&got.total, &want, SUM)?;
    }
    Ok(())
}

/// Layer 1 knows nothing: `ln 2` for both samples. Layer 2 gives odds of 3 to 1: `ln 4/3` where it is right and `ln 4` where
/// it is wrong.
#[test]
fn two_layers_by_hand() -> Done {
    let odds = [3f32.ln(), 0.];
    let script = Batch::from(Tensor::new(&[[[0., 0.], odds], [[0., 0.], odds]], &Cpu)?);
    let labels = Tensor::new(&[0u32, 1], &Cpu)?;
    let weights = LayerWeights::Linear.weights(2)?;
    let got = loss(&Scripted { depth: 2 }, &script, &labels, &weights.clone().into(), 0., Pass::EVAL)?;
    let (first, second) = (2f64.ln(), ((4f64 / 3.).ln() + 4f64.ln()) / 2.);
    assert_close(&got.total, &Tensor::new(first / 3. + second * 2. / 3., &Cpu)?, SUM)?;
    let got = got.per_layer.into_iter().collect::<Option<Vec<f64>>>().expect("a value for each layer");
    Ok(assert_close(&Tensor::new(got, &Cpu)?, &Tensor::new(&[first, second], &Cpu)?, SUM)?)
}

#[test]
fn a_boxed_model_trains_like_itself() -> Done {
    let stack = TinyStack::new(3, 6, 2, 1)?;
    let params = stack.params().clone(); // shares the variables
    let boxed: Box<dyn Tapped> = Box::new(stack.clone());
    let (data, weights) = (two_classes(8, 6, 1), LayerWeights::Linear.weights(3)?);
    let batch = Batch::from(data.inputs.clone());
    audit(&*boxed, &params, &batch, &data.labels, &weights, &[])?;
    let got = loss(&*boxed, &batch, &data.labels, &weights.clone().into(), 0., Pass::EVAL)?;
    let want = loss(&stack, &batch, &data.labels, &weights.clone().into(), 0., Pass::EVAL)?;
    assert_close(&got.total, &want.total, 0.)?;
    let samples: &dyn Samples = &data;
    train(&*boxed, &params, samples, &config(), None, Hooks::default())?;
    let plain = TinyStack::new(3, 6, 2, 1)?;
    train(&plain, plain.params(), &data, &config(), None, Hooks::default())?;
    assert!(values(&params) == values(plain.params()));
    Ok(())
}

#[test]
fn exits_without_weight_are_not_computed() -> Done {
    let model = Counted::new(TinyStack::new(4, 6, 3, 1)?);
    let batch = Batch::from(random(2, &[5, 6]));
    let got = loss(&model, &batch, &labels(5, 3)?, &vec![0., 0.5, 0., 0.5].into(), 0., Pass::EVAL)?;
    assert_eq!((model.blocks(), model.exits()), (vec![5; 4], vec![0, 5, 0, 5]));
    let computed: Vec<bool> = got.per_layer.iter().map(Option::is_some).collect();
    assert_eq!(computed, [false, true, false, true]);
    let standard = Objective::Standard.turn(4, Moment::default())?;
    loss(&model, &batch, &labels(5, 3)?, &standard, 0., Pass::EVAL)?;
    assert_eq!(model.exits(), [0, 5, 0, 10]);
    Ok(())
}

#[test]
fn the_gradient_is_the_weighted_sum_of_each_exits() -> Done {
    let stack = TinyStack::new(4, 6, 3, 1)?;
    weighted_sum(&stack, stack.params(), random(2, &[5, 6]))?;
    let vit = tiny_vit(tiny_vit_config(), 1);
    weighted_sum(&vit, vit.params(), random(2, &[5, 3, 8, 8]))
}

fn weighted_sum(model: &impl Tapped, params: &Params, inputs: Tensor) -> Done {
    let (batch, labels) = (Batch::from(inputs), labels(5, 3)?);
    let weights = LayerWeights::Linear.weights(model.depth())?;
    let aligned = loss(model, &batch, &labels, &weights.clone().into(), 0., Pass::EVAL)?.total;
    let got = take_gradients(aligned.backward()?, params);
    for (name, var) in params.iter() {
        let mut want = var.zeros_like()?;
        for (logits, weight) in tap::layer_logits(model, &batch, Pass::EVAL)?.iter().zip(&weights) {
            let single = candle_nn::loss::cross_entropy(logits, &labels)?.backward()?;
            if let Some(gradient) = single.get(var) {
                want = (want + (gradient * *weight)?)?;
            }
        }
        // Both sum the same f32 products, in another order; relative to gradients of up to 1.
        assert_close(&got[name], &want, 1e-5)?;
    }
    Ok(())
}

/// Equivalent Python:
///
/// ```python
/// x = torch.tensor([[1.5, -0.3, 0.2, 2.1], [0.0, 4.0, -1.0, 0.5], [-2.0, 0.7, 0.7, 0.1]], dtype=torch.float64)
/// print(F.cross_entropy(x, torch.tensor([3, 0, 2]), label_smoothing=0.1))
/// ```
#[test]
fn label_smoothing_equals_pytorch() -> Done {
    let script =
        Tensor::new(&[[[1.5f32, -0.3, 0.2, 2.1]], [[0.0, 4.0, -1.0, 0.5]], [[-2.0, 0.7, 0.7, 0.1]]], &Cpu)?;
    let labels = Tensor::new(&[3u32, 0, 2], &Cpu)?;
    let got = loss(&Scripted { depth: 1 }, &script.into(), &labels, &vec![1.].into(), 0.1, Pass::EVAL)?;
    Ok(assert_close(&got.total, &Tensor::new(1.9048811040029314, &Cpu)?, SUM)?)
}

#[test]
fn wrong_labels_and_weights_are_named() -> Done {
    let script = Batch::from(Tensor::zeros((3, 2, 4), candle_core::DType::F32, &Cpu)?);
    let run = |labels: &[u32], weights: &[f64]| {
        let labels = Tensor::new(labels, &Cpu).unwrap();
        loss(&Scripted { depth: 2 }, &script, &labels, &weights.to_vec().into(), 0., Pass::EVAL).unwrap_err()
    };
    let error = run(&[0, 4, 1], &[0.5, 0.5]);
    assert!(matches!(error, Error::Label { row: 1, label: 4, classes: 4 }), "{error}");
    let error = run(&[0, 1], &[0.5, 0.5]);
    assert!(matches!(error, Error::Rows { rows: 3, labels: 2 }), "{error}");
    for weights in [&[1.][..], &[0., 0.], &[1., 1., 1.]] {
        let error = run(&[0, 1, 2], weights);
        assert!(matches!(error, Error::Setting { field: "cross_entropy", .. }), "{error}");
    }
    Ok(())
}

fn labels(n: usize, classes: u32) -> candle_core::Result<Tensor> {
    Tensor::from_vec((0..n as u32).map(|i| i * 5 % classes).collect(), n, &Cpu)
}
