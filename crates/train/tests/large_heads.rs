//! With a large head the loss never has an exit's logits, and is the same.

mod common;

use candle_core::{Device::Cpu, Tensor};
use layerwise_models::{
    Batch, ExitNorm, Gpt2, Gpt2Config, Heads, Params, Pass, Tapped, Vit, VitConfig, tap::layer_logits,
};
use layerwise_ops::{CrossEntropy, cross_entropy, init};
use layerwise_testkit::{assert_close, random, tiny_vit_config};
use layerwise_train::{Error, LayerWeights, loss};

use crate::common::Done;

#[test]
fn a_large_table_of_words() -> Done {
    let batch =
        Batch::from(Tensor::from_iter((0..18u32).map(|i| i * 2_111 % 60_000), &Cpu)?.reshape((2, 9))?);
    let labels = Tensor::from_iter((0..18u32).map(|i| i * 1_999 % 60_000), &Cpu)?;
    for exit_norm in [ExitNorm::Shared, ExitNorm::PerLayer, ExitNorm::Raw] {
        let config = Gpt2Config {
            vocab_size: 60_000,
            n_positions: 9,
            n_embd: 6,
            n_layer: 3,
            n_head: 2,
            initializer_range: 0.3,
            exit_norm,
            ..Default::default()
        };
        let gpt2 = Gpt2::new(config, &mut init::rng(1), &Cpu)?;
        same_as_plain(&gpt2, gpt2.params(), &batch, &labels)?;
        let wrong = Tensor::from_iter((0..18u32).map(|i| if i == 7 { 60_000u32 } else { 1 }), &Cpu)?;
        let error = loss(&gpt2, &batch, &wrong, &vec![1.; 3].into(), 0., Pass::EVAL).unwrap_err();
        assert!(matches!(error, Error::Label { row: 7, label: 60_000, classes: 60_000 }), "{error}");
        let short = Tensor::new(&[1u32, 2], &Cpu)?;
        let error = loss(&gpt2, &batch, &short, &vec![1.; 3].into(), 0., Pass::EVAL).unwrap_err();
        assert!(matches!(error, Error::Rows { rows: 18, labels: 2 }), "{error}");
    }
    Ok(())
}

#[test]
fn a_large_head_for_each_layer() -> Done {
    let (batch, labels) = (Batch::from(random(1, &[4, 3, 8, 8])), Tensor::new(&[5u32, 299_999, 0, 7], &Cpu)?);
    for heads in [Heads::Shared, Heads::PerLayer] {
        let config = VitConfig { num_labels: 300_000, heads, ..tiny_vit_config() };
        let vit = Vit::new(config, &mut init::rng(2), &Cpu)?;
        same_as_plain(&vit, vit.params(), &batch, &labels)?;
    }
    Ok(())
}

fn same_as_plain(model: &impl Tapped, params: &Params, batch: &Batch, labels: &Tensor) -> Done {
    let depth = model.depth();
    let last = [vec![0.; depth - 1], vec![1.]].concat();
    let linear = LayerWeights::Linear.weights(depth)?;
    for (weights, label_smoothing) in [(linear.clone(), 0.), (linear, 0.1), (last, 0.1)] {
        let config = CrossEntropy { label_smoothing, ..Default::default() };
        let mut want = Tensor::zeros((), candle_core::DType::F32, &Cpu)?;
        let mut each = Vec::new();
        for (logits, &weight) in layer_logits(model, batch, Pass::EVAL)?.iter().zip(&weights) {
            let error = cross_entropy(logits, labels, None, &config)?;
            each.push((weight != 0.).then_some(f64::from(error.to_scalar::<f32>()?)));
            if weight != 0. {
                want = (want + (error * weight)?)?;
            }
        }
        let got = loss(model, batch, labels, &weights.into(), label_smoothing, Pass::EVAL)?;
        assert_close(&got.total, &want, 1e-5)?;
        for (got, want) in got.per_layer.iter().zip(&each) {
            assert!(got.is_some() == want.is_some());
            let (got, want) = (got.unwrap_or_default(), want.unwrap_or_default());
            assert!((got - want).abs() <= 1e-5 * want, "{got} and {want}");
        }
        let (got, want) = (layerwise_ops::backward(&got.total)?, want.backward()?);
        for (name, var) in params.iter() {
            match (got.get(var), want.get(var)) {
                // Sums of as many terms in another order.
                (Some(got), Some(want)) => {
                    assert_close(got, want, 1e-4).map_err(|error| format!("{name}: {error}"))?;
                }
                (got, want) => assert!(got.is_none() && want.is_none(), "{name}"),
            }
        }
    }
    Ok(())
}
