//! Logits are those of candle-transformers' ViT, and states those of its BERT, built from the same tensors and the same configuration.
//!
//! Their forward passes run on candle's fused operations, which are not ours.

mod common;

use std::collections::HashMap;

use candle_core::{DType, Device::Cpu, Tensor};
use candle_nn::{Activation as Theirs, VarBuilder};
use candle_transformers::models::{
    bert::{self, BertModel, HiddenAct},
    vit::{Config, Model},
};
use common::Result;
use layerwise_models::{Activation, BertConfig, Error, Params, Pass, VitConfig, tap};
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
            let named = VarBuilder::from_tensors(named(model.params()), DType::F32, &Cpu);
            let oracle = Model::new(&theirs, 5, named)?;
            let batch = common::pixels(3)?;
            let want = oracle.forward(&batch.inputs)?;
            // Both sum at most 48 terms in f32, 48 u = 3e-6 of their size at worst, through some ten sums in a row.
            assert_close(&tap::forward(&model, &batch, Pass::EVAL)?, &want, 1e-4)?;
        }
    }
    Ok(())
}

#[test]
fn states_are_candle_transformers() -> Result {
    for (hidden_act, ours) in [
        (HiddenAct::Gelu, Activation::Gelu),
        (HiddenAct::GeluApproximate, Activation::GeluTanh),
        (HiddenAct::Relu, Activation::Relu),
    ] {
        let tiny = common::tiny_bert();
        let theirs = bert::Config {
            vocab_size: tiny.vocab_size,
            hidden_size: tiny.hidden_size,
            num_hidden_layers: tiny.num_hidden_layers,
            num_attention_heads: tiny.num_attention_heads,
            intermediate_size: tiny.intermediate_size,
            hidden_dropout_prob: 0.,
            max_position_embeddings: tiny.max_position_embeddings,
            hidden_act,
            ..Default::default()
        };
        let config = BertConfig::try_from(&theirs)?;
        assert_eq!(
            BertConfig { attention_probs_dropout_prob: 0., num_labels: 5, ..config.clone() },
            BertConfig { hidden_act: ours, ..tiny }
        );
        let model = common::bert(config)?;
        let oracle =
            BertModel::load(VarBuilder::from_tensors(named(model.params()), DType::F32, &Cpu), &theirs)?;
        let batch = common::words()?;
        let types = batch.token_types.as_ref().ok_or("token types")?;
        let want = oracle.forward(&batch.inputs, types, batch.mask.as_ref())?;
        let states = tap::hidden_states(&model, &batch, Pass::EVAL)?;
        // As above.
        assert_close(&states.last().ok_or("a state")?.xs, &want, 1e-4)?;
    }
    let wrong = bert::Config { num_attention_heads: 5, ..Default::default() };
    let error = BertConfig::try_from(&wrong).unwrap_err();
    assert!(matches!(error, Error::HeadsDivideWidth { .. }), "{error}");
    Ok(())
}

fn named(params: &Params) -> HashMap<String, Tensor> {
    params.iter().map(|(name, var)| (name.to_owned(), var.as_detached_tensor())).collect()
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
