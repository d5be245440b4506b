//! Logits are those of candle-transformers' ViT, built from the same tensors and the same configuration.
//!
//! Its forward pass runs on candle's fused operations, which are not ours.

mod common;

use candle_core::{DType, Device::Cpu};
use candle_nn::{Activation as Theirs, VarBuilder};
use candle_transformers::models::vit::{Config, Model};
use common::Result;
use layerwise_models::{Activation, Error, Pass, VitConfig, tap};
use layerwise_testkit::assert_close;

#[test]
fn logits_are_candle_transformers() -> Result {
    for (hidden_act, ours) in [
        (Theirs::Gelu, Activation::Gelu),
        (Theirs::NewGelu, Activation::GeluTanh),
        (Theirs::GeluPytorchTanh, Activation::GeluTanh),
        (Theirs::Relu, Activation::Relu),
        (Theirs::Silu, Activation::Silu),
        (Theirs::Swish, Activation::Silu),
    ] {
        for qkv_bias in [true, false] {
            let theirs = Config { hidden_act, qkv_bias, ..tiny() };
            let config = VitConfig { num_labels: 5, ..VitConfig::try_from(&theirs)? };
            assert_eq!(config.hidden_act, ours);
            let model = common::vit(config)?;
            let named = model
                .params()
                .iter()
                .map(|(name, var)| (name.to_owned(), var.as_detached_tensor()))
                .collect();
            let oracle = Model::new(&theirs, 5, VarBuilder::from_tensors(named, DType::F32, &Cpu))?;
            let batch = common::pixels(3)?;
            let want = oracle.forward(&batch.inputs)?;
            // Both sum at most 48 terms in f32, 48 u = 3e-6 of their size at worst, through some ten sums in a row.
            assert_close(&tap::forward(&model, &batch, Pass::EVAL)?, &want, 1e-4)?;
        }
    }
    Ok(())
}

#[test]
fn configurations_that_have_no_counterpart() {
    let of = |config: &Config| VitConfig::try_from(config).unwrap_err();
    let error = of(&Config { hidden_act: Theirs::Mish, ..tiny() });
    assert!(matches!(&error, Error::Activation { name } if name == "Mish"), "{error}");
    assert!(matches!(of(&Config { num_attention_heads: 5, ..tiny() }), Error::HeadsDivideWidth { .. }));
}

/// As [`common::tiny`], but for the epsilon.
fn tiny() -> Config {
    Config {
        hidden_size: 12,
        num_hidden_layers: 3,
        num_attention_heads: 3,
        intermediate_size: 20,
        hidden_act: Theirs::Gelu,
        layer_norm_eps: 1e-5,
        image_size: 8,
        patch_size: 4,
        num_channels: 3,
        qkv_bias: true,
    }
}
