//! BERTs survive their folders: saved, loaded, cut, and read by others. What all models share is tested in `folders.rs`.

mod common;

use candle_core::{DType, Device::Cpu, Tensor};
use common::{Result, change_config, change_weights, tiny_bert, values, words};
use layerwise_models::{
    Activation, Batch, Bert, BertConfig, ExitNorm, Head, Heads, LoadOptions, Pass, Pooling, Tapped, Vit, tap,
};
use layerwise_testkit::assert_close;

#[test]
fn saving_and_loading_changes_nothing() -> Result {
    let folder = tempfile::tempdir()?;
    for (heads, num_labels, classifier_dropout, pooling) in [
        (Heads::Shared, 5, None, Pooling::Cls),
        (Heads::PerLayer, 5, Some(0.2), Pooling::Mean),
        (Heads::Shared, 1, Some(0.), Pooling::Cls),
        (Heads::Shared, 0, None, Pooling::Mean),
    ] {
        let config = BertConfig {
            heads,
            pooling,
            num_labels,
            classifier_dropout,
            hidden_act: Activation::Relu,
            layer_norm_eps: 1e-6,
            hidden_dropout_prob: 0.1,
            attention_probs_dropout_prob: 0.3,
            pad_token_id: 1,
            initializer_range: 0.0123,
            id2label: (0..num_labels).map(|id| (id, format!("class \"{id}\""))).collect(),
            ..tiny_bert()
        };
        let model = common::bert(config)?;
        model.save(folder.path())?;
        let again = Bert::load_with(folder.path(), &LoadOptions::default(), &Cpu)?;
        assert_eq!(again.model.config(), model.config());
        assert_eq!(values(again.model.params())?, values(model.params())?);
        assert!(again.unexpected.is_empty());
    }
    Ok(())
}

#[test]
fn all_known_names_of_tensors_are_read() -> Result {
    let folder = tempfile::tempdir()?;
    let model = common::bert(tiny_bert())?;
    let bare = |name: &str| name.strip_prefix("bert.").unwrap_or(name).to_owned();
    let legacy = |name: &str| {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
    };
    let namings: [&dyn Fn(&str) -> String; 3] = [&bare, &legacy, &|name| bare(&legacy(name))];
    for naming in namings {
        model.save(folder.path())?;
        change_weights(folder.path(), |tensors| {
            *tensors =
                std::mem::take(tensors).into_iter().map(|(name, tensor)| (naming(&name), tensor)).collect();
            // A buffer of old versions, and heads of pre-training.
            tensors.insert(naming("bert.embeddings.position_ids"), Tensor::arange(0i64, 9, &Cpu).unwrap());
            tensors.insert("cls.predictions.bias".to_owned(), Tensor::zeros(31, DType::F32, &Cpu).unwrap());
        })?;
        let loaded = Bert::load_with(folder.path(), &LoadOptions::default(), &Cpu)?;
        assert_eq!(values(loaded.model.params())?, values(model.params())?);
        assert_eq!(loaded.unexpected, ["cls.predictions.bias"]);
    }
    Ok(())
}

