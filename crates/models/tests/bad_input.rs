//! Damaged, hostile and mistaken files and inputs: one clear error each, never a panic.

mod common;

use std::{collections::HashMap, fs, path::Path};

use candle_core::{DType, Device::Cpu, Tensor};
use common::{
    CONFIG, INDEX, LAYERWISE, Result, WEIGHTS, change_config, change_weights, saved, tiny, tiny_mlp, values,
};
use layerwise_models::{Batch, Error, LoadOptions, Mlp, Pass, Tapped, Vit, VitConfig, tap};
use layerwise_ops::init;
use proptest::{
    collection::vec,
    prelude::{Just, Strategy, any, prop_oneof},
    sample::Index,
    test_runner::{Config, TestRunner},
};
use serde_json::{Value, json};

/// Whether an error is of the kind that a case calls for.
type Is = fn(&Error) -> bool;

#[test]
fn a_config_that_is_wrong() -> Result {
    let labels = |ids: [usize; 5]| {
        json!(ids.map(|id| (id.to_string(), "name")).into_iter().collect::<HashMap<_, _>>())
    };
    let cases = [
        ("hidden_act", json!("mish"), vec!["activation", "\"mish\"", "gelu_new"]),
        ("image_size", json!(0), vec!["image_size is 0, expected 1 to 32768"]),
        ("patch_size", json!(0), vec!["patch_size is 0, expected 1 to"]),
        ("num_channels", json!(0), vec!["num_channels is 0, expected 1 to"]),
        ("hidden_size", json!(0), vec!["hidden_size is 0, expected 1 to"]),
        ("num_hidden_layers", json!(0), vec!["num_hidden_layers is 0, expected 1 to"]),
        ("num_attention_heads", json!(0), vec!["num_attention_heads is 0, expected 1 to"]),
        ("intermediate_size", json!(0), vec!["intermediate_size is 0, expected 1 to"]),
        ("hidden_size", json!(u64::MAX), vec!["hidden_size is 18446744073709551615, expected 1 to"]),
        ("image_size", json!(1u64 << 40), vec!["image_size is 1099511627776, expected 1 to"]),
        ("num_hidden_layers", json!(1 << 20), vec!["num_hidden_layers is 1048576, expected 1 to 4096"]),
        ("num_labels", json!(1u64 << 40), vec!["num_labels is 1099511627776, expected 1 to"]),
        ("num_attention_heads", json!(5), vec!["num_attention_heads = 5 does not divide hidden_size = 12"]),
        ("patch_size", json!(3), vec!["patch_size = 3 does not divide image_size = 8"]),
        (
            "hidden_dropout_prob",
            json!(1.),
            vec!["hidden_dropout_prob is 1, expected a probability in [0, 1)"],
        ),
        ("layer_norm_eps", json!(-1e-6), vec!["layer_norm_eps is -0.000001, expected", "not negative"]),
        ("model_type", json!("bert"), vec!["model_type \"bert\"", "expected \"vit\""]),
        ("num_labels", json!(4), vec!["id2label must name the labels 0 .. 4", "5 of them"]),
        ("id2label", labels([0, 1, 2, 4, 5]), vec!["id2label must name the labels 0 .. 5"]),
        // Wrong types: the JSON reader says where.
        ("hidden_size", json!("twelve"), vec!["string \"twelve\", expected usize at line 1"]),
        ("hidden_size", json!(-12), vec!["`-12`, expected usize at line 1"]),
        ("hidden_size", json!(12.5), vec!["`12.5`, expected usize at line 1"]),
        ("image_size", json!([8, 8]), vec!["sequence, expected usize at line 1"]),
        ("qkv_bias", json!("yes"), vec!["string \"yes\", expected a boolean at line 1"]),
        ("hidden_act", json!(7), vec!["`7`, expected a string at line 1"]),
        ("id2label", json!({"first": "cat"}), vec!["expected key to be a number in quotes at line 1"]),
    ];
    for (key, value, says) in cases {
        let folder = saved()?;
        change_config(folder.path(), key, value.clone())?;
        let (error, text) = refused(folder.path());
        assert!(matches!(error, Error::InFile { .. } | Error::Json { .. }), "{key} = {value}: {error:?}");
        assert_says(&text, &folder.path().join(CONFIG), &says);
    }
    Ok(())
}

