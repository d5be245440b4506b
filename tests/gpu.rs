//! Models, training and exits on a GPU against the same on the CPU. Where there is no GPU, they say so, and the CPU takes its place: then only what computes in bf16, and
//! what they expect of the CPU, is tested.

use std::ops::ControlFlow;

use candle_core::{DType, Device, Result as CandleResult, Tensor};
use layerwise::{
    exit::{
        Compaction, Decoding, Engine, Gate, GenerationConfig, Sampling, Signal, Speculate, Thresholds,
        generate,
    },
    models::{
        Batch, Bert, BertConfig, ExitNorm, Gpt2, Gpt2Config, Heads, Params, Pass, Pooling, Tapped, Vit,
        VitConfig, tap,
    },
    ops::init,
    train::{
        AdamWConfig, Event, Gradients, Hooks, LayerWeights, Objective, Schedule, StepRecord, TensorSamples,
        TrainConfig, audit, train,
    },
};
use layerwise_testkit::{random, skipped, tiny_vit_config};

type Done<T = ()> = Result<T, Box<dyn std::error::Error>>;

fn gpu() -> Device {
    Device::new_cuda(0).unwrap_or_else(|error| {
        skipped(error.to_string().lines().next().unwrap_or("no GPU"));
        Device::Cpu
    })
}

fn numbers(xs: &Tensor) -> CandleResult<Vec<f32>> {
    xs.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1()
}

/// The largest difference, of the largest number.
fn off(got: &Tensor, want: &Tensor) -> CandleResult<f32> {
    let (got, want) = (numbers(got)?, numbers(want)?);
    assert_eq!(got.len(), want.len());
    let scale = want.iter().fold(1e-3f32, |most, x| most.max(x.abs()));
    let one =
        |(got, want): (&f32, &f32)| if got.is_nan() { f32::INFINITY } else { (got - want).abs() / scale };
    Ok(got.iter().zip(&want).map(one).fold(0., f32::max))
}

fn to(batch: &Batch, device: &Device) -> CandleResult<Batch> {
    let part = |xs: &Option<Tensor>| xs.as_ref().map(|xs| xs.to_device(device)).transpose();
    Ok(Batch {
        inputs: batch.inputs.to_device(device)?,
        mask: part(&batch.mask)?,
        token_types: part(&batch.token_types)?,
    })
}

fn vit(device: &Device) -> Done<Vit> {
    Ok(Vit::new(VitConfig { initializer_range: 0.1, ..tiny_vit_config() }, &mut init::rng(1), device)?)
}

fn bert(device: &Device) -> Done<Bert> {
    let config = BertConfig {
        vocab_size: 31,
        hidden_size: 24,
        num_hidden_layers: 3,
        num_attention_heads: 3,
        intermediate_size: 40,
        max_position_embeddings: 9,
        num_labels: 5,
        pooling: Pooling::Mean,
        heads: Heads::PerLayer,
        hidden_dropout_prob: 0.,
        attention_probs_dropout_prob: 0.,
        initializer_range: 0.2,
        ..Default::default()
    };
    Ok(Bert::new(config, &mut init::rng(2), device)?)
}

fn gpt2(device: &Device) -> Done<Gpt2> {
    let config = Gpt2Config {
        vocab_size: 31,
        n_embd: 24,
        n_layer: 3,
        n_head: 3,
        n_positions: 9,
        exit_norm: ExitNorm::PerLayer,
        resid_pdrop: 0.,
        embd_pdrop: 0.,
        attn_pdrop: 0.,
        initializer_range: 0.2,
        ..Default::default()
    };
    Ok(Gpt2::new(config, &mut init::rng(3), device)?)
}

fn images(rows: usize) -> Batch {
    random(4, &[rows, 3, 8, 8]).into()
}

/// Six texts of nine words, of which each has one less than the one before.
fn texts() -> Done<Batch> {
    let of = |id: fn(u32) -> u32| Tensor::from_iter((0..54u32).map(id), &Device::Cpu)?.reshape((6, 9));
    let mask =
        Tensor::from_iter((0..54).map(|i| u8::from(i % 9 + i / 9 < 9)), &Device::Cpu)?.reshape((6, 9))?;
    let (ids, types) = (of(|i| (i * 5 + i / 9) % 31)?, of(|i| u32::from(i % 9 > 4))?);
    Ok(Batch { inputs: ids, mask: Some(mask), token_types: Some(types) })
}

