//! Models survive their folders: saved, loaded, cut, and read by others.

mod common;

use std::{collections::BTreeMap, fs, path::Path};

use candle_core::{DType, Device::Cpu, Tensor};
use common::{Result, change_weights, saved, tiny, tiny_mlp, values};
use layerwise_models::{
    Activation, Error, ExitNorm, Head, Heads, LoadOptions, Loaded, Mlp, MlpConfig, Pass, ShapeMismatch,
    Tapped, Vit, VitConfig, tap,
};
use layerwise_ops::init;
use proptest::{
    prelude::any,
    prop_assert_eq,
    test_runner::{Config, TestCaseError, TestRunner},
};

const NORMS: [ExitNorm; 3] = [ExitNorm::Shared, ExitNorm::Raw, ExitNorm::PerLayer];
const HEADS: [Heads; 2] = [Heads::Shared, Heads::PerLayer];

#[test]
fn saving_and_loading_changes_nothing() -> Result {
    let folder = tempfile::tempdir()?;
    let (first, second) = (folder.path().join("deep/first"), folder.path().join("second"));
    for (exit_norm, heads) in every_exit() {
        let config = VitConfig {
            exit_norm,
            heads,
            hidden_act: Activation::GeluTanh,
            layer_norm_eps: 1e-6,
            hidden_dropout_prob: 0.1,
            attention_probs_dropout_prob: 0.3,
            qkv_bias: false,
            initializer_range: 0.0123,
            id2label: (0..5).map(|id| (id, format!("class \"{id}\""))).collect(),
            ..tiny()
        };
        let model = common::vit(config)?;
        model.save(&first)?;
        let again = Vit::load(&first, &Cpu)?;
        assert_eq!(again.config(), model.config());
        assert_eq!(values(again.params())?, values(model.params())?);
        again.save(&second)?;
        assert_eq!(files(&first)?, files(&second)?);
        model.frozen().save(&second)?;
        assert_eq!(files(&first)?, files(&second)?);
    }
    Ok(())
}

#[test]
fn every_number_and_label_of_a_config_survives() -> Result {
    let folder = tempfile::tempdir()?;
    let numbers = (0f64..1., 0f64..1., 1e-12f64..1e-3, 0f64..10.);
    let cases = (numbers, proptest::collection::vec(any::<String>(), 1..4));
    let config = Config { failure_persistence: None, ..Config::default() };
    TestRunner::new(config).run(&cases, |((hidden, attention, eps, range), labels)| {
        let config = VitConfig {
            hidden_dropout_prob: hidden,
            attention_probs_dropout_prob: attention,
            layer_norm_eps: eps,
            initializer_range: range,
            num_labels: labels.len(),
            id2label: labels.into_iter().enumerate().collect(),
            ..tiny()
        };
        fs::write(folder.path().join(common::CONFIG), config.to_hf().to_string())?;
        prop_assert_eq!(
            VitConfig::from_hf(folder.path()).map_err(|error| TestCaseError::fail(error.to_string()))?,
            config
        );
        Ok(())
    })?;
    Ok(())
}

#[test]
fn the_weights_say_that_they_are_laid_out_as_pytorchs() -> Result {
    let bytes = fs::read(saved()?.path().join(common::WEIGHTS))?;
    let (_, header) = safetensors::SafeTensors::read_metadata(&bytes)?;
    let metadata = header.metadata().as_ref().ok_or("no metadata")?;
    assert_eq!(metadata.get("format").map(String::as_str), Some("pt"));
    Ok(())
}

#[test]
fn an_mlp_survives_too() -> Result {
    let folder = tempfile::tempdir()?;
    let (first, second) = (folder.path().join("first"), folder.path().join("second"));
    for heads in HEADS {
        let config = MlpConfig { heads, residual: false, activation: Activation::Silu, ..tiny_mlp() };
        let model = common::mlp(config)?;
        model.save(&first)?;
        let again = Mlp::load(&first, &Cpu)?;
        assert_eq!(again.config(), model.config());
        assert_eq!(values(again.params())?, values(model.params())?);
        again.save(&second)?;
        assert_eq!(files(&first)?, files(&second)?);
    }
    Ok(())
}