#[test]
fn a_file_that_is_no_json() -> Result {
    let deep = "[".repeat(100_000);
    for content in ["", "{", "null", "\"vit\"", "{\"hidden_size\": 1e999}", "\u{feff}{}", &deep] {
        for file in [CONFIG, LAYERWISE] {
            let folder = saved()?;
            fs::write(folder.path().join(file), content)?;
            let (error, text) = refused(folder.path());
            assert!(matches!(error, Error::Json { .. }), "{file} = {content:.20}: {error:?}");
            assert_says(&text, &folder.path().join(file), &["line"]);
        }
    }
    for (content, says) in [
        (
            "{\"exit_norm\": \"private\"}",
            "unknown variant `private`, expected one of `shared`, `raw`, `per_layer`",
        ),
        (
            "{\"exit_norms\": \"shared\"}",
            "unknown field `exit_norms`, expected one of `exit_norm`, `heads`, `pooling`, `exits`",
        ),
    ] {
        let folder = saved()?;
        fs::write(folder.path().join(LAYERWISE), content)?;
        assert_says(&refused(folder.path()).1, &folder.path().join(LAYERWISE), &[says]);
    }
    Ok(())
}

/// Sizes that are possible somewhere but not here take no memory: nothing is built that the file does not hold.
#[test]
fn a_config_of_another_model() -> Result {
    let labels: HashMap<String, &str> = (0..1 << 16).map(|id| (id.to_string(), "x")).collect();
    for (key, value, says) in [
        (
            "hidden_size",
            json!(1 << 20),
            "\"vit.embeddings.cls_token\" has shape [1, 1, 12], expected [1, 1, 1048576]",
        ),
        ("intermediate_size", json!(1 << 20), "has shape [20, 12], expected [1048576, 12]"),
        ("image_size", json!(1 << 15), "has shape [1, 5, 12], expected [1, 67108865, 12]"),
        ("num_hidden_layers", json!(100), "missing tensors [\"vit.encoder.layer.3.layernorm_before.weight\""),
        ("id2label", json!(labels), "\"classifier.weight\" has shape [5, 12], expected [65536, 12]"),
    ] {
        let folder = saved()?;
        change_config(folder.path(), "num_attention_heads", json!(1))?;
        change_config(folder.path(), key, value.clone())?;
        let (error, text) = refused(folder.path());
        assert!(matches!(error, Error::Tensors { .. }), "{key} = {value}: {error:?}");
        assert_says(&text, &folder.path().join(WEIGHTS), &[says]);
    }
    // Tensors too many are no error, but are told.
    for (key, value, count) in [("num_hidden_layers", json!(2), 16), ("qkv_bias", json!(false), 9)] {
        let folder = saved()?;
        change_config(folder.path(), key, value)?;
        let loaded = Vit::load_with(folder.path(), &LoadOptions::default(), &Cpu)?;
        assert_eq!(loaded.unexpected.len(), count, "{key}");
    }
    Ok(())
}

#[test]
fn weights_cut_short_or_too_long() -> Result {
    let folder = saved()?;
    let file = folder.path().join(WEIGHTS);
    let whole = fs::read(&file)?;
    let header = 8 + u64::from_le_bytes(whole[..8].try_into()?) as usize;
    let around = |i: usize| i.saturating_sub(9)..(i + 9).min(whole.len());
    let lengths = around(0).chain(around(header)).chain(around(whole.len()));
    for length in lengths.chain((0..whole.len()).step_by(211)) {
        fs::write(&file, &whole[..length])?;
        let (error, text) = refused(folder.path());
        assert!(matches!(error, Error::Safetensors { .. }), "{length} bytes: {error:?}");
        assert_says(&text, &file, &["not a valid safetensors file"]);
    }
    fs::write(&file, [&whole[..], &[0]].concat())?;
    assert!(matches!(refused(folder.path()).0, Error::Safetensors { .. }));
    fs::write(&file, &whole)?;
    Vit::load(folder.path(), &Cpu)?;
    Ok(())
}

