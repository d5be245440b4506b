//! Hidden states, logits and gradients are those of Python's transformers.
//!
//! `fixtures/vit_hf.py` wrote the oracles, in f64. What may differ is our f32: a sum of `n` terms is off by at most
//! `n u` of their size, `u` = 6e-8, and typically by `sqrt(n) u`; a residual stream adds such errors up.

mod common;

use std::fs;

use candle_core::{DType, Device::Cpu, Tensor};
use common::{Result, WORST, assert_gradients, assert_states, largest};
use layerwise_models::{Batch, Head, LoadOptions, Pass, Vit, tap};
use layerwise_ops::{CrossEntropy, cross_entropy};
use layerwise_testkit::{assert_close, max_abs_diff};

#[test]
fn a_classifier_equals_transformers() -> Result {
    let folder = common::fixtures().join("vit_classifier");
    let expected = common::read_tensors(&folder.join("expected.safetensors"))?;
    let vit = Vit::load(&folder, &Cpu)?;
    assert_eq!(vit.config().label(3), "dog");
    let batch = Batch::from(expected["pixels"].clone());
    assert_states(&vit, &batch, &expected["hidden"])?;
    assert_close(&tap::forward(&vit, &batch, Pass::EVAL)?, &expected["logits"], WORST)?;
    for (layer, logits) in tap::layer_logits(&vit, &batch, Pass::EVAL)?.iter().enumerate() {
        assert_close(logits, &expected["exits"].get(layer)?, WORST)?;
    }
    Ok(())
}

#[test]
fn every_gradient_equals_pytorchs() -> Result {
    let folder = common::fixtures().join("vit_classifier");
    let expected = common::read_tensors(&folder.join("expected.safetensors"))?;
    let vit = Vit::load(&folder, &Cpu)?;
    let logits = tap::forward(&vit, &Batch::from(expected["pixels"].clone()), Pass::EVAL)?;
    let loss = cross_entropy(&logits, &expected["labels"], None, &CrossEntropy::default())?;
    assert_gradients(vit.params(), &loss.backward()?, &expected)
}

#[test]
fn a_backbone_equals_transformers_under_every_activation() -> Result {
    let source = common::fixtures().join("vit_backbone");
    let expected = common::read_tensors(&source.join("expected.safetensors"))?;
    let folder = tempfile::tempdir()?;
    for file in [common::CONFIG, common::WEIGHTS] {
        fs::copy(source.join(file), folder.path().join(file))?;
    }
    let batch = Batch::from(expected["pixels"].clone());
    for activation in ["gelu_new", "relu", "silu"] {
        common::change_config(folder.path(), "hidden_act", activation.into())?;
        let options = LoadOptions { head: Head::None, ..LoadOptions::default() };
        let loaded = Vit::load_with(folder.path(), &options, &Cpu)?;
        assert_eq!(loaded.unexpected, ["vit.pooler.dense.bias", "vit.pooler.dense.weight"]);
        assert!(loaded.model.params().get("vit.encoder.layer.0.attention.attention.query.bias").is_none());
        assert_states(&loaded.model, &batch, &expected[activation])?;
    }
    Ok(())
}

#[test]
fn a_distilled_classifier_equals_transformers() -> Result {
    let folder = common::fixtures().join("deit_classifier");
    let expected = common::read_tensors(&folder.join("expected.safetensors"))?;
    let vit = Vit::load(&folder, &Cpu)?;
    assert_eq!((vit.config().distillation_token, vit.config().tokens()), (true, 6));
    let batch = Batch::from(expected["pixels"].clone());
    assert_states(&vit, &batch, &expected["hidden"])?;
    Ok(assert_close(&tap::forward(&vit, &batch, Pass::EVAL)?, &expected["logits"], WORST)?)
}

/// Each model at the size it was made for, and at another one with its positions interpolated.
#[test]
fn heads_equal_transformers_at_two_patch_and_image_sizes() -> Result {
    for (patch, sizes) in [(14, [28, 56]), (16, [48, 32])] {
        for kind in ["vit", "deit"] {
            let folder = common::fixtures().join(format!("patch{patch}")).join(kind);
            let expected = common::read_tensors(&folder.join("expected.safetensors"))?;
            let made = Vit::load(&folder, &Cpu)?;
            assert_eq!((made.config().patch_size, made.config().image_size), (patch, sizes[0]));
            for size in sizes {
                let vit = made.resized(size)?;
                assert_eq!(vit.config().patches(), (size / patch).pow(2));
                let batch = Batch::from(expected[&format!("{size}.pixels")].clone());
                assert_states(&vit, &batch, &expected[&format!("{size}.hidden")])?;
                let want = &expected[&format!("{size}.logits")];
                assert_close(&tap::forward(&vit, &batch, Pass::EVAL)?, want, WORST)?;
                // Frozen and packed models answer alike.
                for served in [made.frozen().resized(size)?, made.packed()?.resized(size)?] {
                    assert_close(&tap::forward(&served, &batch, Pass::EVAL)?, want, WORST)?;
                }
            }
        }
    }
    Ok(())
}

/// Two images through twelve blocks of a real checkpoint, `vit-s14`.
///
/// At worst an update of 1536-term sums is off by 1e-4 of the layer's scale, typically by 2e-6; 24 updates of two sums
/// each make 2e-5 of that.
#[test]
fn a_real_checkpoint_equals_transformers() -> Result {
    let Some(weights) = layerwise_testkit::from_env("LAYERWISE_WEIGHTS") else { return Ok(()) };
    let expected = common::read_tensors(&common::fixtures().join("vit_s14.safetensors"))?;
    let options = LoadOptions { head: Head::None, ..LoadOptions::default() };
    let vit = Vit::load_with(&weights.join("vit-s14"), &options, &Cpu)?.model.frozen();
    let batch = Batch::from(enlarged(&expected)?);
    for (layer, hidden) in tap::hidden_states(&vit, &batch, Pass::EVAL)?.iter().enumerate() {
        let want = expected["hidden"].get(layer)?; // (2, tokens, 384)
        let got = hidden.xs.index_select(&expected["tokens"], 1)?;
        let relative = max_abs_diff(&got, &want)? / largest(&want)?;
        println!("layer {layer}: off by {relative:.1e} of its scale {:.1}", largest(&want)?);
        assert!(relative <= 1e-4, "layer {layer} is off by {relative:e} of its scale");
    }
    Ok(())
}

/// The fixture's images, `(2, 8, 8)` in `0..=16`, as `(2, 3, 224, 224)` in `[-1, 1]`: every pixel 28 times in each direction.
fn enlarged(expected: &common::Tensors) -> candle_core::Result<Tensor> {
    let xs = expected["images"].to_dtype(DType::F32)?.reshape(&[2, 1, 8, 1, 8, 1])?;
    let xs = xs.broadcast_as(&[2, 3, 8, 28, 8, 28])?.reshape((2, 3, 224, 224))?;
    (xs / 8.)? - 1.
}
