//! GPT-2s survive their folders: saved, loaded, cut, and read by others. What all models share is tested in `folders.rs`.

mod common;

use candle_core::{DType, Device::Cpu, Tensor};
use common::{Result, change_config, change_weights, tiny_gpt2, values};
use layerwise_models::{
    Activation, Batch, ExitNorm, Gpt2, Gpt2Config, Head, Heads, LoadOptions, Pass, Tapped, tap,
};
use layerwise_testkit::assert_close;

fn words() -> candle_core::Result<Batch> {
    Ok(Tensor::new(&[[2u32, 30, 7, 19, 3], [0, 4, 4, 3, 11]], &Cpu)?.into())
}

#[test]
fn saving_and_loading_changes_nothing() -> Result {
    let folder = tempfile::tempdir()?;
    for exit_norm in [ExitNorm::Shared, ExitNorm::Raw, ExitNorm::PerLayer] {
        let config = Gpt2Config {
            exit_norm,
            n_inner: None,
            activation_function: Activation::Relu,
            layer_norm_epsilon: 1e-6,
            resid_pdrop: 0.1,
            embd_pdrop: 0.2,
            attn_pdrop: 0.3,
            initializer_range: 0.0123,
            eos_token_id: Some(30),
            ..tiny_gpt2()
        };
        let model = common::gpt2(config)?;
        model.save(folder.path())?;
        let again = Gpt2::load_with(folder.path(), &LoadOptions::default(), &Cpu)?;
        assert_eq!(again.model.config(), model.config());
        assert_eq!(values(again.model.params())?, values(model.params())?);
        assert!(again.unexpected.is_empty(), "{:?}", again.unexpected);
    }
    Ok(())
}

#[test]
fn all_known_names_of_tensors_are_read() -> Result {
    let folder = tempfile::tempdir()?;
    let model = common::gpt2(tiny_gpt2())?;
    for prefix in ["transformer.", ""] {
        model.save(folder.path())?;
        change_weights(folder.path(), |tensors| {
            let named = |name: &str| format!("{prefix}{}", name.trim_start_matches("transformer."));
            *tensors = std::mem::take(tensors).into_iter().map(|(name, xs)| (named(&name), xs)).collect();
            // The head once more, buffers of old files, and what is nobody's.
            let head = tensors[&named("wte.weight")].clone();
            tensors.insert("lm_head.weight".to_owned(), head);
            for (name, dtype) in [("bias", DType::U8), ("masked_bias", DType::F32)] {
                let buffer = Tensor::ones((1, 1, 9, 9), dtype, &Cpu).unwrap();
                tensors.insert(named(&format!("h.0.attn.{name}")), buffer);
            }
            tensors.insert("value_head.weight".to_owned(), Tensor::zeros(3, DType::F32, &Cpu).unwrap());
        })?;
        let loaded = Gpt2::load_with(folder.path(), &LoadOptions::default(), &Cpu)?;
        assert_eq!(values(loaded.model.params())?, values(model.params())?);
        assert_eq!(loaded.unexpected, ["value_head.weight"]);
    }
    Ok(())
}

#[test]
fn a_cut_model_is_the_exit_it_was_cut_at() -> Result {
    let (batch, folder) = (words()?, tempfile::tempdir()?);
    for exit_norm in [ExitNorm::Shared, ExitNorm::PerLayer] {
        let model = common::gpt2(Gpt2Config { exit_norm, ..tiny_gpt2() })?;
        let want = tap::layer_logits(&model, &batch, Pass::EVAL)?;
        for k in 1..=model.depth() {
            model.cut(k)?.save(folder.path())?;
            let loaded = Gpt2::load_with(folder.path(), &LoadOptions::default(), &Cpu)?;
            assert!(loaded.unexpected.is_empty());
            for model in [&model.cut(k)?, &model.packed()?.cut(k)?, &loaded.model] {
                assert_close(&tap::forward(model, &batch, Pass::EVAL)?, &want[k - 1], 1e-6)?;
            }
        }
    }
    Ok(())
}