/// Each text alone, its padding left out: the mean of what its tokens are; and models stay so when they are saved and cut.
#[test]
fn an_exit_reads_the_mean_of_all_tokens() -> Result {
    let model = common::bert(BertConfig { pooling: Pooling::Mean, ..tiny_bert() })?;
    let batch = words()?;
    let features = tap::features(&model, &batch, Pass::EVAL)?;
    let lengths = batch.mask.as_ref().ok_or("no mask")?.to_dtype(DType::F32)?.sum(1)?.to_vec1::<f32>()?;
    assert!(lengths.iter().any(|&length| (length as usize) < batch.inputs.dim(1).unwrap_or(0)), "no padding");
    for (row, &length) in lengths.iter().enumerate() {
        let alone = |xs: &Tensor| xs.narrow(0, row, 1)?.narrow(1, 0, length as usize);
        let text = Batch {
            inputs: alone(&batch.inputs)?,
            mask: None,
            token_types: batch.token_types.as_ref().map(alone).transpose()?,
        };
        tap::for_each_layer(&model, &text, Pass::EVAL, |layer, hidden| -> Result {
            let feature = model.feature(hidden)?;
            assert_close(&feature, &hidden.xs.mean(1)?, 1e-6)?;
            assert_close(&features[layer].narrow(0, row, 1)?, &feature, 1e-5)?;
            Ok(())
        })?;
    }
    let folder = tempfile::tempdir()?;
    model.cut(2)?.save(folder.path())?;
    let cut = Bert::load(folder.path(), &Cpu)?;
    let logits = tap::layer_logits(&model, &batch, Pass::EVAL)?;
    assert_close(&tap::forward(&cut, &batch, Pass::EVAL)?, &logits[1], 1e-6)?;
    assert_close(&tap::forward(&cut.packed()?, &batch, Pass::EVAL)?, &logits[1], 1e-5)?;
    // A folder says so, or who loads it.
    let cls = LoadOptions { pooling: Some(Pooling::Cls), ..Default::default() };
    assert_eq!(Bert::load_with(folder.path(), &cls, &Cpu)?.model.config().pooling, Pooling::Cls);
    let vit = tempfile::tempdir()?;
    common::vit(common::tiny())?.save(vit.path())?;
    let error = Vit::load_with(vit.path(), &cls, &Cpu).unwrap_err().to_string();
    assert!(error.contains("pooling Cls is not supported"), "{error}");
    Ok(())
}

/// As encoders of sentences come: without a head, and with or without a pooler.
#[test]
fn a_fresh_head_comes_with_a_pooler_where_there_is_none() -> Result {
    let folder = tempfile::tempdir()?;
    let fresh = LoadOptions { head: Head::Fresh { labels: 1, seed: 3 }, ..LoadOptions::default() };
    for pooler in [true, false] {
        let model = common::bert(BertConfig { num_labels: 0, pooler, ..tiny_bert() })?;
        model.save(folder.path())?;
        assert_eq!(Bert::load(folder.path(), &Cpu)?.config().pooler, pooler);
        let loaded = Bert::load_with(folder.path(), &fresh, &Cpu)?;
        let drawn = [
            vec!["bert.pooler.dense.weight", "bert.pooler.dense.bias"],
            vec!["classifier.weight", "classifier.bias"],
        ];
        assert_eq!(loaded.fresh, drawn[usize::from(pooler)..].concat());
        assert_eq!(tap::forward(&loaded.model, &words()?, Pass::EVAL)?.dims(), [3, 1]);
        let again = Bert::load_with(folder.path(), &fresh, &Cpu)?;
        assert_eq!(values(again.model.params())?, values(loaded.model.params())?);
        // A checkpoint of its own does not lack what it says it has.
        let missing = Bert::load_with(folder.path(), &LoadOptions::default(), &Cpu)?;
        assert!(
            missing.model.pooled(&tap::features(&missing.model, &words()?, Pass::EVAL)?[3]).is_ok() == pooler
        );
    }
    Ok(())
}