/// Logits of every layer, and gradients of every parameter.
fn alike<M: Tapped>(there: &M, here: &M, params: [&Params; 2], batch: &Batch, tolerance: f32) -> Done {
    let pass = |model: &M, params: &Params| -> Done<(Vec<Tensor>, Gradients)> {
        let device = params.iter().next().ok_or("no parameters")?.1.device().clone();
        let batch = to(batch, &device)?;
        let logits = tap::layer_logits(model, &batch, Pass::EVAL)?;
        let rows = logits[0].dim(0)?;
        let labels = Tensor::from_iter((0..rows as u32).map(|row| row % 5), &device)?;
        let weights = vec![1.; model.depth()];
        audit(model, params, &batch, &labels, &weights, &[])?;
        let loss = layerwise::train::loss(model, &batch, &labels, &weights.into(), 0., Pass::EVAL)?;
        let gradients = layerwise::train::take_gradients(layerwise::ops::backward(&loss.total)?, params);
        Ok((logits, gradients))
    };
    let ((logits, gradients), (want, of_want)) = (pass(there, params[0])?, pass(here, params[1])?);
    for (layer, (got, want)) in logits.iter().zip(&want).enumerate() {
        let error = off(got, want)?;
        assert!(error < tolerance, "logits after layer {}: off by {error}", layer + 1);
    }
    assert_eq!(gradients.len(), of_want.len());
    for ((name, got), (_, want)) in gradients.iter().zip(&of_want) {
        let error = off(got, want)?;
        assert!(error < tolerance, "gradient of {name}: off by {error}");
    }
    Ok(())
}

#[test]
fn every_layer_and_every_gradient_is_the_cpus() -> Done {
    let gpu = gpu();
    let (there, here) = (vit(&gpu)?, vit(&Device::Cpu)?);
    alike(&there, &here, [there.params(), here.params()], &images(6), 1e-4)?;
    let mixed = there.mixed(DType::BF16)?;
    alike(&mixed, &here, [mixed.params(), here.params()], &images(6), 0.1)?;
    let (there, here) = (bert(&gpu)?, bert(&Device::Cpu)?);
    alike(&there, &here, [there.params(), here.params()], &texts()?, 1e-4)?;
    let (there, here) = (gpt2(&gpu)?, gpt2(&Device::Cpu)?);
    let batch = Batch { token_types: None, mask: None, ..texts()? };
    alike(&there, &here, [there.params(), here.params()], &batch, 1e-4)
}

/// Images of five classes, each with its own mean.
fn samples(device: &Device) -> Done<TensorSamples> {
    let labels = Tensor::from_iter((0..80u32).map(|i| i % 5), &Device::Cpu)?;
    let inputs = (random(7, &[5, 3, 8, 8]).index_select(&labels, 0)? + random(8, &[80, 3, 8, 8]))?;
    Ok(TensorSamples { inputs: inputs.to_device(device)?, labels: labels.to_device(device)? })
}

fn settings(accumulation: usize) -> TrainConfig {
    TrainConfig {
        accumulation,
        objective: Objective::Aligned { weights: LayerWeights::Linear },
        epochs: 5,
        batch_size: 16,
        optimiser: AdamWConfig { lr: 3e-3, ..Default::default() },
        schedule: Schedule::Constant,
        ..Default::default()
    }
}

fn trained(model: &Vit, accumulation: usize, device: &Device) -> Done<Vec<StepRecord>> {
    let mut records = Vec::new();
    let on_event = |event: &Event| {
        if let Event::Step(record) = event {
            records.push(record.clone());
        }
    };
    let hooks = Hooks { on_event: Some(Box::new(on_event)), ..Default::default() };
    train(model, model.params(), &samples(device)?, &settings(accumulation), None, hooks)?;
    Ok(records)
}

