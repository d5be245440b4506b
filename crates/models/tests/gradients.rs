//! Every parameter learns, whatever the exits look like: candle's failure mode is a loss that falls while most of the
//! network stands still.

mod common;

use candle_core::{DType, Device::Cpu, Result, Tensor};
use common::{pixels, shake, tiny, tiny_mlp};
use layerwise_models::{
    Batch, BertConfig, ExitNorm, Gpt2Config, Heads, MlpConfig, Params, Pass, Pooling, Tapped, Vit, VitConfig,
    tap,
};
use layerwise_ops::{CrossEntropy, cross_entropy, init};

#[test]
fn every_vit_parameter_learns_under_every_kind_of_exit() -> common::Result {
    for exit_norm in [ExitNorm::Shared, ExitNorm::Raw, ExitNorm::PerLayer] {
        for heads in [Heads::Shared, Heads::PerLayer] {
            let model = common::vit(VitConfig { exit_norm, heads, ..tiny() })?;
            all_learn(&model, model.params(), &pixels(4)?, &format!("{exit_norm:?} {heads:?}"))?;
        }
    }
    let distilled = common::vit(VitConfig { distillation_token: true, ..tiny() })?;
    all_learn(&distilled, distilled.params(), &pixels(4)?, "distillation token")?;
    Ok(())
}

#[test]
fn every_bert_parameter_learns() -> common::Result {
    for (heads, num_labels, pooling) in [
        (Heads::Shared, 5, Pooling::Cls),
        (Heads::PerLayer, 5, Pooling::Cls),
        (Heads::Shared, 3, Pooling::Cls),
        (Heads::Shared, 5, Pooling::Mean),
    ] {
        let model = common::bert(BertConfig { heads, num_labels, pooling, ..common::tiny_bert() })?;
        // As many tokens as there are positions and segments, so that each row of a table has its turn somewhere.
        all_learn(&model, model.params(), &common::words()?, &format!("{heads:?} {num_labels} {pooling:?}"))?;
    }
    Ok(())
}

#[test]
fn every_gpt2_parameter_learns() -> common::Result {
    // As many tokens as there are positions; words that no text has learn as the head's.
    let batch = Tensor::from_iter((0..18u32).map(|i| i * 5 % 31), &Cpu)?.reshape((2, 9))?.into();
    for exit_norm in [ExitNorm::Shared, ExitNorm::Raw, ExitNorm::PerLayer] {
        let model = common::gpt2(Gpt2Config { exit_norm, ..common::tiny_gpt2() })?;
        all_learn(&model, model.params(), &batch, &format!("{exit_norm:?}"))?;
    }
    Ok(())
}

/// Between pooler and classifier, of its own probability, only while it trains.
#[test]
fn an_exit_drops_out_while_it_trains() -> common::Result {
    let config = BertConfig { classifier_dropout: Some(0.5), ..common::tiny_bert() };
    let model = common::bert(config)?;
    let features = tap::features(&model, &common::words()?, Pass::EVAL)?;
    let exit = |pass| model.exit(2, &features[2], pass)?.to_vec2::<f32>();
    assert_eq!(exit(Pass::EVAL)?, exit(Pass::EVAL)?);
    assert_eq!(exit(Pass::train(1))?, exit(Pass::train(1))?);
    assert!(exit(Pass::train(1))? != exit(Pass::train(2))? && exit(Pass::train(1))? != exit(Pass::EVAL)?);
    let without = common::bert(BertConfig { classifier_dropout: Some(0.), ..common::tiny_bert() })?;
    let logits = |pass| without.exit(2, &features[2], pass)?.to_vec2::<f32>();
    assert_eq!(logits(Pass::train(1))?, logits(Pass::EVAL)?);
    Ok(())
}

#[test]
fn every_mlp_parameter_learns() -> common::Result {
    for residual in [true, false] {
        for heads in [Heads::Shared, Heads::PerLayer] {
            let model = common::mlp(MlpConfig { residual, heads, ..tiny_mlp() })?;
            let xs = init::normal(&mut init::rng(2), (4, 12), 1., &Cpu)?;
            all_learn(&model, model.params(), &xs.into(), &format!("residual {residual} {heads:?}"))?;
        }
    }
    Ok(())
}

#[test]
fn a_frozen_model_has_no_gradients_and_follows_updates() -> common::Result {
    let model = Vit::new(tiny(), &mut init::rng(1), &Cpu)?;
    let frozen = model.frozen();
    shake(model.params())?;
    let logits = tap::forward(&frozen, &pixels(2)?, Pass::EVAL)?;
    assert!(!logits.track_op());
    let want = tap::forward(&model, &pixels(2)?, Pass::EVAL)?;
    assert_eq!(logits.to_vec2::<f32>()?, want.to_vec2::<f32>()?);
    Ok(())
}

#[test]
fn a_clone_shares_its_weights_and_a_copy_does_not() -> common::Result {
    let (vit, mlp) = (common::vit(tiny())?, common::mlp(tiny_mlp())?);
    let (clone, copy, mlp_copy) = (vit.clone(), vit.copied()?, mlp.copied()?);
    let before = (common::values(vit.params())?, common::values(mlp.params())?);
    assert_eq!(common::values(copy.params())?, before.0);
    shake(vit.params())?;
    shake(mlp.params())?;
    assert_eq!(common::values(clone.params())?, common::values(vit.params())?);
    assert_eq!((common::values(copy.params())?, common::values(mlp_copy.params())?), before);
    // The copy's parameters are those that its passes read.
    let logits = tap::forward(&copy, &pixels(4)?, Pass::EVAL)?.to_vec2::<f32>()?;
    shake(copy.params())?;
    assert_ne!(tap::forward(&copy, &pixels(4)?, Pass::EVAL)?.to_vec2::<f32>()?, logits);
    all_learn(&copy, copy.params(), &pixels(4)?, "copy")?;
    Ok(())
}

fn all_learn(model: &impl Tapped, params: &Params, batch: &Batch, case: &str) -> Result<()> {
    let mut loss = Tensor::zeros((), DType::F32, &Cpu)?;
    for logits in tap::layer_logits(model, batch, Pass::EVAL)? {
        let targets = Tensor::from_iter((0..logits.dim(0)? as u32).map(|i| i % 3), &Cpu)?;
        loss = (loss + cross_entropy(&logits, &targets, None, &CrossEntropy::default())?)?;
    }
    let grads = loss.backward()?;
    for (name, var) in params.iter() {
        let Some(grad) = grads.get(var) else { panic!("{case}: no gradient for {name}") };
        let norm = grad.sqr()?.sum_all()?.to_scalar::<f32>()?.sqrt();
        // A key's bias moves all scores of a query alike, which softmax undoes: its gradient is rounding only.
        let idle = name.ends_with("key.bias");
        assert!(norm.is_finite() && (idle || norm > 1e-6), "{case}: gradient of {name} has norm {norm}");
    }
    Ok(())
}
