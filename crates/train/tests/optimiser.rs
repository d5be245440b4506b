//! Clipping, decay groups, accumulation and the order of the optimiser's state.

mod common;

use std::collections::BTreeMap;

use candle_core::{DType, Device::Cpu, Tensor, Var, safetensors};
use layerwise_models::{Batch, ExitNorm, Heads, Params, Pass, VitConfig};
use layerwise_testkit::{TinyStack, assert_close, random, tiny_vit, tiny_vit_config};
use layerwise_train::{
    AdamW, AdamWConfig, Gradients, LayerWeights, Objective, TensorSamples, TrainConfig, Unit, accumulate,
    clip, decays, global_norm, loss, take_gradients,
};
use tempfile::tempdir;

use crate::common::{Done, config, records, train_until, two_classes};

/// Equivalent Python:
///
/// ```python
/// for max_norm in (1.0, 7.0711, 100.):
///     ps = [torch.nn.Parameter(torch.zeros(3)), torch.nn.Parameter(torch.zeros(2, 2))]  # both float64
///     ps[0].grad = torch.tensor([3., -4., 0.]); ps[1].grad = torch.tensor([[1., 2.], [-2., 4.]])
///     print(torch.nn.utils.clip_grad_norm_(ps, max_norm), [p.grad for p in ps])
/// ```
#[test]
fn clipping_equals_pytorch() -> Done {
    let given = [3., -4., 0., 1., 2., -2., 4.];
    let clipped = [
        0.4242640087119369,
        -0.5656853449492493,
        0.,
        0.14142133623731232,
        0.28284267247462463,
        -0.28284267247462463,
        0.5656853449492493,
    ];
    for (max, want) in [(1., clipped), (7.0711, given), (100., given)] {
        let mut gradients = Gradients::from([
            ("a".to_owned(), Tensor::new(&[3f64, -4., 0.], &Cpu)?),
            ("b".to_owned(), Tensor::new(&[[1f64, 2.], [-2., 4.]], &Cpu)?),
        ]);
        let norm = global_norm(&gradients)?;
        assert!((norm - 7.0710678118654755).abs() < 1e-14);
        clip(&mut gradients, norm, max)?;
        let got = Tensor::cat(&[gradients["a"].clone(), gradients["b"].flatten_all()?], 0)?;
        assert_close(&got, &Tensor::new(&want, &Cpu)?, 1e-15)?;
    }
    Ok(())
}

#[test]
fn the_norm_of_gradients_too_large_to_square_in_f32_is_finite() -> Done {
    let gradients = Gradients::from([("a".to_owned(), Tensor::new(&[3e30f32, 4e30], &Cpu)?)]);
    // f32 holds 3e30 to 6e-8.
    assert!((global_norm(&gradients)? / 5e30 - 1.).abs() < 1e-7);
    Ok(())
}

#[test]
fn matrices_decay_and_nothing_else() {
    let config = VitConfig { exit_norm: ExitNorm::PerLayer, heads: Heads::PerLayer, ..tiny_vit_config() };
    let vit = tiny_vit(config, 1);
    let (decayed, spared): (Vec<_>, Vec<_>) =
        vit.params().iter().partition(|(name, var)| decays(name, var.dims()));
    // Of each block query, key, value, output and the two of the MLP; the patch projection; three heads.
    assert_eq!(decayed.len(), 3 * 6 + 1 + 3);
    let matrices = ["query", "key", "value", "dense", "projection", "classifier"];
    for (name, var) in decayed {
        let layer = name.strip_suffix(".weight").expect("a weight");
        assert!(var.dims().len() > 1 && matrices.iter().any(|matrix| layer.ends_with(matrix)), "{name}");
    }
    for (name, _) in spared {
        let spare = name.ends_with(".bias") || name.contains("layernorm");
        assert!(spare || name.ends_with("cls_token") || name.ends_with("position_embeddings"), "{name}");
    }
    // BERT's and GPT-2's tables.
    assert!(!decays("bert.embeddings.word_embeddings.weight", &[30522, 768]));
    assert!(!decays("transformer.wte.weight", &[50257, 768]) && !decays("wpe.weight", &[1024, 768]));
    assert!(decays("transformer.h.0.attn.c_attn.weight", &[768, 2304]));
}

#[test]
fn only_decaying_parameters_shrink_without_a_gradient_to_speak_of() -> Done {
    let ones = |dims: &[usize]| Var::ones(dims, DType::F32, &Cpu);
    let params: Params =
        [("a.weight".to_owned(), ones(&[2, 2])?), ("a.bias".to_owned(), ones(&[2])?)].into_iter().collect();
    let zeros = params.iter().map(|(name, var)| Ok((name.to_owned(), var.zeros_like()?)));
    let zeros: Gradients = zeros.collect::<candle_core::Result<_>>()?;
    let settings = AdamWConfig { lr: 0.1, weight_decay: 0.5, ..Default::default() };
    let mut optimiser = AdamW::new(&params, settings)?;
    optimiser.step(&params, &zeros, 0.5)?;
    // The factor scales the decay too: 1 - 0.5 * 0.1 * 0.5.
    assert_eq!(params.get("a.weight").unwrap().to_vec2::<f32>()?, [[0.975; 2]; 2]);
    assert_eq!(params.get("a.bias").unwrap().to_vec1::<f32>()?, [1.; 2]);
    Ok(())
}

