//! Mixed precision: bf16 computes, f32 masters learn.

mod common;

use candle_core::{DType, Device::Cpu, Tensor};
use layerwise_models::{Gpt2, Gpt2Config, Mlp, MlpConfig, Params, Vit, VitConfig};
use layerwise_ops::init;
use layerwise_testkit::{random, tiny_vit, tiny_vit_config};
use layerwise_train::{
    AdamW, AdamWConfig, Error, Gradients, Hooks, LayerWeights, Objective, StepScale, TensorSamples,
    TrainConfig, accumulate, train,
};
use tempfile::tempdir;

use crate::common::{Done, config, records, state, train_until};

/// Images of five classes, each with its own mean.
fn images() -> Done<TensorSamples> {
    let labels = Tensor::from_iter((0..40u32).map(|i| i % 5), &Cpu)?;
    let means = random(7, &[5, 3, 8, 8]).index_select(&labels, 0)?;
    Ok(TensorSamples { inputs: (means + (random(8, &[40, 3, 8, 8]) * 0.5)?)?, labels })
}

fn settings() -> TrainConfig {
    TrainConfig {
        objective: Objective::Aligned { weights: LayerWeights::Linear },
        epochs: 6,
        accumulation: 2,
        ..config()
    }
}

fn vit() -> Vit {
    tiny_vit(VitConfig { initializer_range: 0.1, ..tiny_vit_config() }, 1)
}

/// Every parameter is its master, rounded.
fn rounded(params: &Params) -> Done {
    for ((name, var), (_, master)) in params.iter().zip(params.masters()) {
        assert_eq!((var.dtype(), master.dtype()), (DType::BF16, DType::F32), "{name}");
        let wide = |xs: &Tensor| xs.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>();
        assert_eq!(wide(var)?, wide(&master.to_dtype(DType::BF16)?)?, "{name}");
    }
    Ok(())
}

#[test]
fn losses_follow_those_of_f32() -> Done {
    let data = images()?;
    let wide = vit();
    let want = records(&wide, wide.params(), &data, &settings())?;
    let masters = vit();
    let computes = masters.mixed(DType::BF16)?;
    let got = records(&computes, computes.params(), &data, &settings())?;
    assert_eq!(got.len(), want.len());
    for (got, want) in got.iter().zip(&want) {
        // bf16 has 8 bits; a loss is a mean of numbers of either sign.
        assert!((got.loss - want.loss).abs() < 0.03, "step {}: {} and {}", got.step, got.loss, want.loss);
        for (got, want) in got.per_layer.iter().zip(&want.per_layer) {
            assert!((got.unwrap_or(f64::NAN) - want.unwrap_or(f64::NAN)).abs() < 0.05);
        }
    }
    let (first, last) = (want[0].loss, want[want.len() - 1].loss);
    assert!(last < 0.7 * first, "nothing was learned: {first} to {last}");
    rounded(computes.params())?;
    // The model that it was made of has learned.
    for ((name, master), (_, start)) in masters.params().iter().zip(vit().params().iter()) {
        let moved = (master.as_tensor() - start.as_tensor())?.abs()?.max_all()?.to_scalar::<f32>()?;
        assert!(moved > 0., "{name}");
    }
    Ok(())
}

#[test]
fn steps_smaller_than_a_rounding_add_up() -> Done {
    let master: Params =
        [("w".to_owned(), candle_core::Var::from_tensor(&Tensor::ones(3, DType::F32, &Cpu)?)?)]
            .into_iter()
            .collect();
    let params = master.mixed(DType::BF16)?;
    let config = AdamWConfig { lr: 1e-4, weight_decay: 0., ..Default::default() };
    let mut adamw = AdamW::new(&params, config)?;
    let gradients: Gradients = [("w".to_owned(), Tensor::ones(3, DType::BF16, &Cpu)?)].into();
    for _ in 0..100 {
        adamw.step(&params, &gradients, StepScale::default())?;
    }
    // Each step is `lr`, of which bf16 knows nothing beside 1.
    for value in master.get("w").ok_or("no w")?.to_vec1::<f32>()? {
        assert!((value - 0.99).abs() < 1e-5, "{value}");
    }
    rounded(&params)
}

