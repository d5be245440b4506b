//! No parameter stands still unnoticed.

mod common;

use candle_core::{D, Device::Cpu, Tensor, Var};
use candle_nn::Module;
use layerwise_models::{Batch, Bert, BertConfig, Heads, Hidden, Params, Pass, Tapped, VitConfig};
use layerwise_ops::init;
use layerwise_testkit::{TinyStack, random, tiny_vit, tiny_vit_config};
use layerwise_train::{
    Error, Gradients, Hooks, LayerWeights, Objective, TensorSamples, TrainConfig, audit, audit_gradients,
    train,
};
use tempfile::tempdir;

use crate::common::{Done, config, two_classes, values};

/// One pre-norm attention block with a single head, on `(rows, tokens, WIDTH)`: with candle-nn's fused operations, or ours.
struct OneBlock {
    params: Params,
    fused: bool,
}

const WIDTH: usize = 6;
const EPS: f64 = 1e-5;

impl OneBlock {
    fn new(fused: bool) -> candle_core::Result<Self> {
        let mut params = Params::default();
        for (i, name) in ["embed", "query", "key", "value", "head"].iter().enumerate() {
            params.insert(format!("{name}.weight"), Var::from_tensor(&random(i as u64, &[WIDTH, WIDTH]))?);
        }
        for (i, name) in ["norm.weight", "norm.bias"].iter().enumerate() {
            params.insert(*name, Var::from_tensor(&random(10 + i as u64, &[WIDTH]))?);
        }
        Ok(Self { params, fused })
    }

    fn get(&self, name: &str) -> Tensor {
        self.params.get(name).expect("a parameter").as_tensor().clone()
    }

    fn linear(&self, name: &str, xs: &Tensor) -> candle_core::Result<Tensor> {
        layerwise_ops::linear(xs, &self.get(&format!("{name}.weight")), None)
    }

    fn norm(&self, xs: &Tensor) -> candle_core::Result<Tensor> {
        let (weight, bias) = (self.get("norm.weight"), self.get("norm.bias"));
        if self.fused {
            candle_nn::LayerNorm::new(weight, bias, EPS).forward(xs)
        } else {
            layerwise_ops::layer_norm(xs, &weight, &bias, EPS)
        }
    }

    fn softmax(&self, xs: &Tensor) -> candle_core::Result<Tensor> {
        if self.fused { candle_nn::ops::softmax_last_dim(xs) } else { layerwise_ops::softmax(xs) }
    }
}

impl Tapped for OneBlock {
    fn depth(&self) -> usize {
        1
    }

    fn embed(&self, batch: &Batch, _pass: Pass) -> candle_core::Result<Hidden> {
        Ok(Hidden { xs: self.linear("embed", &batch.inputs)?, mask: None })
    }

    fn block(&self, _layer: usize, hidden: &Hidden, _pass: Pass) -> candle_core::Result<Hidden> {
        let xs = self.norm(&hidden.xs)?;
        let (q, k, v) = (self.linear("query", &xs)?, self.linear("key", &xs)?, self.linear("value", &xs)?);
        let scores = (q.matmul(&k.transpose(D::Minus2, D::Minus1)?)? * (1. / (WIDTH as f64).sqrt()))?;
        Ok(Hidden { xs: (&hidden.xs + self.softmax(&scores)?.matmul(&v)?)?, mask: None })
    }

    fn feature(&self, hidden: &Hidden) -> candle_core::Result<Tensor> {
        hidden.xs.mean(1)
    }

    fn exit(&self, _layer: usize, feature: &Tensor, _pass: Pass) -> candle_core::Result<Tensor> {
        self.linear("head", feature)
    }
}

/// What candle-nn's layer norm and softmax cut off.
const CUT: [&str; 4] = ["key.weight", "norm.bias", "norm.weight", "query.weight"];

fn sequences() -> candle_core::Result<TensorSamples> {
    let labels = Tensor::new(&[0u32, 1, 2, 3], &Cpu)?;
    Ok(TensorSamples { inputs: random(20, &[4, 3, WIDTH]), labels })
}

fn audited(model: &impl Tapped, params: &Params, data: &TensorSamples, weights: &[f64]) -> Result<(), Error> {
    audit(model, params, &data.inputs.clone().into(), &data.labels, weights, &[])
}

#[test]
fn our_models_pass() -> Done {
    let stack = TinyStack::new(4, 6, 2, 1)?;
    audited(&stack, stack.params(), &two_classes(6, 6, 1), &LayerWeights::Linear.weights(4)?)?;
    let images =
        TensorSamples { inputs: random(1, &[4, 3, 8, 8]), labels: Tensor::new(&[0u32, 1, 2, 3], &Cpu)? };
    for heads in [Heads::Shared, Heads::PerLayer] {
        let vit = tiny_vit(VitConfig { heads, ..tiny_vit_config() }, 1);
        audited(&vit, vit.params(), &images, &LayerWeights::Linear.weights(3)?)?;
    }
    Ok(())
}