#[test]
fn losses_follow_those_of_the_cpu() -> Done {
    let gpu = gpu();
    let want = trained(&vit(&Device::Cpu)?, 1, &Device::Cpu)?;
    let masters = vit(&gpu)?;
    let wide = trained(&vit(&gpu)?, 1, &gpu)?;
    let mixed = trained(&masters.mixed(DType::BF16)?, 2, &gpu)?;
    // Of losses, and of the gradients' norm.
    for (got, tolerance, of_norm) in [(wide, 1e-3, 0.02), (mixed, 0.05, 0.2)] {
        assert_eq!(got.len(), want.len());
        for (got, want) in got.iter().zip(&want) {
            assert!(
                (got.loss - want.loss).abs() < tolerance,
                "step {}: {} for {}",
                got.step,
                got.loss,
                want.loss
            );
            assert!((got.grad_norm / want.grad_norm - 1.).abs() < of_norm);
        }
    }
    Ok(())
}

/// Where rows leave, and with what, however they are taken out.
fn leave_alike<M: Tapped>([there, here]: [&M; 2], gpu: &Device, batch: &Batch, policy: &Thresholds) -> Done {
    let want = Engine { policy, compaction: Compaction::Always }.run(here, batch)?;
    assert!(want.layer.iter().any(|layer| *layer != want.layer[0]), "{policy:?} tells none from another");
    for compaction in [Compaction::Always, Compaction::Never, Compaction::Late] {
        let got = Engine { policy, compaction }.run(there, &to(batch, gpu)?)?;
        assert_eq!(got.layer, want.layer, "{policy:?} {compaction:?}");
        let error = off(&got.logits, &want.logits)?;
        assert!(error < 1e-4, "{policy:?} {compaction:?}: off by {error}");
    }
    Ok(())
}

#[test]
fn exits_are_the_cpus() -> Done {
    let gpu = gpu();
    let here = vit(&Device::Cpu)?;
    trained(&here, 1, &Device::Cpu)?;
    let there = vit(&gpu)?;
    for ((_, to), (_, from)) in there.params().iter().zip(here.params().iter()) {
        to.set(&from.to_device(&gpu)?)?;
    }
    let (there, here) = (there.frozen(), here.frozen());
    let width = here.config().hidden_size;
    let gate = Gate { weights: (0..width).map(|i| (i as f64).sin()).collect(), bias: 0.1 };
    let policies = [
        (Signal::MaxProbability, 0.5),
        (Signal::Margin, 0.3),
        (Signal::Entropy, 1.5),
        (Signal::Patience, 2.),
        (Signal::Saturation, 0.6),
        (Signal::Change, 1.),
        (Signal::Gate(gate), 0.5),
    ];
    for (signal, threshold) in policies {
        let policy = Thresholds::common(signal, threshold, here.depth());
        leave_alike([&there, &here], &gpu, &images(64), &policy)?;
    }
    // With masks that are taken out, too.
    let (there, here) = (bert(&gpu)?.frozen(), bert(&Device::Cpu)?.frozen());
    let policy = Thresholds::common(Signal::MaxProbability, 0.24, here.depth());
    leave_alike([&there, &here], &gpu, &texts()?, &policy)
}

#[test]
fn texts_are_the_cpus() -> Done {
    let gpu = gpu();
    let (there, here) = (gpt2(&gpu)?.frozen(), gpt2(&Device::Cpu)?.frozen());
    let config = GenerationConfig { max_new_tokens: 5, sampling: Sampling::GREEDY, ..Default::default() };
    let policy = Thresholds::common(Signal::MaxProbability, 0.2, 3);
    let ways = [
        Decoding::Full,
        Decoding::Leave { policy: &policy, words: None },
        Decoding::Speculate(Speculate { layer: 1, drafts: 3, adaptive: true, words: None }),
    ];
    for decoding in ways {
        let say = |model: &Gpt2| {
            generate(model, &[vec![5, 17, 3], vec![2]], decoding, &config, |_| ControlFlow::Continue(()))
        };
        let ((got, _), (want, _)) = (say(&there)?, say(&here)?);
        assert_eq!(got, want, "{decoding:?}");
    }
    Ok(())
}