#[test]
fn micro_batches_add_up_in_f32() -> Done {
    let one = |x: f32| -> Done<Gradients> {
        Ok([("w".to_owned(), Tensor::new(&[x], &Cpu)?.to_dtype(DType::BF16)?)].into())
    };
    let mut sum = one(256.)?;
    // In bf16 256 + 1 is 256.
    for _ in 0..3 {
        accumulate(&mut sum, one(1.)?)?;
    }
    assert_eq!(sum["w"].to_dtype(DType::F32)?.to_vec1::<f32>()?, [259.]);
    Ok(())
}

#[test]
fn a_run_goes_on_with_the_same_bits_and_in_no_other_type() -> Done {
    let data = images()?;
    let run = |last: usize, folder: &std::path::Path| {
        let computes = vit().mixed(DType::BF16).expect("a copy");
        train_until(last, &computes, computes.params(), &data, &settings(), folder)
    };
    let (whole, parts) = (tempdir()?, tempdir()?);
    run(usize::MAX, whole.path())?;
    for last in [1, 7, usize::MAX] {
        run(last, parts.path())?;
    }
    assert!(state(whole.path()) == state(parts.path()));
    let wide = vit();
    let error = train(&wide, wide.params(), &data, &settings(), Some(parts.path()), Hooks::default());
    match error {
        Err(Error::Config { field, saved, given, .. }) => {
            assert_eq!(
                (field.as_str(), saved.as_str(), given.as_str()),
                ("dtype", "bf16", "the parameters' own")
            );
        }
        other => panic!("{other:?}"),
    }
    Ok(())
}

#[test]
fn what_cannot_be_trained_in_16_bits_is_said() -> Done {
    let expect = |params: &Params, value: &str| match AdamW::new(params, AdamWConfig::default()) {
        Err(Error::Setting { field: "params", value: found, .. }) => {
            assert!(found.starts_with(value), "{found}")
        }
        other => panic!("{other:?}"),
    };
    let vit = vit();
    expect(vit.mixed(DType::F16)?.params(), "F16 `");
    // Masters that were taken away.
    let bare: Params =
        vit.mixed(DType::BF16)?.params().iter().map(|(name, var)| (name.to_owned(), var.clone())).collect();
    expect(&bare, "BF16 `");
    Ok(())
}

#[test]
fn models_of_bf16_keep_their_masters_whatever_is_made_of_them() -> Done {
    let wide = vit();
    let computes = wide.mixed(DType::BF16)?;
    rounded(computes.params())?;
    rounded(computes.cut(2)?.params())?;
    rounded(computes.resized(16)?.params())?;
    rounded(computes.copied()?.params())?;
    let prior = computes.copied()?.with_prior(&[0.1, 0.2, 0.3, 0.4, 0.5])?;
    rounded(prior.params())?;
    assert_eq!(prior.params().master("classifier.bias").ok_or("no bias")?.to_vec1::<f32>()?[1], 0.2);
    let gpt2 = Gpt2Config {
        vocab_size: 20,
        n_embd: 12,
        n_head: 3,
        n_layer: 2,
        n_positions: 8,
        ..Default::default()
    };
    let gpt2 = Gpt2::new(gpt2, &mut init::rng(1), &Cpu)?;
    rounded(gpt2.mixed(DType::BF16)?.with_vocabulary(15)?.params())?;
    let mlp = Mlp::new(
        MlpConfig { inputs: 12, width: 8, layers: 3, ..Default::default() },
        &mut init::rng(1),
        &Cpu,
    )?;
    rounded(mlp.mixed(DType::BF16)?.cut(2)?.params())?;
    // What is saved is what learned.
    let (a, b) = (tempdir()?, tempdir()?);
    wide.save(a.path())?;
    computes.save(b.path())?;
    let file = |folder: &tempfile::TempDir| std::fs::read(folder.path().join("model.safetensors"));
    assert!(file(&a)? == file(&b)?);
    Ok(())
}