#[test]
fn all_known_names_of_tensors_are_read() -> Result {
    let folder = saved()?;
    let want = values(common::vit(tiny())?.params())?;
    let bare = |name: &str| name.strip_prefix("vit.").unwrap_or(name).to_owned();
    let deit = |name: &str| name.strip_prefix("vit.").map_or(name.to_owned(), |name| format!("deit.{name}"));
    let legacy = |name: &str| match name.contains("layernorm") {
        true => name.replace(".weight", ".gamma").replace(".bias", ".beta"),
        false => name.to_owned(),
    };
    // As in the `named_parameters()` of transformers 5.24.
    let v5 = |name: &str| {
        name.replace("encoder.layer.", "layers.")
            .replace("attention.attention.query", "attention.q_proj")
            .replace("attention.attention.key", "attention.k_proj")
            .replace("attention.attention.value", "attention.v_proj")
            .replace("attention.output.dense", "attention.o_proj")
            .replace("intermediate.dense", "mlp.fc1")
            .replace("output.dense", "mlp.fc2")
    };
    let namings: [&dyn Fn(&str) -> String; 6] =
        [&bare, &deit, &legacy, &v5, &|name| bare(&v5(name)), &|name| deit(&legacy(name))];
    for naming in namings {
        let folder_of_another = tempfile::tempdir()?;
        copy(folder.path(), folder_of_another.path())?;
        change_weights(folder_of_another.path(), |tensors| {
            *tensors =
                std::mem::take(tensors).into_iter().map(|(name, tensor)| (naming(&name), tensor)).collect();
        })?;
        let loaded = Vit::load_with(folder_of_another.path(), &LoadOptions::default(), &Cpu)?;
        assert_eq!(values(loaded.model.params())?, want);
        assert!(loaded.unexpected.is_empty() && loaded.fresh.is_empty());
    }
    Ok(())
}

#[test]
fn weights_of_other_precisions_are_widened_or_narrowed() -> Result {
    let model = common::vit(tiny())?;
    for (_, var) in model.params().iter() {
        // Multiples of 1/64 in [-2, 2] need 8 bits: exact in all four types.
        var.set(&((var.as_detached_tensor() * 64.)?.round()? / 64.)?.clamp(-2f32, 2f32)?)?;
    }
    let want = values(model.params())?;
    for dtype in [DType::F16, DType::BF16, DType::F64] {
        let folder = tempfile::tempdir()?;
        model.save(folder.path())?;
        change_weights(folder.path(), |tensors| {
            for tensor in tensors.values_mut() {
                *tensor = tensor.to_dtype(dtype).unwrap();
            }
        })?;
        let loaded = Vit::load(folder.path(), &Cpu)?;
        assert!(loaded.params().iter().all(|(_, var)| var.dtype() == DType::F32));
        assert_eq!(values(loaded.params())?, want, "{dtype:?}");
    }
    Ok(())
}

#[test]
fn shards_make_one_model() -> Result {
    let folder = saved()?;
    let tensors = common::read_tensors(&folder.path().join(common::WEIGHTS))?;
    fs::remove_file(folder.path().join(common::WEIGHTS))?;
    let shard = |name: &str| match name.contains("layer.1") {
        true => "model-00001-of-00002.safetensors",
        false => "model-00002-of-00002.safetensors",
    };
    let mut shards = BTreeMap::<_, common::Tensors>::new();
    for (name, tensor) in tensors {
        shards.entry(shard(&name)).or_default().insert(name, tensor);
    }
    let names = shards.values().flat_map(BTreeMap::keys);
    let index = serde_json::json!({
        "metadata": {"total_size": 0},
        "weight_map": names.map(|name| (name.clone(), shard(name))).collect::<BTreeMap<_, _>>(),
    });
    fs::write(folder.path().join(common::INDEX), index.to_string())?;
    for (name, tensors) in shards {
        common::write_tensors(&folder.path().join(name), tensors)?;
    }
    let loaded = Vit::load_with(folder.path(), &LoadOptions::default(), &Cpu)?;
    assert_eq!(values(loaded.model.params())?, values(common::vit(tiny())?.params())?);
    assert!(loaded.unexpected.is_empty());

    fs::remove_file(folder.path().join(shard("layer.1")))?;
    let text = Vit::load(folder.path(), &Cpu).unwrap_err().to_string();
    assert!(text.contains(shard("layer.1")), "{text}");
    Ok(())
}

