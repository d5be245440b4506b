//! The tap trait's own parts: selecting rows, dropout by place, and the order of the layers.

mod common;

use std::collections::HashSet;

use candle_core::{Device::Cpu, Tensor};
use common::{Result, tiny, tiny_mlp};
use layerwise_models::{Batch, ExitNorm, Hidden, Mlp, MlpConfig, Pass, Tapped, Vit, VitConfig, tap};
use layerwise_ops::{dropout, init};
use layerwise_testkit::assert_close;

#[test]
fn select_takes_rows_of_state_and_mask_in_order() -> Result {
    let model = common::mlp(tiny_mlp())?;
    let xs = Tensor::arange(0f32, 24., &Cpu)?.reshape((4, 3, 2))?;
    let mask = Tensor::new(&[[1u8, 1, 1], [1, 1, 0], [1, 0, 0], [0, 0, 0]], &Cpu)?;
    let rows = Tensor::new(&[3u32, 1, 1], &Cpu)?;
    let picked = model.select(&Hidden { xs: xs.clone(), mask: Some(mask) }, &rows)?;
    let row = |from: f32| vec![vec![from, from + 1.], vec![from + 2., from + 3.], vec![from + 4., from + 5.]];
    assert_eq!(picked.xs.to_vec3::<f32>()?, [row(18.), row(6.), row(6.)]);
    let mask = picked.mask.ok_or("the mask is lost")?;
    assert_eq!(mask.to_vec2::<u8>()?, [[0, 0, 0], [1, 1, 0], [1, 1, 0]]);

    // A state need not be contiguous.
    let across = Hidden { xs: xs.transpose(0, 1)?, mask: None };
    let picked = model.select(&across, &Tensor::new(&[2u32], &Cpu)?)?;
    assert_eq!(picked.xs.to_vec3::<f32>()?, [[[4., 5.], [10., 11.], [16., 17.], [22., 23.]]]);
    assert!(picked.mask.is_none());
    let none = model.select(&across, &Tensor::zeros(0, candle_core::DType::U32, &Cpu)?)?;
    assert_eq!(none.xs.dims(), [0, 4, 2]);
    assert!(model.select(&across, &Tensor::new(&[3u32], &Cpu)?).is_err());
    Ok(())
}

#[test]
fn selected_samples_go_on_as_if_alone() -> Result {
    let model = common::vit(tiny())?;
    let batch = common::pixels(4)?;
    let rows = Tensor::new(&[2u32, 0], &Cpu)?;
    let states = tap::hidden_states(&model, &batch, Pass::EVAL)?;
    let some = Batch::from(batch.inputs.index_select(&rows, 0)?);
    let want = tap::hidden_states(&model, &some, Pass::EVAL)?;
    for (all, want) in states.iter().zip(&want) {
        // A matrix product of fewer rows may sum its 48 terms or fewer in another order: 1e-6 in f32, three blocks deep.
        assert_close(&model.select(all, &rows)?.xs, &want.xs, 1e-5)?;
    }
    Ok(())
}

#[test]
fn states_are_those_of_models_cut_at_every_layer() -> Result {
    let model = common::vit(tiny())?;
    let batch = common::pixels(2)?;
    let states = tap::hidden_states(&model, &batch, Pass::EVAL)?;
    assert_eq!(states.len(), 4);
    for k in 1..=3 {
        let cut = tap::hidden_states(&model.cut(k)?, &batch, Pass::EVAL)?;
        assert_eq!(cut.len(), k + 1);
        for (got, want) in cut.iter().zip(&states) {
            assert_eq!(got.xs.to_vec3::<f32>()?, want.xs.to_vec3::<f32>()?);
        }
        assert_ne!(states[k].xs.to_vec3::<f32>()?, states[k - 1].xs.to_vec3::<f32>()?);
    }
    let last = tap::layer_logits(&model, &batch, Pass::EVAL)?.pop().ok_or("no exit")?;
    assert_eq!(tap::forward(&model, &batch, Pass::EVAL)?.to_vec2::<f32>()?, last.to_vec2::<f32>()?);
    Ok(())
}

/// By hand. From the third sample: `h^0 = (2, 5)`; block 1 adds `(1, 7)`, block 2 `(3 + 2 * 12, 12)`: `h^2 = (30, 24)`.
#[test]
fn an_mlp_computes_what_it_says() -> Result {
    for (residual, want) in [(true, [2., 6., 18.]), (false, [0., -1., -1.])] {
        let config =
            MlpConfig { inputs: 2, width: 2, layers: 2, classes: 1, residual, ..MlpConfig::default() };
        let model = Mlp::new(config, &mut init::rng(0), &Cpu)?;
        let set = |name: &str, weight: [[f32; 2]; 2], bias: [f32; 2]| -> Result {
            let var = |part: &str| model.params().get(&format!("{name}.{part}")).ok_or("no such parameter");
            var("weight")?.set(&Tensor::new(&weight, &Cpu)?)?;
            Ok(var("bias")?.set(&Tensor::new(&bias, &Cpu)?)?)
        };
        set("input", [[1., 0.], [0., 1.]], [1., 1.])?;
        set("layers.0", [[2., 0.], [0., 2.]], [-3., -3.])?;
        set("layers.1", [[1., 2.], [0., 1.]], [0., 0.])?;
        let head = model.params().get("classifier.weight").ok_or("no head")?;
        head.set(&Tensor::new(&[[-1f32, 2.]], &Cpu)?)?;
        let batch = Batch::from(Tensor::new(&[[-5f32, 0.], [1., 2.], [1., 4.]], &Cpu)?);
        let last = tap::forward(&model, &batch, Pass::EVAL)?.flatten_all()?;
        assert_eq!(last.to_vec1::<f32>()?, want, "residual {residual}");
    }
    Ok(())
}

