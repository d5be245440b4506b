//! Clipping, decay groups, accumulation and the order of the optimiser's state.

mod common;

use std::{cell::RefCell, collections::BTreeMap};

use candle_core::{DType, Device::Cpu, Tensor, Var, safetensors};
use layerwise_models::{Batch, ExitNorm, Heads, Params, Pass, VitConfig};
use layerwise_testkit::{TinyStack, assert_close, random, tiny_vit, tiny_vit_config};
use layerwise_train::{
    AdamW, AdamWConfig, Error, Gradients, Hooks, LayerWeights, Objective, ParamGroup, StepScale,
    TensorSamples, TrainConfig, Unit, accumulate, clip_factor, decays, global_norm, loss, take_gradients,
    train,
};
use tempfile::tempdir;

use crate::common::{Done, Sizes, config, records, train_until, two_classes, values};

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
        let factor = clip_factor(norm, max);
        for gradient in gradients.values_mut() {
            *gradient = (&*gradient * factor)?;
        }
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
    // Whatever they are called, matrices decay; norms do not in any shape.
    assert!(decays("in_proj", &[768, 2304]) && decays("w", &[2, 2]) && !decays("w", &[2]));
    assert!(!decays("encoder.LayerNorm.gamma", &[1, 768]) && !decays("ln.norm", &[1, 768]));
}

/// Equivalent Python, everything in float64:
///
/// ```python
/// P = {"body.bias": [0.1, -0.2], "body.weight": [[0.5, -1.0], [2.0, 0.25]], "head.bias": [0.3, -0.7],
///      "head.weight": [[1.0, -0.5], [0.75, -2.0]], "tail.bias": [0.6], "tail.weight": [[-1.5, 0.4]]}
/// P = {n: torch.nn.Parameter(torch.tensor(v)) for n, v in P.items()}
/// o = torch.optim.AdamW([
///     dict(params=[P["body.bias"], P["body.weight"]], lr=0.1 * 0.25, weight_decay=0.3),
///     dict(params=[P["head.bias"]], lr=0.1 * 2, weight_decay=0.), dict(params=[P["head.weight"]], lr=0.1 * 2),
///     dict(params=[P["tail.bias"]], weight_decay=0.), dict(params=[P["tail.weight"]])], lr=0.1, weight_decay=0.05)
/// for step in range(3):
///     for p in P.values(): p.grad = torch.cos(p.detach() * 3 + step)
///     o.step()
/// print({n: p.tolist() for n, p in P.items()})
/// ```
#[test]
fn parameter_groups_equal_pytorchs() -> Done {
    let start: [(&str, &[usize], &[f64]); 6] = [
        ("body.bias", &[2], &[0.1, -0.2]),
        ("body.weight", &[2, 2], &[0.5, -1., 2., 0.25]),
        ("head.bias", &[2], &[0.3, -0.7]),
        ("head.weight", &[2, 2], &[1., -0.5, 0.75, -2.]),
        ("tail.bias", &[1], &[0.6]),
        ("tail.weight", &[1, 2], &[-1.5, 0.4]),
    ];
    let want: [&[f64]; 6] = [
        &[0.043946829642770455, -0.26758786054555267],
        &[0.5016710990887052, -0.9262308389544245, 1.8857533427713717, 0.2108785503643374],
        &[-0.18446126692173748, -0.6847788143275102],
        &[1.3158571906975054, -1.0213067830911358, 1.1835548869002759, -2.5130410597693524],
        &[0.8717756908896833],
        &[-1.2093890911642138, 0.35045536115290343],
    ];
    let params = start.iter().map(|(name, dims, values)| {
        Ok((name.to_string(), Var::from_tensor(&Tensor::from_slice(values, *dims, &Cpu)?)?))
    });
    let params: Params = params.collect::<candle_core::Result<_>>()?;
    let groups = vec![group("body.", 0.25, Some(0.3)), group("head.", 2., None)];
    let mut optimiser =
        AdamW::new(&params, AdamWConfig { lr: 0.1, weight_decay: 0.05, groups, ..Default::default() })?;
    for step in 0..3 {
        let gradients = params.iter().map(|(name, var)| {
            let angle = ((var.as_detached_tensor() * 3.)? + f64::from(step))?;
            Ok((name.to_owned(), angle.cos()?))
        });
        let gradients: Gradients = gradients.collect::<candle_core::Result<_>>()?;
        optimiser.step(&params, &gradients, StepScale::default())?;
    }
    for ((name, var), want) in params.iter().zip(want) {
        let got = var.flatten_all()?;
        // A few roundings of f64.
        assert_close(&got, &Tensor::new(want, &Cpu)?, 1e-14).map_err(|e| format!("{name}: {e}"))?;
    }
    Ok(())
}