#[test]
fn one_error_lists_all_that_does_not_fit() -> Result {
    let folder = saved()?;
    change_weights(folder.path(), |tensors| {
        let norm = tensors.remove("vit.layernorm.weight").unwrap();
        tensors.remove("vit.encoder.layer.2.output.dense.bias");
        tensors.remove("classifier.bias");
        tensors.insert("classifier.weight".to_owned(), norm.clone());
        tensors.insert("vit.embeddings.mask_token".to_owned(), norm.clone());
        tensors.insert("decoder.0.weight".to_owned(), norm);
    })?;
    let error = Vit::load(folder.path(), &Cpu).unwrap_err();
    let text = error.to_string();
    let Error::Tensors { path, missing, shapes, unexpected } = error else { panic!("{text}") };
    assert_eq!(path, folder.path().join(common::WEIGHTS));
    assert_eq!(
        missing,
        ["vit.encoder.layer.2.output.dense.bias", "vit.layernorm.weight", "classifier.bias"],
        "in the order of the model"
    );
    let name = "classifier.weight".to_owned();
    assert_eq!(shapes, [ShapeMismatch { name, found: vec![12], expected: vec![5, 12] }]);
    assert_eq!(unexpected, ["decoder.0.weight", "vit.embeddings.mask_token"]);
    for part in missing.iter().chain(&unexpected) {
        assert!(text.contains(part), "{text}");
    }
    assert!(text.contains("has shape [12], expected [5, 12]") && !text.contains('\n'), "{text}");
    Ok(())
}

#[test]
fn a_fresh_head_replaces_the_folders() -> Result {
    let folder = saved()?;
    let load = |labels, seed, heads| {
        let options = LoadOptions { head: Head::Fresh { labels, seed }, heads, ..LoadOptions::default() };
        Vit::load_with(folder.path(), &options, &Cpu)
    };
    let Loaded { model, unexpected, fresh } = load(7, 1, None)?;
    assert_eq!(fresh, ["classifier.weight", "classifier.bias"]);
    assert!(unexpected.is_empty());
    assert_eq!(model.config().num_labels, 7);
    assert_eq!(model.params().get("classifier.weight").unwrap().dims(), [7, 12]);
    assert_eq!(tap::forward(&model, &common::pixels(2)?, Pass::EVAL)?.dims(), [2, 7]);
    let of_backbone = |model: &Vit| -> Result<_> {
        let mut all = values(model.params())?;
        all.retain(|(name, ..)| name.starts_with("vit."));
        Ok(all)
    };
    assert_eq!(of_backbone(&model)?, of_backbone(&common::vit(tiny())?)?);
    assert_eq!(values(load(7, 1, None)?.model.params())?, values(model.params())?, "equal seeds");
    assert_ne!(values(load(7, 2, None)?.model.params())?, values(model.params())?, "other seeds");

    let own = load(7, 1, Some(Heads::PerLayer))?;
    assert_eq!(own.fresh.len(), 6);
    assert!(own.unexpected.is_empty());
    let weight = |name: &str| own.model.params().get(name).unwrap().to_vec2::<f32>();
    assert_ne!(weight("exits.1.classifier.weight")?, weight("exits.2.classifier.weight")?);

    // What a wish replaces is not unexpected, be it ever so many heads.
    let many = tempfile::tempdir()?;
    own.model.save(many.path())?;
    let head = Head::Fresh { labels: 2, seed: 1 };
    let options = LoadOptions { head, heads: Some(Heads::Shared), ..LoadOptions::default() };
    let loaded = Vit::load_with(many.path(), &options, &Cpu)?;
    assert!(loaded.unexpected.is_empty() && loaded.fresh.len() == 2);
    Ok(())
}