#[test]
fn python_reads_what_we_write() -> Result {
    let (batch, folder) = (words()?, tempfile::tempdir()?);
    let mut want = common::Tensors::new();
    for (name, exit_norm) in [("shared", ExitNorm::Shared), ("own", ExitNorm::PerLayer)] {
        let model = common::gpt2(Gpt2Config { exit_norm, ..tiny_gpt2() })?;
        for (name, model) in [(format!("{name}_cut"), model.cut(2)?), (name.to_owned(), model)] {
            model.save(&folder.path().join(&name))?;
            want.insert(name, tap::forward(&model, &batch, Pass::EVAL)?);
        }
    }
    common::assert_python_agrees(common::for_python(&batch)?, folder.path(), &want)
}

/// The mark that ends a text is a word, or there is none.
#[test]
fn a_mark_that_is_no_word_is_none() -> Result {
    let folder = tempfile::tempdir()?;
    let model = common::gpt2(tiny_gpt2())?;
    model.save(folder.path())?;
    for (mark, expected) in [(30, Some(30)), (31, None), (50_256, None)] {
        common::change_config(folder.path(), "eos_token_id", mark.into())?;
        assert_eq!(Gpt2Config::from_hf(folder.path())?.eos_token_id, expected);
    }
    common::change_config(folder.path(), "eos_token_id", 29.into())?;
    let marked = Gpt2::load(folder.path(), &Cpu)?;
    for (words, expected) in [(31, Some(29)), (30, Some(29)), (29, None)] {
        assert_eq!(marked.with_vocabulary(words)?.config().eos_token_id, expected);
    }
    Ok(())
}

#[test]
fn rows_that_are_no_word_are_left_out() -> Result {
    let model = common::gpt2(tiny_gpt2())?;
    let (all, fewer) = (words()?, model.with_vocabulary(30)?);
    assert!(tap::layer_logits(&fewer, &all, Pass::EVAL).unwrap_err().to_string().contains("the id 30"));
    let known = Batch::from(all.inputs.minimum(&Tensor::full(29u32, (2, 5), &Cpu)?)?);
    let (all_of_known, some) =
        (tap::layer_logits(&model, &known, Pass::EVAL)?, tap::layer_logits(&fewer, &known, Pass::EVAL)?);
    for (all, some) in all_of_known.iter().zip(&some) {
        assert_eq!(some.to_vec2::<f32>()?, all.narrow(1, 0, 30)?.to_vec2::<f32>()?);
    }
    // It shares everything but the table, and is a model like any other.
    assert_eq!(fewer.params().iter().count(), model.params().iter().count());
    let folder = tempfile::tempdir()?;
    fewer.save(folder.path())?;
    assert_eq!(Gpt2::load(folder.path(), &Cpu)?.config().vocab_size, 30);
    let packed = fewer.frozen().packed()?;
    assert_close(&tap::layer_logits(&packed, &known, Pass::EVAL)?[0], &some[0], 1e-5)?;
    assert_eq!(model.with_vocabulary(31)?.config(), model.config());
    for (words, says) in [(0, "vocab_size is 0"), (32, "vocab_size is 32")] {
        let text = model.with_vocabulary(words).unwrap_err().to_string();
        assert!(text.contains(says), "{text}");
    }
    assert!(packed.with_vocabulary(20).unwrap_err().to_string().contains("laid out"));
    Ok(())
}