#[test]
fn a_cut_model_is_the_exit_it_was_cut_at() -> Result {
    let (batch, folder) = (words()?, tempfile::tempdir()?);
    for heads in [Heads::Shared, Heads::PerLayer] {
        let model = common::bert(BertConfig { heads, ..tiny_bert() })?;
        let want = tap::layer_logits(&model, &batch, Pass::EVAL)?;
        for k in 1..=model.depth() {
            model.cut(k)?.save(folder.path())?;
            let loaded = Bert::load_with(folder.path(), &LoadOptions::default(), &Cpu)?;
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
    for (name, num_labels, heads) in
        [("shared", 5, Heads::Shared), ("own", 2, Heads::PerLayer), ("number", 1, Heads::Shared)]
    {
        let model = common::bert(BertConfig { num_labels, heads, ..tiny_bert() })?;
        for (name, model) in [(format!("{name}_cut"), model.cut(2)?), (name.to_owned(), model)] {
            model.save(&folder.path().join(&name))?;
            want.insert(name, tap::forward(&model, &batch, Pass::EVAL)?);
        }
    }
    common::assert_python_agrees(common::for_python(&batch)?, folder.path(), &want)
}

#[test]
fn what_does_not_fit_is_said() -> Result {
    let folder = tempfile::tempdir()?;
    common::bert(tiny_bert())?.save(folder.path())?;
    let load = |options: LoadOptions| Bert::load_with(folder.path(), &options, &Cpu).unwrap_err().to_string();
    let norm = load(LoadOptions { exit_norm: Some(ExitNorm::Shared), ..LoadOptions::default() });
    assert!(norm.contains("exit_norm Shared") && norm.contains("ends in a norm"), "{norm}");
    for (key, value, says) in [
        ("model_type", "roberta".into(), "model_type \"roberta\" is not supported; expected \"bert\""),
        ("position_embedding_type", "relative_key".into(), "expected \"absolute\""),
        ("is_decoder", true.into(), "is_decoder is not supported"),
        ("vocab_size", 0.into(), "vocab_size is 0, expected 1 to"),
        ("max_position_embeddings", 0.into(), "max_position_embeddings is 0"),
        ("type_vocab_size", 0.into(), "type_vocab_size is 0"),
        ("classifier_dropout", 1.0.into(), "classifier_dropout is 1, expected a probability"),
        ("num_attention_heads", 5.into(), "num_attention_heads = 5 does not divide hidden_size = 12"),
    ] {
        common::assert_config_refused(folder.path(), (key, value), says, || Bert::load(folder.path(), &Cpu))?;
    }
    // A vocabulary that is another one's.
    change_config(folder.path(), "vocab_size", 40.into())?;
    let text = Bert::load(folder.path(), &Cpu).unwrap_err().to_string();
    assert!(text.contains("word_embeddings.weight\" has shape [31, 12], expected [40, 12]"), "{text}");
    Ok(())
}

#[test]
fn inputs_that_the_model_was_not_made_for() -> Result {
    let model = common::bert(tiny_bert())?;
    let good = words()?;
    let of = |ids: &[u32]| Tensor::new(ids, &Cpu).and_then(|xs| xs.unsqueeze(0));
    let cases = [
        (
            of(&[2, 31, 3])?.into(),
            "inputs have the id 31, expected ids below 31: is this the model's tokenizer?",
        ),
        (of(&[2; 10])?.into(), "inputs are U32 [1, 10], expected U32 (rows, 1 to 9 tokens)"),
        (of(&[])?.into(), "inputs are U32 [1, 0], expected"),
        (Tensor::zeros((2, 3), DType::F32, &Cpu)?.into(), "inputs are F32 [2, 3], expected U32"),
        (
            layerwise_models::Batch { mask: Some(Tensor::ones((3, 4), DType::U8, &Cpu)?), ..good.clone() },
            "inputs are U8 [3, 4], expected U8 (3, 5)",
        ),
        (layerwise_models::Batch { token_types: Some((good.inputs.clone() * 0.)?), ..good.clone() }, ""),
        (
            layerwise_models::Batch { token_types: Some(good.inputs.clone()), ..good.clone() },
            "token_types have the id 30, expected ids below 2",
        ),
    ];
    for (batch, says) in cases {
        match tap::forward(&model, &batch, Pass::EVAL) {
            Ok(_) => assert!(says.is_empty(), "expected {says}"),
            Err(error) => {
                let text = error.to_string();
                assert!(!says.is_empty() && text.contains(says), "{text}, expected {says}");
            }
        }
    }
    Ok(())
}