#[test]
fn without_a_head_there_are_features_and_no_logits() -> Result {
    let folder = saved()?;
    for heads in [None, Some(Heads::PerLayer)] {
        let options = LoadOptions { head: Head::None, heads, ..LoadOptions::default() };
        let Loaded { model, unexpected, fresh } = Vit::load_with(folder.path(), &options, &Cpu)?;
        assert_eq!(unexpected, ["classifier.bias", "classifier.weight"]);
        assert!(fresh.is_empty());
        let batch = common::pixels(2)?;
        let want = tap::features(&common::vit(tiny())?, &batch, Pass::EVAL)?;
        for (got, want) in tap::features(&model, &batch, Pass::EVAL)?.iter().zip(&want) {
            assert_same(got, want)?;
        }
        let text = tap::forward(&model, &batch, Pass::EVAL).unwrap_err().to_string();
        assert!(text.starts_with("the model has no classifier"), "{text}");

        let headless = tempfile::tempdir()?;
        model.save(headless.path())?;
        let again = Vit::load(headless.path(), &Cpu)?;
        assert_eq!(values(again.params())?, values(model.params())?);
    }
    Ok(())
}

#[test]
fn exits_of_their_own_start_alike_and_survive() -> Result {
    let (folder, again) = (saved()?, tempfile::tempdir()?);
    let shared = Vit::load(folder.path(), &Cpu)?;
    let batch = common::pixels(2)?;
    let want = tap::layer_logits(&shared, &batch, Pass::EVAL)?;
    let options = LoadOptions {
        exit_norm: Some(ExitNorm::PerLayer),
        heads: Some(Heads::PerLayer),
        ..LoadOptions::default()
    };
    let Loaded { model, unexpected, fresh } = Vit::load_with(folder.path(), &options, &Cpu)?;
    assert!(unexpected.is_empty() && fresh.is_empty());
    assert_eq!(model.params().len(), shared.params().len() + 8);
    for (got, want) in tap::layer_logits(&model, &batch, Pass::EVAL)?.iter().zip(&want) {
        assert_same(got, want)?;
    }
    // Alike, but not the same: each is trained by itself, kept by a folder, and not overwritten by a second wish.
    let var = model.params().get("exits.2.classifier.bias").unwrap();
    var.set(&(var.as_detached_tensor() + 1.)?)?;
    assert_ne!(
        values(model.params())?,
        values(Vit::load_with(folder.path(), &options, &Cpu)?.model.params())?
    );
    model.save(again.path())?;
    for options in [LoadOptions::default(), options] {
        let loaded = Vit::load_with(again.path(), &options, &Cpu)?;
        assert_eq!(loaded.model.config(), model.config());
        assert_eq!(values(loaded.model.params())?, values(model.params())?);
    }
    // And back: what the shared exits have no use for is reported.
    let options = LoadOptions {
        exit_norm: Some(ExitNorm::Shared),
        heads: Some(Heads::Shared),
        ..LoadOptions::default()
    };
    let back = Vit::load_with(again.path(), &options, &Cpu)?;
    assert_eq!(values(back.model.params())?, values(shared.params())?);
    assert_eq!(back.unexpected.len(), 8);
    assert!(back.unexpected.iter().all(|name| name.starts_with("exits.")));
    Ok(())
}