#[test]
fn a_header_that_lies() -> Result {
    let folder = saved()?;
    let file = folder.path().join(WEIGHTS);
    let refuse = |bytes: &[u8]| -> Result<String> {
        fs::write(&file, bytes)?;
        let (error, text) = refused(folder.path());
        assert!(matches!(error, Error::Safetensors { .. }), "{error:?}");
        assert_says(&text, &file, &["not a valid safetensors file"]);
        Ok(text)
    };
    let lengths = [u64::MAX, u64::MAX - 7, 1 << 63, 1 << 32, 100_000_001, 100_000_000, 17, 0];
    for length in lengths {
        refuse(&[&length.to_le_bytes()[..], b"{\"a\": {}}       "].concat())?;
    }
    let entry = |dtype: &str, shape: &str, offsets: &str| {
        format!(
            "\"vit.layernorm.weight\":{{\"dtype\":\"{dtype}\",\"shape\":{shape},\"data_offsets\":{offsets}}}"
        )
    };
    let twelve = entry("F32", "[12]", "[0,48]");
    let headers = [
        ("offsets out of the file", entry("F32", "[1200]", "[0,4800]")),
        ("offsets past all memory", entry("U8", "[18446744073709551592]", "[0,18446744073709551592]")),
        ("offsets reversed", entry("F32", "[12]", "[48,0]")),
        ("a hole before the data", entry("F32", "[11]", "[4,48]")),
        ("a hole after the data", entry("F32", "[11]", "[0,44]")),
        ("fewer bytes than the shape has", entry("F32", "[13]", "[0,48]")),
        ("more elements than fit a number", entry("F32", "[4294967296,4294967296,12]", "[0,48]")),
        ("more bytes than fit a number", entry("F64", "[9223372036854775807]", "[0,48]")),
        ("a negative size", entry("F32", "[-12]", "[0,48]")),
        ("a size above all numbers", entry("F32", "[99999999999999999999]", "[0,48]")),
        ("no such type", entry("F33", "[12]", "[0,48]")),
        ("a name twice", format!("{twelve},{}", entry("F32", "[12]", "[48,96]"))),
        ("two names for the same bytes", format!("{twelve},{}", twelve.replace("weight", "bias"))),
        ("overlapping bytes", format!("{twelve},{}", twelve.replace("weight", "bias").replace("[0,", "[4,"))),
    ];
    for (what, entries) in headers {
        let header = format!("{{{entries}}}");
        let bytes = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &[0; 48]].concat();
        refuse(&bytes).map_err(|error| format!("{what}: {error}"))?;
    }
    for header in ["", "[]", "{", "{\"a\":1}", "\u{0}\u{1}", "{\"__metadata__\":{\"format\":1}}"] {
        refuse(&[&(header.len() as u64).to_le_bytes()[..], header.as_bytes()].concat())?;
    }
    refuse(&[&4u64.to_le_bytes()[..], &[0xff, 0xfe, b'{', b'}']].concat())?;
    Ok(())
}

#[test]
fn weights_of_the_wrong_kind() -> Result {
    const NAME: &str = "vit.encoder.layer.1.attention.output.dense.weight";
    let with = |value: f32| {
        move |xs: &Tensor| {
            let mut values = xs.flatten_all()?.to_vec1::<f32>()?;
            values[17] = value;
            Tensor::from_vec(values, xs.shape(), &Cpu)
        }
    };
    type Change = Box<dyn Fn(&Tensor) -> candle_core::Result<Tensor>>;
    let cases: Vec<(Change, Is, &str)> = vec![
        (Box::new(with(f32::NAN)), not_finite, "is NaN at element 17, expected finite weights"),
        (Box::new(with(f32::INFINITY)), not_finite, "is inf at element 17"),
        (Box::new(with(f32::NEG_INFINITY)), not_finite, "is -inf at element 17"),
        (Box::new(|xs| xs.affine(0., 1e6)?.to_dtype(DType::F16)), not_finite, "is inf at element 0"),
        (Box::new(|xs| xs.to_dtype(DType::F64)?.affine(0., -1e300)), not_finite, "is -inf at element 0"),
        (Box::new(|xs| xs.to_dtype(DType::I64)), dtype, "is I64, expected F32, F16, BF16 or F64"),
        (Box::new(|xs| xs.to_dtype(DType::U8)), dtype, "is U8, expected"),
        (Box::new(|xs| xs.to_dtype(DType::U32)), dtype, "is U32, expected"),
        (Box::new(|xs| xs.narrow(1, 0, 11)?.contiguous()), tensors, "has shape [12, 11], expected [12, 12]"),
        (Box::new(Tensor::flatten_all), tensors, "has shape [144], expected [12, 12]"),
        (Box::new(|xs| xs.unsqueeze(0)), tensors, "has shape [1, 12, 12], expected [12, 12]"),
        (Box::new(Tensor::sum_all), tensors, "has shape [], expected [12, 12]"),
        (Box::new(|xs| xs.narrow(0, 0, 0)?.contiguous()), tensors, "has shape [0, 12], expected [12, 12]"),
    ];
    fn not_finite(error: &Error) -> bool {
        matches!(error, Error::NotFinite { name, .. } if name == NAME)
    }
    fn dtype(error: &Error) -> bool {
        matches!(error, Error::Dtype { name, .. } if name == NAME)
    }
    fn tensors(error: &Error) -> bool {
        matches!(error, Error::Tensors { shapes, .. } if shapes.len() == 1 && shapes[0].name == NAME)
    }
    for (change, is, says) in cases {
        let folder = saved()?;
        change_weights(folder.path(), |tensors| {
            let changed = change(&tensors[NAME]).unwrap();
            tensors.insert(NAME.to_owned(), changed);
        })?;
        let (error, text) = refused(folder.path());
        assert!(is(&error), "{error:?}");
        assert_says(&text, &folder.path().join(WEIGHTS), &[NAME, says]);
    }
    Ok(())
}