#[test]
fn every_parameter_of_a_bert_moves() -> Done {
    let batch = Batch {
        inputs: Tensor::new(&[[0u32, 6, 2, 3, 4], [0, 5, 1, 2, 6]], &Cpu)?,
        mask: Some(Tensor::new(&[[1u8, 1, 1, 1, 1], [1, 1, 1, 1, 0]], &Cpu)?),
        token_types: Some(Tensor::new(&[[0u32, 0, 0, 1, 1], [0, 0, 1, 1, 0]], &Cpu)?),
    };
    let classes = Tensor::new(&[2u32, 0], &Cpu)?;
    let numbers = Tensor::new(&[2.5f32, -1.], &Cpu)?;
    for (heads, num_labels, labels) in
        [(Heads::Shared, 3, &classes), (Heads::PerLayer, 3, &classes), (Heads::Shared, 1, &numbers)]
    {
        let config = BertConfig {
            vocab_size: 7,
            hidden_size: 12,
            num_hidden_layers: 3,
            num_attention_heads: 3,
            intermediate_size: 20,
            max_position_embeddings: 5,
            num_labels,
            heads,
            ..Default::default()
        };
        let bert = Bert::new(config, &mut init::rng(1), &Cpu)?;
        audit(&bert, bert.params(), &batch, labels, &LayerWeights::Linear.weights(3)?, &[])?;
        if heads == Heads::Shared {
            audit(&bert, bert.params(), &batch, labels, &[0., 0., 1.], &[])?;
        }
    }
    Ok(())
}

#[test]
fn fused_operations_of_candle_nn_are_found_by_the_names_they_cut_off() -> Done {
    let data = sequences()?;
    let ours = OneBlock::new(false)?;
    audited(&ours, &ours.params, &data, &[1.])?;
    let fused = OneBlock::new(true)?;
    match audited(&fused, &fused.params, &data, &[1.]).unwrap_err() {
        Error::Audit { missing, zero, not_finite } => {
            assert_eq!(
                (missing.as_slice(), zero.len(), not_finite.len()),
                (&CUT.map(String::from)[..], 0, 0)
            );
        }
        other => panic!("{other}"),
    }
    Ok(())
}

#[test]
fn training_refuses_before_the_first_step_and_goes_on_when_told_that_they_are_idle() -> Done {
    let (model, data, folder) = (OneBlock::new(true)?, sequences()?, tempdir()?);
    let before = values(&model.params);
    let run = |config: &TrainConfig| {
        train(&model, &model.params, &data, config, Some(folder.path()), Hooks::default())
    };
    let error = run(&config()).unwrap_err();
    for name in CUT {
        assert!(error.to_string().contains(name), "{error}");
    }
    assert!(matches!(error, Error::Audit { .. }));
    assert_eq!(values(&model.params), before);
    assert!(!folder.path().join("state.safetensors").exists());
    // No step was taken, so the settings may still change.
    let report = run(&TrainConfig { idle: CUT.map(String::from).to_vec(), ..config() })?;
    assert_eq!(report.steps, 4);
    Ok(())
}

#[test]
fn missing_zero_and_infinite_gradients_are_told_apart() -> Done {
    let stack = TinyStack::new(2, 3, 2, 1)?;
    let ones = stack.params().iter().map(|(name, var)| Ok((name.to_owned(), var.ones_like()?)));
    let mut gradients: Gradients = ones.collect::<candle_core::Result<_>>()?;
    audit_gradients(stack.params(), &gradients, &[])?;
    gradients.remove("block.1.bias");
    gradients.insert("block.2.bias".into(), Tensor::zeros(3, candle_core::DType::F32, &Cpu)?);
    gradients.insert("head.bias".into(), Tensor::new(&[1f32, f32::NAN], &Cpu)?);
    gradients.insert("block.1.weight".into(), Tensor::new(&[[f32::INFINITY, 1., 0.]; 3], &Cpu)?);
    match audit_gradients(stack.params(), &gradients, &[]).unwrap_err() {
        Error::Audit { missing, zero, not_finite } => {
            assert_eq!((missing, zero), (vec!["block.1.bias".to_owned()], vec!["block.2.bias".to_owned()]));
            assert_eq!(not_finite, ["block.1.weight", "head.bias"]);
        }
        other => panic!("{other}"),
    }
    let idle = ["block.1.bias", "block.2.bias", "block.1.weight", "head.bias"].map(String::from);
    audit_gradients(stack.params(), &gradients, &idle)?;
    Ok(())
}

#[test]
fn a_head_per_layer_that_the_objective_never_weighs_is_named() -> Done {
    let vit = tiny_vit(VitConfig { heads: Heads::PerLayer, ..tiny_vit_config() }, 1);
    let data =
        TensorSamples { inputs: random(1, &[4, 3, 8, 8]), labels: Tensor::new(&[0u32, 1, 2, 3], &Cpu)? };
    let run = |objective, idle| {
        let config = TrainConfig { objective, idle, epochs: 1, ..config() };
        train(&vit, vit.params(), &data, &config, None, Hooks::default())
    };
    let heads: Vec<String> =
        ["1.classifier.bias", "1.classifier.weight", "2.classifier.bias", "2.classifier.weight"]
            .iter()
            .map(|name| format!("exits.{name}"))
            .collect();
    match run(Objective::Standard, Vec::new()).unwrap_err() {
        Error::Audit { missing, zero, not_finite } => {
            assert_eq!((missing, zero.len(), not_finite.len()), (heads.clone(), 0, 0));
        }
        other => panic!("{other}"),
    }
    run(Objective::Standard, heads)?;
    // Standard first, but every second turn weighs them.
    run(Objective::default(), Vec::new())?;
    Ok(())
}