/// Equivalent Python, everything in float64:
///
/// ```python
/// P = {"body.bias": [0.1, -0.2], "head.bias": [0.3, -0.7]}
/// P = {n: torch.nn.Parameter(torch.tensor(v)) for n, v in P.items()}
/// o = torch.optim.AdamW(P.values(), lr=0.1, weight_decay=0.)
/// for step in range(5):
///     for n, p in P.items(): p.grad = torch.cos(p.detach() * 3 + step) if n == "body.bias" or step % 2 else None
///     o.step()
/// print({n: p.tolist() for n, p in P.items()})
/// ```
#[test]
fn a_parameter_without_a_gradient_in_some_steps_equals_pytorchs() -> Done {
    let params = [("body.bias", [0.1, -0.2]), ("head.bias", [0.3, -0.7])]
        .map(|(name, values)| Ok((name.to_owned(), Var::new(&values, &Cpu)?)));
    let params: Params = params.into_iter().collect::<candle_core::Result<_>>()?;
    let config = AdamWConfig { lr: 0.1, weight_decay: 0., ..Default::default() };
    let mut optimiser = AdamW::new(&params, config)?;
    for step in 0..5 {
        let learns = params.iter().filter(|(name, _)| *name == "body.bias" || step % 2 == 1);
        let gradients = learns.map(|(name, var)| {
            let angle = ((var.as_detached_tensor() * 3.)? + f64::from(step))?;
            Ok((name.to_owned(), angle.cos()?))
        });
        let gradients: Gradients = gradients.collect::<candle_core::Result<_>>()?;
        optimiser.step(&params, &gradients, StepScale::default())?;
    }
    let want = [[-0.14237910840629994, -0.6245384486659249], [0.49900654061469796, -0.8974817788362563]];
    for ((name, var), want) in params.iter().zip(want) {
        assert_close(var, &Tensor::new(&want, &Cpu)?, 1e-14).map_err(|e| format!("{name}: {e}"))?;
    }
    Ok(())
}

fn group(prefix: &str, lr_scale: f64, weight_decay: Option<f64>) -> ParamGroup {
    ParamGroup { prefix: prefix.into(), lr_scale, weight_decay }
}

/// Trains a small stack with these groups; the names of the parameters that stay as they were.
fn frozen(groups: Vec<ParamGroup>) -> layerwise_train::Result<Vec<String>> {
    let model = TinyStack::new(2, 6, 2, 1)?;
    let before = values(model.params());
    let optimiser = AdamWConfig { groups, ..config().optimiser };
    let config = TrainConfig { optimiser, ..config() };
    train(&model, model.params(), &two_classes(8, 6, 1), &config, None, Hooks::default())?;
    let still = before.into_iter().zip(values(model.params())).filter(|(before, after)| before == after);
    Ok(still.map(|((name, _), _)| name).collect())
}

#[test]
fn a_learning_rate_of_nothing_freezes_and_the_first_group_counts() -> Done {
    assert!(frozen(vec![])?.is_empty());
    // Not even a decay of its own moves it.
    assert_eq!(frozen(vec![group("block.1.", 0., Some(0.5))])?, ["block.1.bias", "block.1.weight"]);
    let head_only = vec![group("head.", 1., None), group("", 0., None)];
    assert_eq!(frozen(head_only)?, ["block.1.bias", "block.1.weight", "block.2.bias", "block.2.weight"]);
    Ok(())
}

#[test]
fn a_group_that_is_no_parameters_is_named() {
    let body = || group("block.", 0.5, None);
    // A slip, and a group that another one hides.
    for (prefix, groups) in [
        ("haed.", vec![body(), group("haed.", 2., None)]),
        ("block.1.", vec![body(), group("block.1.", 2., None)]),
    ] {
        let error = frozen(groups).unwrap_err();
        assert!(matches!(&error, Error::Setting { field: "optimiser.groups.prefix", .. }), "{error}");
        assert!(error.to_string().contains(&format!("{prefix:?}")), "{error}");
    }
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
    optimiser.step(&params, &zeros, StepScale { lr: 0.5, ..Default::default() })?;
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
    // Parts of 7 and 7; of 4, 5 and 5; of 3, 4, 3 and 4; single samples; and no more parts than samples.
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
fn a_step_has_as_many_parts_as_it_was_told() -> Done {
    for (n, accumulation, want) in [
        (9, 1, &[9][..]),
        (9, 2, &[4, 5]),
        (9, 6, &[1, 2, 1, 2, 1, 2]),
        (9, 8, &[1, 1, 1, 1, 1, 1, 1, 2]),
        (3, 6, &[1, 1, 1]),
    ] {
        let data = Sizes(two_classes(n, 6, 3), RefCell::default());
        let model = TinyStack::new(2, 6, 2, 1)?;
        let config = TrainConfig { epochs: 1, batch_size: 9, accumulation, ..config() };
        train(&model, model.params(), &data, &config, None, Hooks::default())?;
        // The audit looks at the first of them.
        let (audit, step) = (&data.1.borrow()[..1], &data.1.borrow()[1..]);
        assert_eq!((audit, step), (&want[..1], want), "{n} samples in {accumulation}");
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
    let want = loss(&model, &batch, &data.labels.narrow(0, 0, 1)?, &vec![0.5, 0.5].into(), 0., Pass::EVAL)?
        .per_layer;
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
    let first_only = loss(&model, &data.inputs.into(), &data.labels, &vec![1., 0.].into(), 0., Pass::EVAL)?;
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