#[test]
fn tensors_that_do_not_go_together() -> Result {
    let folder = saved()?;
    change_weights(folder.path(), |tensors| {
        tensors.insert("layernorm.beta".to_owned(), tensors["vit.layernorm.bias"].clone());
    })?;
    let (error, text) = refused(folder.path());
    assert!(matches!(error, Error::Ambiguous { .. }), "{error:?}");
    assert_says(
        &text,
        &folder.path().join(WEIGHTS),
        &["\"layernorm.beta\" and \"vit.layernorm.bias\" both mean \"vit.layernorm.bias\""],
    );
    let folder = saved()?;
    change_weights(folder.path(), |tensors| {
        tensors.insert(
            "deit.embeddings.distillation_token".to_owned(),
            tensors["vit.embeddings.cls_token"].clone(),
        );
    })?;
    // A token more needs a position more.
    let (error, text) = refused(folder.path());
    assert!(matches!(error, Error::Tensors { .. }), "{error:?}");
    let position = "\"vit.embeddings.position_embeddings\" has shape [1, 5, 12], expected [1, 6, 12]";
    assert_says(&text, &folder.path().join(WEIGHTS), &[position]);
    Ok(())
}

#[test]
fn files_that_are_not_there() -> Result {
    for file in [CONFIG, WEIGHTS] {
        let folder = saved()?;
        fs::remove_file(folder.path().join(file))?;
        let (error, text) = refused(folder.path());
        assert!(matches!(error, Error::Io { .. }), "{error:?}");
        assert_says(&text, &folder.path().join(file), &["No such file"]);
        fs::create_dir(folder.path().join(file))?;
        let (error, text) = refused(folder.path());
        assert!(matches!(error, Error::Io { .. }), "{error:?}");
        assert_says(&text, &folder.path().join(file), &[]);
    }
    let folder = tempfile::tempdir()?;
    let no_folder = "expected the folder of a model";
    let (absent, empty) = (folder.path().join("absent"), folder.path().to_owned());
    for (missing, says) in [(absent, no_folder), (folder.path().join("a\0b"), no_folder), (empty, WEIGHTS)] {
        let (error, text) = refused(&missing);
        assert!(matches!(error, Error::Io { .. }), "{error:?}");
        assert_says(&text, &missing, &[says]);
    }
    Ok(())
}

