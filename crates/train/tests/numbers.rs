//! Models that predict a number, and samples in an order of their own.

mod common;

use candle_core::{Device::Cpu, Tensor};
use layerwise_models::{Batch, Pass, tap};
use layerwise_ops::init::ChaCha8Rng;
use layerwise_testkit::{TinyStack, assert_close, random};
use layerwise_train::{
    Error, Hooks, LayerWeights, Objective, Samples, TensorSamples, Terms, TrainConfig, loss, train,
};

use crate::common::{Done, config};

#[test]
fn the_loss_of_numbers_is_the_weighted_squared_error_of_all_exits() -> Done {
    let model = TinyStack::new(3, 6, 1, 1)?;
    let (batch, labels) = (Batch::from(random(2, &[9, 6])), random(3, &[9]));
    let weights = LayerWeights::Linear.weights(3)?;
    let got = loss(&model, &batch, &labels, &weights.clone().into(), 0.3, Pass::EVAL)?;
    let mut total = 0.;
    for (layer, logits) in tap::layer_logits(&model, &batch, Pass::EVAL)?.iter().enumerate() {
        let rows = logits.to_vec2::<f32>()?.into_iter().zip(labels.to_vec1::<f32>()?);
        let error = rows.map(|(row, label)| f64::from(row[0] - label).powi(2)).sum::<f64>() / 9.;
        assert!((got.per_layer[layer].ok_or("no loss")? - error).abs() < 1e-6);
        total += weights[layer] * error;
    }
    assert_close(&got.total, &Tensor::new(total as f32, &Cpu)?, 1e-6)?;
    Ok(())
}

/// Each exit pulls as its gradient does: `2 |z - y|` over the rows.
#[test]
fn a_balanced_loss_of_numbers_weighs_by_their_gradients() -> Done {
    let model = TinyStack::new(2, 6, 1, 1)?;
    let (batch, labels) = (Batch::from(random(2, &[9, 6])), (random(3, &[9]) * 0.1)?);
    let terms = Terms { balanced: true, ..vec![0.5, 0.5].into() };
    let got = loss(&model, &batch, &labels, &terms, 0., Pass::EVAL)?;
    let [inner, last] = [got.per_layer[0], got.per_layer[1]].map(|error| error.unwrap_or_default());
    // Norms of gradients go as roots of mean squares.
    let factor = (last.sqrt() / inner.sqrt()).min(1.);
    let want = 0.5 * last + 0.5 * factor * inner;
    assert_close(&got.total, &Tensor::new(want as f32, &Cpu)?, 1e-6)?;
    Ok(())
}

#[test]
fn every_exit_learns_a_number() -> Done {
    let model = TinyStack::new(3, 6, 1, 1)?;
    let inputs = random(2, &[64, 6]);
    let labels = (inputs.sum(1)? * 0.5)?;
    let data = TensorSamples { inputs: inputs.clone(), labels: labels.clone() };
    let objective = Objective::Aligned { weights: LayerWeights::Linear };
    let settings = TrainConfig { epochs: 30, objective, ..config() };
    train(&model, model.params(), &data, &settings, None, Hooks::default())?;
    for logits in tap::layer_logits(&model, &inputs.into(), Pass::EVAL)? {
        let error = (logits.squeeze(1)? - &labels)?.sqr()?.mean_all()?.to_scalar::<f32>()?;
        let variance = labels.sqr()?.mean_all()?.to_scalar::<f32>()?;
        assert!(error < 0.1 * variance, "{error} of {variance}");
    }
    Ok(())
}

#[test]
fn numbers_that_do_not_fit_are_refused() -> Done {
    let batch = Batch::from(random(2, &[3, 6]));
    let refused = |outputs: usize, labels: &Tensor, terms: Terms, says: &str| -> Done {
        let model = TinyStack::new(2, 6, outputs, 1)?;
        let error = loss(&model, &batch, labels, &terms, 0., Pass::EVAL).unwrap_err();
        assert!(error.to_string().contains(says), "{error}");
        Ok(())
    };
    let plain = || Terms::from(vec![0.5, 0.5]);
    let numbers = random(3, &[3]);
    refused(2, &numbers, plain(), "numbers for a head of 2 outputs")?;
    refused(1, &random(3, &[4]), plain(), "3")?;
    refused(1, &Tensor::new(&[0f32, f32::NAN, 1.], &Cpu)?, plain(), "NaN in row 1")?;
    let distilled = Terms { distillation: vec![0.5, 0.], ..plain() };
    refused(1, &numbers, distilled, "distillation")
}

/// Samples in an order that is no order.
struct Ordered(TensorSamples, Vec<usize>);

impl Samples for Ordered {
    fn len(&self) -> usize {
        self.0.len()
    }

    fn order(&self, _seed: u64, _epoch: usize, _size: usize) -> Vec<usize> {
        self.1.clone()
    }

    fn batch(&self, indices: &[usize], rng: &mut ChaCha8Rng) -> candle_core::Result<(Batch, Tensor)> {
        self.0.batch(indices, rng)
    }
}

#[test]
fn an_order_of_ones_own_is_kept_and_checked() -> Done {
    let data = TensorSamples { inputs: random(2, &[6, 6]), labels: random(3, &[6]) };
    let weights = |order: Vec<usize>| -> Result<Vec<f32>, Box<dyn std::error::Error>> {
        let model = TinyStack::new(2, 6, 1, 1)?;
        let settings = TrainConfig { epochs: 1, batch_size: 2, ..config() };
        train(&model, model.params(), &Ordered(data.clone(), order), &settings, None, Hooks::default())?;
        let head = model.params().get("head.weight").ok_or("no head")?;
        Ok(head.flatten_all()?.to_vec1()?)
    };
    assert_ne!(weights(vec![0, 1, 2, 3, 4, 5])?, weights(vec![5, 3, 1, 0, 2, 4])?);
    for order in [vec![0, 1, 2, 3, 4], vec![0, 1, 2, 3, 4, 4], vec![1, 2, 3, 4, 5, 6]] {
        let error = weights(order).unwrap_err();
        assert!(matches!(error.downcast_ref(), Some(Error::Setting { field: "order", .. })), "{error}");
    }
    Ok(())
}
