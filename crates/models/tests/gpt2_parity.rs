//! Hidden states, logits and gradients of a GPT-2 are those of Python's transformers.
//!
//! `fixtures/gpt2_hf.py` wrote the oracles, in f64; see `parity.rs` for what may differ.

mod common;

use candle_core::{Device::Cpu, Tensor};
use common::{Result, Tensors, WORST, largest, read_tensors};
use layerwise_models::{Batch, Gpt2, LoadOptions, Pass, tap};
use layerwise_ops::{CrossEntropy, cross_entropy};
use layerwise_testkit::{assert_close, max_abs_diff};

/// Folders, and the words that their oracles keep of all: every so manieth.
const FOLDERS: [(&str, usize); 2] = [("gpt2_odd", 1), ("gpt2_words", 97)];

#[test]
fn states_and_logits_equal_transformers() -> Result {
    for (name, step) in FOLDERS {
        let folder = common::fixtures().join(name);
        let expected = read_tensors(&folder.join("expected.safetensors"))?;
        let loaded = Gpt2::load_with(&folder, &LoadOptions::default(), &Cpu)?;
        assert!(loaded.unexpected.is_empty(), "{:?}", loaded.unexpected);
        let batch = batch(&expected);
        for gpt2 in [loaded.model.clone(), loaded.model.frozen(), loaded.model.packed()?] {
            let states = tap::hidden_states(&gpt2, &batch, Pass::EVAL)?;
            assert_eq!(states.len(), expected["hidden"].dim(0)?);
            for (layer, state) in states.iter().enumerate() {
                assert_close(&state.xs, &expected["hidden"].get(layer)?, WORST)
                    .map_err(|error| format!("{name}, layer {layer}: {error}"))?;
            }
            for (layer, logits) in tap::layer_logits(&gpt2, &batch, Pass::EVAL)?.iter().enumerate() {
                let want = expected["exits"].get(layer)?.flatten(0, 1)?;
                assert_close(&every(logits, step, 1)?, &want, WORST)?;
            }
        }
    }
    Ok(())
}

#[test]
fn every_gradient_equals_pytorchs() -> Result {
    for (name, step) in FOLDERS {
        let folder = common::fixtures().join(name);
        let expected = read_tensors(&folder.join("expected.safetensors"))?;
        let gpt2 = Gpt2::load(&folder, &Cpu)?;
        let (rows, labels) = next_words(&expected)?;
        let logits = tap::forward(&gpt2, &batch(&expected), Pass::EVAL)?.index_select(&rows, 0)?;
        let gradients = cross_entropy(&logits, &labels, None, &CrossEntropy::default())?.backward()?;
        // A model whose parameters are the gradients, in a file of the other's layout.
        let model = gpt2.copied()?;
        for ((name, var), (_, copy)) in gpt2.params().iter().zip(model.params().iter()) {
            copy.set(gradients.get(var).ok_or_else(|| format!("no gradient for {name}"))?)?;
        }
        let written = tempfile::tempdir()?;
        model.save(written.path())?;
        let got = read_tensors(&written.path().join(common::WEIGHTS))?;
        assert_eq!(expected.keys().filter(|name| name.starts_with("gradient.")).count(), got.len());
        for (name, got) in &got {
            let want = &expected[&format!("gradient.{name}")];
            let got = if name.ends_with("wte.weight") { every(got, step, 0)? } else { got.clone() };
            let relative = max_abs_diff(&got, want)? / largest(want)?;
            assert!(relative <= 1e-3, "gradient of {name} is off by {relative:e}");
        }
    }
    Ok(())
}

/// A text says the same whatever it is padded with behind, and whatever comes later.
#[test]
fn later_tokens_change_nothing() -> Result {
    let gpt2 = Gpt2::load(&common::fixtures().join("gpt2_odd"), &Cpu)?.frozen();
    let expected = read_tensors(&common::fixtures().join("gpt2_odd/expected.safetensors"))?;
    let states = tap::hidden_states(&gpt2, &batch(&expected), Pass::EVAL)?;
    for (row, tokens) in [11, 6, 1].into_iter().enumerate() {
        let text = expected["ids"].narrow(0, row, 1)?;
        for tokens in 1..=tokens {
            let alone = Batch::from(text.narrow(1, 0, tokens)?.contiguous()?);
            for (alone, together) in tap::hidden_states(&gpt2, &alone, Pass::EVAL)?.iter().zip(&states) {
                assert_close(&alone.xs, &together.xs.narrow(0, row, 1)?.narrow(1, 0, tokens)?, 1e-5)?;
            }
        }
    }
    Ok(())
}

fn batch(expected: &Tensors) -> Batch {
    Batch { inputs: expected["ids"].clone(), mask: Some(expected["mask"].clone()), token_types: None }
}

/// Rows of a feature that have a next word, and these words.
fn next_words(expected: &Tensors) -> Result<(Tensor, Tensor)> {
    let (ids, mask) = (expected["ids"].to_vec2::<u32>()?, expected["mask"].to_vec2::<u8>()?);
    let (mut rows, mut labels) = (Vec::new(), Vec::new());
    for (i, (ids, mask)) in ids.iter().zip(&mask).enumerate() {
        for at in (1..ids.len()).filter(|&at| mask[at] > 0) {
            rows.push((i * ids.len() + at - 1) as u32);
            labels.push(ids[at]);
        }
    }
    Ok((Tensor::new(rows, &Cpu)?, Tensor::new(labels, &Cpu)?))
}

fn every(xs: &Tensor, step: usize, dim: usize) -> candle_core::Result<Tensor> {
    let kept = Tensor::from_iter((0..xs.dim(dim)? as u32).step_by(step), &Cpu)?;
    xs.contiguous()?.index_select(&kept, dim)
}
