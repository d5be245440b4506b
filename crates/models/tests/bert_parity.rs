//! Hidden states, pooled outputs, logits and gradients of a BERT are those of Python's transformers.
//!
//! `fixtures/bert_hf.py` wrote the oracles, in f64; see `parity.rs` for what may differ.

mod common;

use std::path::Path;

use candle_core::{DType, Device::Cpu, Tensor};
use common::{Result, Tensors, WORST, assert_gradients, assert_states, largest, read_tensors};
use layerwise_models::{Batch, Bert, Head, LoadOptions, Pass, Tapped, tap};
use layerwise_ops::{CrossEntropy, cross_entropy};
use layerwise_testkit::{assert_close, max_abs_diff};

#[test]
fn a_classifier_equals_transformers() -> Result {
    let folder = common::fixtures().join("bert_classifier");
    let expected = read_tensors(&folder.join("expected.safetensors"))?;
    let bert = Bert::load(&folder, &Cpu)?;
    assert_eq!(bert.config().label(3), "dog");
    let batch = batch(&expected);
    for served in [bert.clone(), bert.frozen(), bert.packed()?] {
        assert_states(&served, &batch, &expected["hidden"])?;
        let features = tap::features(&served, &batch, Pass::EVAL)?;
        assert_close(&served.pooled(&features[4])?, &expected["pooled"], WORST)?;
        assert_close(&tap::forward(&served, &batch, Pass::EVAL)?, &expected["logits"], WORST)?;
        for (layer, logits) in tap::layer_logits(&served, &batch, Pass::EVAL)?.iter().enumerate() {
            assert_close(logits, &expected["exits"].get(layer)?, WORST)?;
        }
    }
    Ok(())
}

#[test]
fn every_gradient_equals_pytorchs() -> Result {
    let folder = common::fixtures().join("bert_classifier");
    let expected = read_tensors(&folder.join("expected.safetensors"))?;
    let bert = Bert::load(&folder, &Cpu)?;
    let logits = tap::forward(&bert, &batch(&expected), Pass::EVAL)?;
    let loss = cross_entropy(&logits, &expected["labels"], None, &CrossEntropy::default())?;
    assert_gradients(bert.params(), &loss.backward()?, &expected)
}

/// A sample says the same whatever it is padded with, and to whatever length.
#[test]
fn padding_changes_nothing() -> Result {
    let bert = common::bert(common::tiny_bert())?.frozen();
    let whole = common::words()?;
    let together = tap::layer_logits(&bert, &whole, Pass::EVAL)?;
    for (row, tokens) in [5, 4, 3].into_iter().enumerate() {
        let part = |xs: &Tensor| xs.narrow(0, row, 1)?.narrow(1, 0, tokens)?.contiguous();
        let types = whole.token_types.as_ref().map(part).transpose()?;
        let alone = Batch { inputs: part(&whole.inputs)?, mask: None, token_types: types };
        for (alone, together) in tap::layer_logits(&bert, &alone, Pass::EVAL)?.iter().zip(&together) {
            assert_close(alone, &together.narrow(0, row, 1)?, 1e-5)?;
        }
    }
    Ok(())
}

/// Three samples through all blocks of a real checkpoint, two of them padded.
#[test]
fn real_checkpoints_equal_transformers() -> Result {
    let Some(weights) = layerwise_testkit::from_env("LAYERWISE_WEIGHTS") else { return Ok(()) };
    for (name, layers) in [("minilm6", 6), ("bert12", 12)] {
        let bert = headless(&weights.join(name))?;
        assert_eq!(bert.depth(), layers);
        let expected = read_tensors(&common::fixtures().join(format!("{name}.safetensors")))?;
        let batch = batch(&expected);
        let states = tap::hidden_states(&bert, &batch, Pass::EVAL)?;
        for (layer, hidden) in states.iter().enumerate() {
            let got = hidden.xs.index_select(&expected["tokens"], 1)?;
            let off = max_abs_diff(&got, &expected["hidden"].get(layer)?)?;
            println!("{name}, layer {layer}: off by {off:.1e}, largest {:.1}", largest(&got)?);
            assert!(off <= 1e-4, "{name}, layer {layer} is off by {off:e}");
        }
        let last = &states[layers].xs;
        assert_close(&last.get(0)?.get(last.dim(1)? - 1)?, &expected["last"], 1e-4)?;
        match expected.get("pooled") {
            Some(pooled) => assert_close(&bert.pooled(&bert.feature(&states[layers])?)?, pooled, 1e-4)?,
            None => assert!(bert.pooled(&bert.feature(&states[layers])?).is_err()),
        }
    }
    Ok(())
}

/// Every state of every token, and logits, of the whole checkpoint and of half of it, each saved with a classifier and read by Python.
#[test]
fn real_checkpoints_with_a_classifier_equal_transformers() -> Result {
    let Some(weights) = layerwise_testkit::from_env("LAYERWISE_WEIGHTS") else { return Ok(()) };
    for name in ["minilm6", "bert12"] {
        let batch = batch(&read_tensors(&common::fixtures().join(format!("{name}.safetensors")))?);
        let head = Head::Fresh { labels: 3, seed: 1 };
        let bert =
            Bert::load_with(&weights.join(name), &LoadOptions { head, ..Default::default() }, &Cpu)?.model;
        let models = [("whole".to_owned(), bert.clone()), ("half".to_owned(), bert.cut(bert.depth() / 2)?)];
        let folder = tempfile::tempdir()?;
        for (name, model) in &models {
            model.save(&folder.path().join(name))?;
        }
        let names = models.iter().map(|(name, _)| name);
        let Some(said) = common::said_by_python(common::for_python(&batch)?, folder.path(), names)? else {
            return Ok(());
        };
        for (which, model) in &models {
            let states = tap::hidden_states(model, &batch, Pass::EVAL)?;
            assert_eq!(states.len(), said[&format!("{which}.hidden")].dim(0)?);
            // What padding holds is nobody's business.
            let kept = batch.mask.as_ref().ok_or("no mask")?.to_dtype(DType::F32)?.unsqueeze(2)?;
            for (layer, hidden) in states.iter().enumerate() {
                let want = said[&format!("{which}.hidden")].get(layer)?.broadcast_mul(&kept)?;
                assert_close(&hidden.xs.broadcast_mul(&kept)?, &want, WORST)
                    .map_err(|error| format!("{name}, {which}, layer {layer}: {error}"))?;
            }
            assert_close(&tap::forward(model, &batch, Pass::EVAL)?, &said[which], WORST)?;
        }
    }
    Ok(())
}

fn headless(folder: &Path) -> Result<Bert> {
    let options = LoadOptions { head: Head::None, ..LoadOptions::default() };
    let loaded = Bert::load_with(folder, &options, &Cpu)?;
    assert!(loaded.unexpected.is_empty() && loaded.fresh.is_empty(), "{:?}", loaded.unexpected);
    Ok(loaded.model.frozen())
}

fn batch(expected: &Tensors) -> Batch {
    let [ids, mask, types] = ["ids", "mask", "types"].map(|name| expected[name].clone());
    Batch { inputs: ids, mask: Some(mask), token_types: Some(types) }
}
