//! Every parameter learns, whatever the exits look like: candle's failure mode is a loss that falls while most of the
//! network stands still.

use candle_core::{DType, Device, Result, Tensor};
use layerwise_models::{Batch, ExitNorm, Heads, Mlp, MlpConfig, Params, Pass, Tapped, Vit, VitConfig, tap};
use layerwise_ops::{CrossEntropy, cross_entropy, init};

#[test]
fn every_vit_parameter_learns_under_every_kind_of_exit() -> Result<()> {
    for exit_norm in [ExitNorm::Shared, ExitNorm::Raw, ExitNorm::PerLayer] {
        for heads in [Heads::Shared, Heads::PerLayer] {
            let config = VitConfig { exit_norm, heads, ..tiny() };
            let model = Vit::new(config, &mut init::rng(1), &Device::Cpu).unwrap();
            shake(model.params())?;
            let pixels = init::normal(&mut init::rng(2), (4, 3, 8, 8), 1., &Device::Cpu)?;
            all_learn(&model, model.params(), pixels, &format!("{exit_norm:?} {heads:?}"))?;
        }
    }
    Ok(())
}

#[test]
fn every_mlp_parameter_learns() -> Result<()> {
    for residual in [true, false] {
        for heads in [Heads::Shared, Heads::PerLayer] {
            let config = MlpConfig {
                inputs: 12,
                width: 16,
                layers: 3,
                classes: 3,
                residual,
                heads,
                ..MlpConfig::default()
            };
            let model = Mlp::new(config, &mut init::rng(1), &Device::Cpu).unwrap();
            let xs = init::normal(&mut init::rng(2), (4, 12), 1., &Device::Cpu)?;
            all_learn(&model, model.params(), xs, &format!("residual {residual} {heads:?}"))?;
        }
    }
    Ok(())
}

#[test]
fn a_frozen_model_has_no_gradients_and_follows_updates() -> Result<()> {
    let model = Vit::new(tiny(), &mut init::rng(1), &Device::Cpu).unwrap();
    let frozen = model.frozen();
    let batch = Batch::from(init::normal(&mut init::rng(2), (2, 3, 8, 8), 1., &Device::Cpu)?);
    shake(model.params())?;
    let logits = tap::forward(&frozen, &batch, Pass::EVAL)?;
    assert!(!logits.track_op());
    let want = tap::forward(&model, &batch, Pass::EVAL)?;
    assert_eq!(logits.to_vec2::<f32>()?, want.to_vec2::<f32>()?);
    Ok(())
}

fn tiny() -> VitConfig {
    VitConfig {
        image_size: 8,
        patch_size: 4,
        hidden_size: 12,
        num_hidden_layers: 3,
        num_attention_heads: 3,
        intermediate_size: 20,
        num_labels: 5,
        ..VitConfig::default()
    }
}

/// Moves every parameter, so that no gradient vanishes by the symmetry of the initial values.
fn shake(params: &Params) -> Result<()> {
    let mut rng = init::rng(3);
    for (_, var) in params.iter() {
        let noise = init::normal(&mut rng, var.shape(), 0.1, var.device())?;
        var.set(&(var.as_detached_tensor() + noise)?)?;
    }
    Ok(())
}

fn all_learn(model: &impl Tapped, params: &Params, inputs: Tensor, case: &str) -> Result<()> {
    let rows = inputs.dim(0)?;
    let targets = Tensor::from_vec((0..rows as u32).map(|i| i % 3).collect(), rows, &Device::Cpu)?;
    let mut loss = Tensor::zeros((), DType::F32, &Device::Cpu)?;
    for logits in tap::layer_logits(model, &Batch::from(inputs), Pass::EVAL)? {
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