#[test]
fn an_index_of_shards_that_is_wrong() -> Result {
    let shards = |shard: &str| json!({"weight_map": {"vit.layernorm.bias": shard}}).to_string();
    let plain = "must be a plain file name";
    let cases: [(String, Is, &str); 12] = [
        (shards("../model.safetensors"), |error| matches!(error, Error::Shard { .. }), plain),
        (shards("/etc/passwd"), |error| matches!(error, Error::Shard { .. }), plain),
        (shards("sub/model.safetensors"), |error| matches!(error, Error::Shard { .. }), plain),
        (shards("model.safetensors/"), |error| matches!(error, Error::Shard { .. }), plain),
        (shards(".."), |error| matches!(error, Error::Shard { .. }), plain),
        (shards(""), |error| matches!(error, Error::Shard { .. }), plain),
        (shards("absent.safetensors"), |error| matches!(error, Error::Io { .. }), "absent.safetensors"),
        (shards(CONFIG), |error| matches!(error, Error::Safetensors { .. }), CONFIG),
        (json!({"weight_map": {}}).to_string(), |error| matches!(error, Error::Tensors { .. }), "missing"),
        (json!({"metadata": {}}).to_string(), |error| matches!(error, Error::Json { .. }), "`weight_map`"),
        (
            json!({"weight_map": ["a"]}).to_string(),
            |error| matches!(error, Error::Json { .. }),
            "expected a map",
        ),
        ("{".to_owned(), |error| matches!(error, Error::Json { .. }), "line 1"),
    ];
    for (content, is, says) in cases {
        let folder = saved()?;
        fs::remove_file(folder.path().join(WEIGHTS))?;
        fs::write(folder.path().join(INDEX), &content)?;
        let (error, text) = refused(folder.path());
        assert!(is(&error), "{content}: {error:?}");
        assert_says(&text, folder.path(), &[says]);
    }
    Ok(())
}

#[test]
fn a_folder_that_is_no_mlps() -> Result {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join(CONFIG);
    let refuse = |says: &[&str]| {
        let error = Mlp::load(folder.path(), &Cpu).unwrap_err();
        assert_says(&error.to_string(), folder.path(), says);
        error
    };
    common::mlp(tiny_mlp())?.save(folder.path())?;
    change_weights(folder.path(), |tensors| {
        let nan = (&tensors["layers.1.bias"] * f64::NAN).unwrap();
        tensors.insert("layers.1.bias".to_owned(), nan);
        tensors.remove("classifier.bias");
    })?;
    assert!(matches!(refuse(&["\"layers.1.bias\" is NaN"]), Error::NotFinite { .. }));
    change_weights(folder.path(), |tensors| {
        tensors.insert("layers.1.bias".to_owned(), tensors["layers.2.bias"].clone());
    })?;
    assert!(matches!(refuse(&["missing tensors [\"classifier.bias\"]"]), Error::Tensors { .. }));
    for (config, says) in [
        (json!({"model_type": "layerwise_mlp", "config": {"width": 0}}), "width is 0, expected 1 to"),
        (json!({"model_type": "layerwise_mlp", "config": {"layers": 1u64 << 40}}), "expected 1 to 4096"),
        (json!({"model_type": "layerwise_mlp", "config": {"depth": 3}}), "unknown field `depth`, expected"),
        (
            json!({"model_type": "vit", "config": {}}),
            "model_type \"vit\" is not supported; expected \"layerwise_mlp\"",
        ),
        (json!({"model_type": "vit"}), "missing field `config`"),
    ] {
        fs::write(&file, config.to_string())?;
        refuse(&[CONFIG, says]);
    }
    Ok(())
}

#[test]
fn a_model_that_cannot_be_made() {
    let make = |config| Vit::new(config, &mut init::rng(1), &Cpu).unwrap_err();
    assert!(matches!(make(VitConfig { hidden_size: 0, ..tiny() }), Error::Size { field: "hidden_size", .. }));
    assert!(matches!(make(VitConfig { num_attention_heads: 5, ..tiny() }), Error::HeadsDivideWidth { .. }));
    let error = make(VitConfig { layer_norm_eps: f64::NAN, ..tiny() });
    assert!(matches!(error, Error::Range { field: "layer_norm_eps", .. }));
    let mut config = tiny_mlp();
    config.classes = 0;
    let error = Mlp::new(config, &mut init::rng(1), &Cpu).unwrap_err();
    assert!(matches!(error, Error::Size { field: "classes", .. }));
}