#[test]
fn a_cut_model_is_the_exit_it_was_cut_at() -> Result {
    let batch = common::pixels(3)?;
    let folder = tempfile::tempdir()?;
    for (exit_norm, heads) in every_exit() {
        let model = common::vit(VitConfig { exit_norm, heads, ..tiny() })?;
        let depth = model.depth();
        let want = tap::layer_logits(&model, &batch, Pass::EVAL)?;
        for k in 1..=depth {
            let cut = model.cut(k)?;
            assert_eq!(cut.depth(), k);
            let got = tap::layer_logits(&cut, &batch, Pass::EVAL)?;
            for layer in 1..k {
                assert_same(&got[layer - 1], &want[layer - 1])?;
            }
            // A raw exit is not normed until it is the last.
            if exit_norm != ExitNorm::Raw || k == depth {
                assert_same(&got[k - 1], &want[k - 1])?;
            } else if heads == Heads::Shared {
                let feature = &tap::features(&model, &batch, Pass::EVAL)?[k];
                assert_same(&got[k - 1], &model.exit(depth, feature, Pass::EVAL)?)?;
            }
            assert_same(&tap::forward(&model.frozen().cut(k)?, &batch, Pass::EVAL)?, &got[k - 1])?;
            assert!(!tap::forward(&model.frozen().cut(k)?, &batch, Pass::EVAL)?.track_op());
            assert_same(&tap::forward(&cut.cut(k)?, &batch, Pass::EVAL)?, &got[k - 1])?;

            cut.save(folder.path())?;
            let loaded = Vit::load_with(folder.path(), &LoadOptions::default(), &Cpu)?;
            assert!(loaded.unexpected.is_empty());
            assert_same(&tap::forward(&loaded.model, &batch, Pass::EVAL)?, &got[k - 1])?;
        }
    }
    Ok(())
}

#[test]
fn a_cut_mlp_is_the_exit_it_was_cut_at() -> Result {
    let batch = init::normal(&mut init::rng(2), (3, 12), 1., &Cpu)?.into();
    let folder = tempfile::tempdir()?;
    for heads in HEADS {
        let model = common::mlp(MlpConfig { heads, ..tiny_mlp() })?;
        let want = tap::layer_logits(&model, &batch, Pass::EVAL)?;
        for k in 1..=model.depth() {
            let cut = model.cut(k)?;
            for (got, want) in tap::layer_logits(&cut, &batch, Pass::EVAL)?.iter().zip(&want[..k]) {
                assert_same(got, want)?;
            }
            cut.save(folder.path())?;
            let loaded = Mlp::load(folder.path(), &Cpu)?;
            assert_same(&tap::forward(&loaded, &batch, Pass::EVAL)?, &want[k - 1])?;
        }
    }
    Ok(())
}

#[test]
fn a_cut_shares_the_parameters_of_the_whole() -> Result {
    let model = common::vit(VitConfig { exit_norm: ExitNorm::PerLayer, heads: Heads::PerLayer, ..tiny() })?;
    let cut = model.cut(2)?;
    let own = |name: &str| match name.split_once('.') {
        Some(("classifier", part)) => format!("exits.2.classifier.{part}"),
        _ => name.replace("vit.layernorm", "exits.2.layernorm"),
    };
    for (name, var) in cut.params().iter() {
        let of_whole = model.params().get(&own(name)).ok_or_else(|| format!("{name} is not of the whole"))?;
        assert_eq!(var.id(), of_whole.id(), "{name}");
    }
    let model = common::mlp(tiny_mlp())?;
    for (name, var) in model.cut(2)?.params().iter() {
        assert_eq!(Some(var.id()), model.params().get(name).map(|var| var.id()), "{name}");
    }
    Ok(())
}