/// First moments after one step, which are a tenth of its gradient: without clipping.
fn first_moments(
    data: &TensorSamples,
    accumulation: usize,
) -> Result<BTreeMap<String, Tensor>, Box<dyn std::error::Error>> {
    let model = TinyStack::new(3, 6, 2, 1)?;
    let objective = Objective::Aligned { weights: LayerWeights::Linear };
    let config = TrainConfig { batch_size: 14, accumulation, objective, clip_norm: None, ..config() };
    let folder = tempdir()?;
    train_until(1, &model, model.params(), data, &config, folder.path())?;
    let saved = safetensors::load(folder.path().join("state.safetensors"), &Cpu)?;
    Ok(saved.into_iter().filter(|(name, _)| name.starts_with("m.")).collect())
}

#[test]
fn micro_batches_add_up_to_the_batch() -> Done {
    let data = two_classes(14, 6, 3);
    let whole = first_moments(&data, 1)?;
    assert_eq!(whole.len(), 8);
    // Parts of 7 and 7; of 5, 5 and 4; of 4, 4, 4 and 2; single samples; and no more parts than samples.
    for accumulation in [2, 3, 4, 14, 100] {
        let parts = first_moments(&data, accumulation)?;
        for (name, want) in &whole {
            // Up to 14 gradients of about 1, added in f32.
            assert_close(&parts[name], want, 1e-6)?;
        }
    }
    Ok(())
}

#[test]
fn records_do_not_depend_on_accumulation() -> Done {
    let data = two_classes(20, 6, 3);
    let run = |accumulation| {
        let model = TinyStack::new(3, 6, 2, 1)?;
        let config = TrainConfig { epochs: 1, accumulation, ..config() };
        records(&model, model.params(), &data, &config)
    };
    // Steps of 8, 8 and 4 samples.
    for (one, three) in run(1)?.iter().zip(&run(3)?) {
        assert_eq!((one.step, one.epoch, one.lr), (three.step, three.epoch, three.lr));
        // Losses of about 1 in f32, after up to two updates whose gradients differ by rounding.
        assert!((one.loss - three.loss).abs() < 1e-5);
        assert!((one.grad_norm - three.grad_norm).abs() < 1e-5);
        for pair in one.per_layer.iter().zip(&three.per_layer) {
            let (Some(a), Some(b)) = pair else {
                assert_eq!(pair, (&None, &None));
                continue;
            };
            assert!((a - b).abs() < 1e-5);
        }
    }
    Ok(())
}

#[test]
fn an_exit_weighed_in_some_micro_batches_reports_its_mean_loss() -> Done {
    // All samples are one sample: whichever part an exit sees, its mean loss is that of the sample.
    let inputs = random(1, &[1, 6]).repeat((6, 1))?;
    let data = TensorSamples { inputs, labels: Tensor::zeros(6, DType::U32, &Cpu)? };
    let model = TinyStack::new(2, 6, 2, 1)?;
    let batch = Batch::from(data.inputs.narrow(0, 0, 1)?);
    let want = loss(&model, &batch, &data.labels.narrow(0, 0, 1)?, &[0.5, 0.5], 0., Pass::EVAL)?.per_layer;
    let objective = Objective::Alternating { weights: LayerWeights::Linear, unit: Unit::MicroBatch };
    let config = TrainConfig { epochs: 1, batch_size: 6, accumulation: 3, objective, ..config() };
    let got = &records(&model, model.params(), &data, &config)?[0].per_layer;
    for (got, want) in got.iter().zip(&want) {
        assert!((got.unwrap() - want.unwrap()).abs() < 1e-6, "{got:?} instead of {want:?}");
    }
    Ok(())
}

#[test]
fn gradients_leave_the_graph_and_absent_ones_stay_absent() -> Done {
    let model = TinyStack::new(2, 6, 2, 1)?;
    let data = two_classes(4, 6, 1);
    let first_only = loss(&model, &data.inputs.into(), &data.labels, &[1., 0.], 0., Pass::EVAL)?;
    let gradients = take_gradients(first_only.total.backward()?, model.params());
    let names: Vec<&str> = gradients.keys().map(String::as_str).collect();
    assert_eq!(names, ["block.1.bias", "block.1.weight", "head.bias", "head.weight"]);
    assert!(gradients.values().all(|gradient| !gradient.track_op()));
    let mut sum = Gradients::new();
    accumulate(&mut sum, gradients.clone())?;
    accumulate(&mut sum, gradients.clone())?;
    for (name, gradient) in &gradients {
        assert_close(&sum[name], &(gradient * 2.)?, 0.)?;
    }
    Ok(())
}

#[test]
fn moments_are_in_the_order_of_names() -> Done {
    let model = TinyStack::new(12, 4, 2, 1)?;
    let optimiser = AdamW::new(model.params(), AdamWConfig::default())?;
    let moments: Vec<&str> = optimiser.moments().map(|(name, ..)| name).collect();
    assert!(moments.is_sorted());
    assert!(moments.into_iter().eq(model.params().iter().map(|(name, _)| name)));
    Ok(())
}