#[test]
fn evaluation_and_probability_0_drop_nothing() -> Result {
    assert_eq!(Pass::EVAL.dropout_at(0.5, 1, 1), None);
    assert_eq!(Pass::default(), Pass::EVAL);
    assert_eq!(Pass::train(1).dropout_at(0., 1, 1), None);
    let xs = Tensor::arange(0f32, 8., &Cpu)?;
    assert_eq!(Pass::EVAL.dropout(&xs, 0.5, 1, 1)?.to_vec1::<f32>()?, xs.to_vec1::<f32>()?);
    for p in [1., 1.5, -0.1, f64::NAN] {
        assert!(Pass::train(1).dropout(&xs, p, 1, 1).is_err(), "{p}");
    }
    Ok(())
}

#[test]
fn no_two_places_share_a_mask() -> Result {
    let seeds = |seed: u64| {
        let places = (0..200).flat_map(|layer| [0, 1, 2, 3, 254, 255].map(|site| (layer, site)));
        places.filter_map(move |(layer, site)| Pass::train(seed).dropout_at(0.5, layer, site)).map(|d| d.seed)
    };
    let all: HashSet<u64> = (0..20).flat_map(seeds).collect();
    assert_eq!(all.len(), 20 * 200 * 6);
    assert!(seeds(7).eq(seeds(7)));

    // Independent masks of p = 1/2 agree on half of the places: 5000 of 10000, give or take 50.
    let ones = Tensor::ones(10_000, candle_core::DType::F32, &Cpu)?;
    let mask = |seed, layer, site| -> Result<Vec<f32>> {
        let config = Pass::train(seed).dropout_at(0.5, layer, site).ok_or("no dropout")?;
        Ok(dropout(&ones, config)?.to_vec1()?)
    };
    let first = mask(1, 1, 1)?;
    for (seed, layer, site) in [(1, 1, 2), (1, 2, 1), (1, 0, 0), (1, 0, 1), (2, 1, 1)] {
        let agree = mask(seed, layer, site)?.iter().zip(&first).filter(|(a, b)| a == b).count();
        assert!((4750..=5250).contains(&agree), "seed {seed}, layer {layer}, site {site}: {agree}");
    }
    Ok(())
}

#[test]
fn dropout_works_at_every_site_of_a_vit_with_masks_of_its_own() -> Result {
    let config = VitConfig { hidden_dropout_prob: 0.25, ..tiny() };
    let (batch, pass) = (common::pixels(16)?, Pass::train(5));
    let model = common::vit(config.clone())?;
    let hidden = model.embed(&batch, Pass::EVAL)?;
    let nothing = hidden.xs.zeros_like()?;
    let mut masks = vec![dropped(&hidden.xs, &model.embed(&batch, pass)?.xs, &nothing)?];
    // With one of a block's two updates silenced, its output is the input plus the other, dropped or scaled.
    for silenced in ["attention.output.dense", "output.dense"] {
        for layer in [1, 2] {
            let model = common::vit(config.clone())?;
            for part in ["weight", "bias"] {
                let name = format!("vit.encoder.layer.{}.{silenced}.{part}", layer - 1);
                let var = model.params().get(&name).ok_or("no such parameter")?;
                var.set(&var.as_detached_tensor().zeros_like()?)?;
            }
            let eval = model.block(layer, &hidden, Pass::EVAL)?;
            let train = model.block(layer, &hidden, pass)?;
            masks.push(dropped(&eval.xs, &train.xs, &hidden.xs)?);
        }
    }
    for (i, mask) in masks.iter().enumerate() {
        // A quarter of 960 elements, give or take five deviations of 13.
        let share = mask.iter().filter(|dropped| **dropped).count() as f64 / mask.len() as f64;
        assert!((share - 0.25).abs() < 0.07, "site {i}: {share}");
        assert!(!masks[..i].contains(mask), "site {i} has the mask of another");
    }
    Ok(())
}