#[test]
fn deit_comes_with_or_without_its_second_token_and_classifier() -> Result {
    let folder = tempfile::tempdir()?;
    let distilled = common::vit(VitConfig { distillation_token: true, ..tiny() })?;
    distilled.save(folder.path())?;
    let names = |folder: &Path| {
        common::read_tensors(&folder.join(common::WEIGHTS)).map(|tensors| tensors.into_keys())
    };
    let ours = |name: &String| name.starts_with("deit.") || name.starts_with("classifier.");
    assert!(names(folder.path())?.all(|name| ours(&name)));
    let again = Vit::load(folder.path(), &Cpu)?;
    assert!(again.config().distillation_token);
    assert_eq!(common::values(again.params())?, common::values(distilled.params())?);

    // A classifier for each of the two tokens: no classifier of ours, but a backbone.
    common::change_weights(folder.path(), |tensors| {
        for part in ["weight", "bias"] {
            let Some(tensor) = tensors.remove(&format!("classifier.{part}")) else { continue };
            tensors.insert(format!("distillation_classifier.{part}"), tensor.clone());
            tensors.insert(format!("cls_classifier.{part}"), tensor);
        }
    })?;
    let error = Vit::load(folder.path(), &Cpu).unwrap_err().to_string();
    assert!(error.contains("classifier.weight") && error.contains("cls_classifier.weight"), "{error}");
    let options = LoadOptions { head: Head::None, ..LoadOptions::default() };
    assert_eq!(Vit::load_with(folder.path(), &options, &Cpu)?.unexpected.len(), 4);

    // `deit` by name only.
    let plain = tempfile::tempdir()?;
    common::vit(tiny())?.save(plain.path())?;
    common::change_config(plain.path(), "model_type", "deit".into())?;
    assert!(!Vit::load(plain.path(), &Cpu)?.config().distillation_token);
    Ok(())
}

#[test]
fn classes_are_renamed_all_or_none() -> Result {
    let model = common::vit(VitConfig { num_labels: 3, ..tiny() })?;
    let names = ["ant", "bee", "cat"].map(String::from);
    let named = model.clone().with_labels(names.clone())?;
    let folder = tempfile::tempdir()?;
    named.save(folder.path())?;
    assert_eq!(Vit::load(folder.path(), &Cpu)?.config().label(2), "cat");
    assert_eq!(named.with_labels([])?.config().label(2), "LABEL_2");
    let error = model.with_labels(names[..2].to_vec()).unwrap_err();
    assert!(matches!(error, Error::Labels { labels: 3, .. }), "{error}");
    Ok(())
}

#[test]
fn a_classifier_that_knows_nothing_says_what_it_was_told() -> Result {
    let batch = common::pixels(2)?;
    for heads in [Heads::Shared, Heads::PerLayer] {
        let model = common::vit(VitConfig { heads, ..tiny() })?;
        let before = tap::layer_logits(&model, &batch, Pass::EVAL)?;
        let bias = |name: &str| model.params().get(name).map(|var| var.flatten_all()?.to_vec1::<f32>());
        let biases: Vec<Vec<f32>> = ["exits.1.classifier.bias", "exits.2.classifier.bias", "classifier.bias"]
            .iter()
            .map(|name| bias(name).or_else(|| bias("classifier.bias")).ok_or("a bias")?.map_err(Into::into))
            .collect::<Result<_>>()?;
        let prior: Vec<f32> = (0..tiny().num_labels).map(|class| class as f32 - 7.5).collect();
        let after = tap::layer_logits(&model.clone().with_prior(&prior)?, &batch, Pass::EVAL)?;
        for ((before, after), bias) in before.iter().zip(&after).zip(&biases) {
            for (before, after) in before.to_vec2::<f32>()?.iter().zip(after.to_vec2::<f32>()?) {
                for class in 0..prior.len() {
                    let moved = prior[class] - bias[class];
                    assert!((after[class] - before[class] - moved).abs() < 1e-5);
                }
            }
        }
        let packed = model.packed()?.with_prior(&prior).unwrap_err().to_string();
        assert!(packed.contains("a model that is not packed"), "{packed}");
        for wrong in [&prior[1..], &[f32::NAN; 5], &[]] {
            let error = model.clone().with_prior(wrong).unwrap_err().to_string();
            assert!(error.contains("classifier.bias of 5 classes"), "{error}");
        }
    }
    Ok(())
}