#[test]
fn a_save_that_fails_leaves_the_old_model() -> Result {
    let folder = saved()?;
    let old = values(common::vit(tiny())?.params())?;
    let new = Vit::new(VitConfig { num_hidden_layers: 2, ..tiny() }, &mut init::rng(9), &Cpu)?;
    for file in [CONFIG, LAYERWISE, WEIGHTS] {
        let path = folder.path().join(file);
        let kept = fs::read(&path)?;
        fs::remove_file(&path)?;
        fs::create_dir(&path)?;
        let error = new.save(folder.path()).unwrap_err();
        assert!(matches!(error, Error::Io { .. }), "{error:?}");
        assert_says(&error.to_string(), &path, &["directory"]);
        fs::remove_dir(&path)?;
        fs::write(&path, kept)?;
        assert_eq!(values(Vit::load(folder.path(), &Cpu)?.params())?, old, "{file} could not be replaced");
        assert_eq!(fs::read_dir(folder.path())?.count(), 3, "nothing temporary is left");
    }
    let in_the_way = folder.path().join(WEIGHTS);
    let error = new.save(&in_the_way).unwrap_err();
    assert!(matches!(error, Error::Io { .. }), "{error:?}");
    assert_says(&error.to_string(), &in_the_way, &[]);
    Ok(())
}

#[cfg(unix)]
#[test]
fn a_folder_that_must_not_be_written_stays_as_it_is() -> Result {
    use std::os::unix::fs::PermissionsExt;

    let folder = saved()?;
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o555))?;
    if fs::write(folder.path().join("probe"), "").is_ok() {
        println!("skipped: permissions do not bind this user (root)");
        return Ok(());
    }
    let new = Vit::new(tiny(), &mut init::rng(9), &Cpu)?;
    let error = new.save(folder.path()).unwrap_err();
    assert!(matches!(error, Error::Io { .. }), "{error:?}");
    assert_says(&error.to_string(), folder.path(), &["denied"]);
    assert_eq!(values(Vit::load(folder.path(), &Cpu)?.params())?, values(common::vit(tiny())?.params())?);
    Ok(fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755))?)
}

#[test]
fn inputs_that_a_model_was_not_made_for() -> Result {
    let vit = common::vit(tiny())?;
    for (shape, dtype) in [
        (vec![2, 3, 8, 9], DType::F32),
        (vec![2, 3, 9, 8], DType::F32),
        (vec![2, 1, 8, 8], DType::F32),
        (vec![3, 8, 8], DType::F32),
        (vec![2, 192], DType::F32),
        (vec![], DType::F32),
        (vec![1, 2, 3, 8, 8], DType::F32),
        (vec![2, 3, 8, 8], DType::U8),
        (vec![2, 3, 8, 8], DType::F64),
        (vec![2, 3, 8, 8], DType::F16),
    ] {
        let found = format!("inputs are {dtype:?} {shape:?}, expected F32 (rows, 3, 8, 8)");
        let text = tap::forward(&vit, &Tensor::zeros(shape, dtype, &Cpu)?.into(), Pass::EVAL).unwrap_err();
        assert_eq!(first_line(&text), found);
    }
    let mlp = common::mlp(tiny_mlp())?;
    for (shape, dtype) in [(vec![2, 11], DType::F32), (vec![12], DType::F32), (vec![2, 3, 4], DType::F64)] {
        let found = format!("inputs are {dtype:?} {shape:?}, expected F32 (rows, 12)");
        let text = tap::forward(&mlp, &Tensor::zeros(shape, dtype, &Cpu)?.into(), Pass::EVAL).unwrap_err();
        assert_eq!(first_line(&text), found);
    }
    let no_rows = Batch::from(Tensor::zeros((0, 3, 8, 8), DType::F32, &Cpu)?);
    if let Ok(logits) = tap::forward(&vit, &no_rows, Pass::EVAL) {
        assert_eq!(logits.dims(), [0, 5]);
    }
    Ok(())
}