#[test]
fn equal_seeds_train_alike_and_others_do_not() -> Result {
    let batch = common::pixels(2)?;
    let hidden = VitConfig { hidden_dropout_prob: 0.5, ..tiny() };
    let attention = VitConfig { attention_probs_dropout_prob: 0.5, ..tiny() };
    let run = |model: &Vit, pass| -> Result<_> { Ok(tap::forward(model, &batch, pass)?.to_vec2::<f32>()?) };
    let plain = run(&common::vit(tiny())?, Pass::train(1))?;
    for config in [hidden, attention] {
        let model = common::vit(config)?;
        assert_eq!(run(&model, Pass::EVAL)?, plain);
        assert_eq!(run(&model, Pass::train(1))?, run(&model, Pass::train(1))?);
        assert_ne!(run(&model, Pass::train(1))?, run(&model, Pass::train(2))?);
        assert_ne!(run(&model, Pass::train(1))?, plain);
        // Blocks that are alike still draw masks of their own.
        let state = model.embed(&batch, Pass::EVAL)?;
        for (name, var) in model.params().iter().filter(|(name, _)| name.contains("layer.1.")) {
            var.set(model.params().get(&name.replace("layer.1.", "layer.0.")).ok_or("no such parameter")?)?;
        }
        let block = |layer, pass| -> Result<_> { Ok(model.block(layer, &state, pass)?.xs.to_vec3::<f32>()?) };
        assert_eq!(block(1, Pass::EVAL)?, block(2, Pass::EVAL)?);
        assert_ne!(block(1, Pass::train(1))?, block(2, Pass::train(1))?);
    }
    Ok(())
}

/// Which elements of `train` are `base`; fails unless the others are `base + (eval - base) / (1 - 1/4)`.
fn dropped(eval: &Tensor, train: &Tensor, base: &Tensor) -> Result<Vec<bool>> {
    let flat = |xs: &Tensor| -> candle_core::Result<Vec<f32>> { xs.flatten_all()?.to_vec1() };
    let of_element = |((eval, train), base): ((f32, f32), f32)| {
        let scaled = base + (eval - base) / 0.75;
        // A handful of roundings of numbers below 8.
        match ((train - base).abs() < 1e-5, (train - scaled).abs() < 1e-5) {
            (true, _) => Ok(true),
            (false, true) => Ok(false),
            (false, false) => Err(format!("{train} is neither {base} nor {scaled}").into()),
        }
    };
    flat(eval)?.into_iter().zip(flat(train)?).zip(flat(base)?).map(of_element).collect()
}

#[test]
fn split_cuts_all_parts_of_a_batch_alike() -> Result {
    let ids = Tensor::arange(0u32, 14, &Cpu)?.reshape((7, 2))?;
    let whole = Batch { inputs: ids.clone(), mask: Some((&ids * 2.)?), token_types: Some(ids.clone()) };
    let parts = whole.split(3)?;
    let join = |part: fn(&Batch) -> &Tensor| {
        Tensor::cat(&parts.iter().map(part).collect::<Vec<_>>(), 0)?.to_vec2::<u32>()
    };
    assert_eq!(parts.iter().map(|part| part.rows()).collect::<candle_core::Result<Vec<_>>>()?, [3, 3, 1]);
    assert_eq!(join(|part| &part.inputs)?, ids.to_vec2::<u32>()?);
    assert_eq!(join(|part| part.mask.as_ref().unwrap())?, (&ids * 2.)?.to_vec2::<u32>()?);
    assert_eq!(join(|part| part.token_types.as_ref().unwrap())?, ids.to_vec2::<u32>()?);
    assert!(whole.split(0).is_err());
    assert!(Batch::from(ids.narrow(0, 0, 0)?).split(3)?.is_empty());
    Ok(())
}

#[test]
fn a_packed_model_answers_alike_and_stands_alone() -> Result {
    for exit_norm in [ExitNorm::Shared, ExitNorm::Raw, ExitNorm::PerLayer] {
        let model = common::vit(VitConfig { exit_norm, ..tiny() })?;
        let batch = common::pixels(3)?;
        let logits = |model: &Vit| -> Result<Tensor> {
            let exits = tap::layer_logits(model, &batch, Pass::EVAL)?;
            assert!(exits.iter().all(|exit| !exit.track_op()));
            Ok(Tensor::stack(&exits, 0)?)
        };
        let bits = |xs: &Tensor| xs.to_vec3::<f32>();
        let packed = model.packed()?;
        let (want, got) = (logits(&model.frozen())?, logits(&packed)?);
        // Sums of 12 terms in another order.
        assert_close(&got, &want, 1e-5)?;
        let states = tap::hidden_states(&packed, &batch, Pass::EVAL)?;
        for (layer, state) in states.iter().enumerate().skip(1) {
            assert_eq!(packed.answer(layer, state)?.to_vec2::<f32>()?, got.get(layer - 1)?.to_vec2::<f32>()?);
            assert_close(&model.answer(layer, state)?, &want.get(layer - 1)?, 1e-5)?;
        }
        if exit_norm != ExitNorm::Raw {
            assert_eq!(bits(&logits(&packed.cut(2)?)?)?, bits(&got.narrow(0, 0, 2)?)?);
        }
        assert_close(&logits(&packed.cut(2)?)?, &logits(&model.cut(2)?.frozen())?, 1e-5)?;
        for (_, var) in model.params().iter() {
            var.set(&(var.as_detached_tensor() * 2.)?)?;
        }
        assert_ne!(bits(&logits(&model.frozen())?)?, bits(&want)?);
        assert_eq!(bits(&logits(&packed)?)?, bits(&got)?);
    }
    Ok(())
}