#[test]
fn what_does_not_fit_is_said() -> Result {
    let folder = tempfile::tempdir()?;
    common::gpt2(tiny_gpt2())?.save(folder.path())?;
    let load = |options: LoadOptions| Gpt2::load_with(folder.path(), &options, &Cpu).unwrap_err().to_string();
    for options in [
        LoadOptions { head: Head::None, ..LoadOptions::default() },
        LoadOptions { head: Head::Fresh { labels: 2, seed: 0 }, ..LoadOptions::default() },
        LoadOptions { heads: Some(Heads::PerLayer), ..LoadOptions::default() },
    ] {
        let text = load(options);
        assert!(text.contains("expected a model with a classifier"), "{text}");
    }
    assert!(common::gpt2(tiny_gpt2())?.with_labels(["a".to_owned()]).is_err());
    assert!(common::gpt2(tiny_gpt2())?.with_prior(&[0.; 31]).is_err());
    for (key, value, says) in [
        ("model_type", "gpt_neo".into(), "model_type \"gpt_neo\" is not supported; expected \"gpt2\""),
        ("tie_word_embeddings", false.into(), "tie_word_embeddings false is not supported"),
        ("scale_attn_weights", false.into(), "scale_attn_weights"),
        ("scale_attn_by_inverse_layer_idx", true.into(), "scale_attn_by_inverse_layer_idx"),
        ("add_cross_attention", true.into(), "add_cross_attention is not supported"),
        ("activation_function", "mish".into(), "mish"),
        ("vocab_size", 0.into(), "vocab_size is 0, expected 1 to"),
        ("n_positions", 0.into(), "n_positions is 0"),
        ("n_inner", 0.into(), "n_inner is 0"),
        ("attn_pdrop", 1.0.into(), "attn_pdrop is 1, expected a probability"),
        ("n_head", 5.into(), "n_head = 5 does not divide n_embd = 12"),
        ("n_embd", i64::MAX.into(), "n_embd is 9223372036854775807"),
        ("n_positions", i64::MAX.into(), "n_positions is 9223372036854775807"),
    ] {
        common::assert_config_refused(folder.path(), (key, value), says, || Gpt2::load(folder.path(), &Cpu))?;
    }
    // Tensors of other shapes than the configuration says, under the names of our parameters, and missing ones, under those of the file.
    change_config(folder.path(), "n_embd", 15.into())?;
    let text = Gpt2::load(folder.path(), &Cpu).unwrap_err().to_string();
    assert!(text.contains("wte.weight\" has shape [31, 12], expected [31, 15]"), "{text}");
    assert!(text.contains("h.0.attn.query.weight\" has shape [12, 12], expected [15, 15]"), "{text}");
    change_config(folder.path(), "n_embd", 12.into())?;
    change_weights(folder.path(), |tensors| {
        tensors.remove("transformer.h.1.attn.c_attn.weight");
        tensors.remove("transformer.wte.weight");
        let odd = Tensor::zeros((12, 35), DType::F32, &Cpu).unwrap();
        // As large as one of the three that it should be.
        let third = Tensor::zeros((12, 12), DType::F32, &Cpu).unwrap();
        tensors.insert("transformer.h.0.attn.c_attn.weight".to_owned(), third);
        let vector = Tensor::zeros(11, DType::F32, &Cpu).unwrap();
        tensors.insert("transformer.h.0.attn.c_attn.bias".to_owned(), vector);
        tensors.insert("transformer.h.2.attn.c_attn.weight".to_owned(), odd);
    })?;
    let text = Gpt2::load(folder.path(), &Cpu).unwrap_err().to_string();
    let missing = "missing tensors [\"transformer.wte.weight\", \"transformer.h.1.attn.c_attn.weight\"]";
    assert!(text.contains(missing), "{text}");
    assert!(text.contains("h.2.attn.key.weight\" has shape [12, 35], expected [12, 12]"), "{text}");
    assert!(text.contains("h.0.attn.key.weight\" has shape [4, 12], expected [12, 12]"), "{text}");
    assert!(text.contains("h.0.attn.key.bias\" has shape [11], expected [12]"), "{text}");
    Ok(())
}

#[test]
fn inputs_that_the_model_was_not_made_for() -> Result {
    let model = common::gpt2(tiny_gpt2())?;
    let of = |ids: &[u32]| Tensor::new(ids, &Cpu).and_then(|xs| xs.unsqueeze(0));
    let mask = Some(Tensor::ones((2, 4), DType::U8, &Cpu)?);
    let cases: [(Batch, &str); 5] = [
        (of(&[2, 31, 3])?.into(), "inputs have the id 31, expected ids below 31"),
        (of(&[2; 10])?.into(), "inputs are U32 [1, 10], expected U32 (rows, 1 to 9 tokens)"),
        (of(&[])?.into(), "inputs are U32 [1, 0], expected"),
        (Tensor::zeros((2, 3), DType::F32, &Cpu)?.into(), "inputs are F32 [2, 3], expected U32"),
        (Batch { mask, ..words()? }, "inputs are U8 [2, 4], expected U8 (2, 5)"),
    ];
    for (batch, says) in cases {
        let text = tap::forward(&model, &batch, Pass::EVAL).unwrap_err().to_string();
        assert!(text.contains(says), "{text}, expected {says}");
    }
    Ok(())
}