#[test]
fn layers_that_do_not_exist() -> Result {
    let (vit, mlp) = (common::vit(tiny())?, common::mlp(tiny_mlp())?);
    let hidden = vit.embed(&common::pixels(2)?, Pass::EVAL)?;
    let rows = mlp.embed(&Tensor::zeros((2, 12), DType::F32, &Cpu)?.into(), Pass::EVAL)?;
    for layer in [0, 4, usize::MAX] {
        let want = format!("layer {layer} does not exist; the model has layers 1 to 3");
        assert_eq!(first_line(&vit.block(layer, &hidden, Pass::EVAL).unwrap_err()), want);
        assert_eq!(first_line(&vit.exit(layer, &vit.feature(&hidden)?, Pass::EVAL).unwrap_err()), want);
        assert_eq!(first_line(&mlp.block(layer, &rows, Pass::EVAL).unwrap_err()), want);
        assert_eq!(first_line(&mlp.exit(layer, &mlp.feature(&rows)?, Pass::EVAL).unwrap_err()), want);
        assert_eq!(vit.cut(layer).unwrap_err().to_string(), want);
        assert_eq!(mlp.cut(layer).unwrap_err().to_string(), want);
    }
    let narrow = Tensor::zeros((2, 11), DType::F32, &Cpu)?;
    assert!(vit.exit(1, &narrow, Pass::EVAL).is_err() && mlp.exit(1, &narrow, Pass::EVAL).is_err());
    Ok(())
}

/// Any bytes in place of any file, and any few changes to a good one, end in an error or in a model that runs.
#[test]
fn no_bytes_make_it_panic() -> Result {
    let folder = saved()?;
    for file in [WEIGHTS, CONFIG, LAYERWISE] {
        let path = folder.path().join(file);
        let good = fs::read(&path)?;
        let changes = vec((any::<Index>(), any::<u8>()), 1..6);
        let length = prop_oneof![4 => Just(usize::MAX), 1 => 0..good.len()];
        let changed = (changes, length).prop_map(|(changes, length)| {
            let mut bytes = good.clone();
            for (place, byte) in changes {
                *place.get_mut(&mut bytes) = byte;
            }
            bytes.truncate(length);
            bytes
        });
        let bytes = prop_oneof![3 => changed, 1 => vec(any::<u8>(), 0..200)];
        survive(&bytes, &path)?;
        fs::write(&path, &good)?;
    }
    Ok(())
}

#[test]
fn no_numbers_in_a_config_make_it_panic() -> Result {
    let folder = saved()?;
    let path = folder.path().join(CONFIG);
    let good: serde_json::Map<String, Value> = serde_json::from_slice(&fs::read(&path)?)?;
    let keys: Vec<String> = good.keys().cloned().collect();
    let value = prop_oneof![
        (0u64..40).prop_map(Value::from),
        (0u32..64).prop_map(|bits| Value::from(1u64 << bits)),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        any::<bool>().prop_map(Value::from),
        any::<String>().prop_map(Value::from),
        Just(Value::Null),
        Just(json!([])),
        Just(json!({"0": "a"})),
    ];
    let changes = vec((any::<Index>(), value), 1..4);
    let changed = changes.prop_map(|changes| {
        let mut config = good.clone();
        for (key, value) in changes {
            config.insert(key.get(&keys).clone(), value);
        }
        Value::from(config).to_string().into_bytes()
    });
    survive(&changed, &path)
}

/// Loads the folder of `file` under every content of it, and runs what loads.
fn survive(contents: &impl Strategy<Value = Vec<u8>>, file: &Path) -> Result {
    let folder = file.parent().ok_or("no folder")?;
    let batch = common::pixels(1)?;
    let config = Config { cases: 500, failure_persistence: None, ..Config::default() };
    TestRunner::new(config).run(contents, |content| {
        fs::write(file, content)?;
        match Vit::load(folder, &Cpu) {
            // Whether the changed model runs is its own affair, as long as it does not panic.
            Ok(model) => drop(tap::forward(&model, &batch, Pass::EVAL)),
            Err(error) => assert!(!error.to_string().is_empty()),
        }
        Ok(())
    })?;
    Ok(())
}

#[track_caller]
fn refused(folder: &Path) -> (Error, String) {
    let Err(error) = Vit::load(folder, &Cpu) else { panic!("{} loads", folder.display()) };
    let text = error.to_string();
    (error, text)
}

/// One line that names the file and has all of `parts`.
#[track_caller]
fn assert_says(text: &str, file: &Path, parts: &[&str]) {
    assert!(!text.contains('\n'), "{text}");
    assert!(text.starts_with(&file.display().to_string()), "{text}");
    for part in parts {
        assert!(text.contains(part), "{text:?} does not say {part:?}");
    }
}

/// What the error says before candle's backtrace.
fn first_line(error: &candle_core::Error) -> String {
    error.to_string().lines().next().unwrap_or_default().to_owned()
}