#[test]
fn a_resized_model_shares_all_but_its_positions() -> Result {
    let model = common::vit(tiny())?;
    let (size, patch) = (tiny().image_size, tiny().patch_size);
    let resized = model.resized(3 * size)?;
    for (name, var) in resized.params().iter() {
        let shared = model.params().get(name).is_some_and(|own| own.id() == var.id());
        assert_eq!(shared, name != "vit.embeddings.position_embeddings", "{name}");
    }
    // There and nothing else: the same size is the same model, and a class token stays what it is.
    assert!(
        model
            .resized(size)?
            .params()
            .iter()
            .all(|(name, var)| model.params().get(name).is_some_and(|own| own.id() == var.id()))
    );
    let class = |model: &Vit| -> Result<Vec<f32>> {
        let positions = model.params().get("vit.embeddings.position_embeddings").ok_or("positions")?;
        Ok(positions.narrow(1, 0, 1)?.flatten_all()?.to_vec1()?)
    };
    assert_eq!(class(&model)?, class(&resized)?);
    for wrong in [0, size + 1, usize::MAX] {
        let error = model.resized(wrong).unwrap_err();
        assert!(matches!(error, Error::PatchDividesImage { .. } | Error::Size { .. }), "{patch}: {error}");
    }
    Ok(())
}

#[test]
fn transformers_reads_what_we_save() -> Result {
    let folder = tempfile::tempdir()?;
    let at = |name: &str| folder.path().join(name);
    let batch = common::pixels(3)?;
    let pixels = BTreeMap::from([("pixels".to_owned(), batch.inputs.clone())]);
    let mut want = BTreeMap::new();
    let mut save = |name: &str, model: &Vit| -> Result {
        model.save(&at(name))?;
        want.insert(name.to_owned(), tap::forward(model, &batch, Pass::EVAL)?);
        Ok(())
    };
    let config =
        VitConfig { qkv_bias: false, hidden_act: Activation::GeluTanh, layer_norm_eps: 1e-6, ..tiny() };
    let shared = common::vit(config.clone())?;
    save("whole", &shared)?;
    save("cut", &shared.cut(2)?)?;
    save("fewest labels", &common::vit(VitConfig { num_labels: 1, ..tiny() })?)?;
    save("two labels", &common::vit(VitConfig { num_labels: 2, ..tiny() })?)?;
    let own = common::vit(VitConfig { exit_norm: ExitNorm::PerLayer, heads: Heads::PerLayer, ..config })?;
    save("own exits", &own)?;
    save("cut with own exits", &own.cut(2)?)?;
    save("shallowest", &own.cut(1)?)?;
    let distilled = common::vit(VitConfig { distillation_token: true, ..tiny() })?;
    save("distilled", &distilled)?;
    save("cut distilled", &distilled.cut(2)?)?;
    let resized =
        common::vit(VitConfig { image_size: 2 * tiny().image_size, ..tiny() })?.resized(tiny().image_size)?;
    save("resized", &resized)?;
    save("cut resized", &resized.cut(2)?)?;
    let inner = |(name, _): (&str, &_)| name.starts_with("exits.");
    assert!(!shared.cut(2)?.params().iter().any(inner) && !own.cut(1)?.params().iter().any(inner));

    common::assert_python_agrees(pixels, folder.path(), &want)
}

fn every_exit() -> impl Iterator<Item = (ExitNorm, Heads)> {
    NORMS.into_iter().flat_map(|norm| HEADS.map(|heads| (norm, heads)))
}

/// Names and bytes of a folder's files: nothing temporary is left either.
fn files(folder: &Path) -> Result<BTreeMap<String, Vec<u8>>> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        files.insert(entry.file_name().to_string_lossy().into_owned(), fs::read(entry.path())?);
    }
    Ok(files)
}

fn copy(from: &Path, to: &Path) -> Result {
    for (name, bytes) in files(from)? {
        fs::write(to.join(name), bytes)?;
    }
    Ok(())
}

/// Bit for bit.
#[track_caller]
fn assert_same(got: &Tensor, want: &Tensor) -> candle_core::Result<()> {
    let bits = |xs: &Tensor| -> candle_core::Result<Vec<u32>> {
        Ok(xs.flatten_all()?.to_vec1::<f32>()?.into_iter().map(f32::to_bits).collect())
    };
    assert_eq!(got.dims(), want.dims());
    assert_eq!(bits(got)?, bits(want)?);
    Ok(())
}
