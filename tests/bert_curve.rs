//! Fine-tuning of a real BERT on real samples follows PyTorch's, from equal weights through equal batches, without dropout.
//!
//! `fixtures/bert_curve.py` wrote the oracle, and says how much its own f32 and f64 curves differ.

use std::{collections::HashMap, path::Path};

use candle_core::{Device::Cpu, Tensor};
use layerwise::{
    data::{
        Encoded, Encoder, Padded, Targets,
        glue::{Part, Task, load},
    },
    models::{Batch, Bert, Head, LoadOptions, Pass, Tapped},
    ops::backward,
    train::{AdamW, AdamWConfig, LayerWeights, StepScale, clip_factor, global_norm, loss, take_gradients},
};
use layerwise_testkit::from_env;

type Done = Result<(), Box<dyn std::error::Error>>;

const TOLERANCE: f64 = 1e-3;
const TOKENS: usize = 48;

#[test]
fn classification_follows_pytorch() -> Done {
    follows(Task::Mrpc, 2)
}

#[test]
fn regression_follows_pytorch() -> Done {
    follows(Task::StsB, 1)
}

fn follows(task: Task, outputs: usize) -> Done {
    let (Some(shared), Some(weights)) = (from_env("LAYERWISE_SHARED"), from_env("LAYERWISE_WEIGHTS")) else {
        return Ok(());
    };
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/bert_curve.safetensors");
    let expected: HashMap<String, Tensor> = candle_core::safetensors::load(fixture, &Cpu)?;
    let expected = |name: &str| &expected[&format!("{}.{name}", task.name())];
    let checkpoint = weights.join("minilm6");
    let set = load(task, &shared.join("data/glue").join(task.name()), Part::Train)?;
    let encoder = Encoder::open(&checkpoint, TOKENS)?;
    let options = LoadOptions { head: Head::Fresh { labels: outputs, seed: 0 }, ..Default::default() };
    let bert = Bert::load_with(&checkpoint, &options, &Cpu)?.model;
    for part in ["weight", "bias"] {
        let name = format!("classifier.{part}");
        bert.params().get(&name).ok_or("no classifier")?.set(expected(&name))?;
    }
    let terms = LayerWeights::Linear.weights(bert.depth())?.into();
    let config = AdamWConfig { lr: 5e-5, weight_decay: 0.01, ..Default::default() };
    let mut optimiser = AdamW::new(bert.params(), config)?;
    let mut worst: f64 = 0.;
    for (step, want) in expected("losses").to_vec1::<f32>()?.into_iter().enumerate() {
        let rows: Vec<usize> =
            expected("batches").get(step)?.to_vec1::<u32>()?.iter().map(|&row| row as usize).collect();
        let chosen = set.select(&rows)?;
        let texts = encoder.encode(chosen.texts())?;
        let Padded { ids, mask, types } = encoder.pad(&texts.iter().collect::<Vec<&Encoded>>(), &Cpu)?;
        let batch = Batch { inputs: ids, mask, token_types: Some(types) };
        let labels = match chosen.targets() {
            Targets::Classes { labels, .. } => Tensor::new(labels.as_slice(), &Cpu)?,
            Targets::Numbers(numbers) => Tensor::new(numbers.as_slice(), &Cpu)?,
            Targets::None => return Err("no targets".into()),
        };
        let total = loss(&bert, &batch, &labels, &terms, 0., Pass::EVAL)?.total;
        worst = worst.max(f64::from((total.to_scalar::<f32>()? - want).abs()));
        let gradients = take_gradients(backward(&total)?, bert.params());
        let gradient = clip_factor(global_norm(&gradients)?, 1.);
        optimiser.step(bert.params(), &gradients, StepScale { gradient, ..Default::default() })?;
    }
    assert!(worst <= TOLERANCE, "the curves differ by {worst:e}");
    Ok(())
}
