//! The examples as their users run them: what they print, write and say when something is wrong.

mod running;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::OnceLock,
};

use candle_core::{Device::Cpu, Tensor};
use layerwise::{
    data::{Preprocess, digits},
    exit::evaluate,
    models::{Batch, Pass, Vit, tap},
};
use serde_json::Value;
use tempfile::TempDir;

use running::{example, fails_with, numbers, run, succeed, text};

type Done<T = ()> = Result<T, Box<dyn std::error::Error>>;

#[test]
fn quickstart_writes_all_it_promises() -> Done {
    let out = smoke();
    let results: Value = serde_json::from_slice(&fs::read(out.join("results.json"))?)?;
    assert_eq!((&results["example"], &results["seed"]), (&"quickstart".into(), &3.into()));
    for field in ["config", "commit", "machine", "wall_s"] {
        assert!(results.get(field).is_some(), "{field}");
    }
    for model in ["standard", "aligned"] {
        for field in ["accuracy", "loss", "cos_to_last", "cka_to_last"] {
            assert_eq!(numbers(&results["models"][model][field]).len(), 12, "{model}.{field}");
        }
        let (vit, images, labels) =
            (Vit::load(&out.join(model), &Cpu)?.frozen(), held_out(out, model)?, held_out_labels()?);
        let scores = evaluate(&vit, [Ok((images, labels))])?;
        assert_eq!(numbers(&results["models"][model]["accuracy"]), scores.accuracy, "{model}");
    }
    let exits = results["exits"].as_array().ok_or("exits")?;
    assert_eq!(exits.len(), 14);
    for exit in exits {
        assert_eq!(numbers(&exit["histogram"]).iter().sum::<f64>(), 359.);
        assert!(exit["layer_ratio"].as_f64() >= Some(1.) && exit["wall_ratio"].as_f64() > Some(0.), "{exit}");
        assert_eq!((&exit["policy"], &exit["batch"]), (&"confidence".into(), &256.into()));
    }
    for figure in ["layers", "similarity", "exits", "convergence"] {
        assert!(fs::read(out.join(figure).with_extension("png"))?.starts_with(b"\x89PNG"), "{figure}");
        assert!(fs::read_to_string(out.join(figure).with_extension("svg"))?.contains("</svg>"), "{figure}");
    }
    let report = fs::read_to_string(out.join("report.html"))?;
    assert_eq!(report.matches("<figure>").count(), 4);
    for elsewhere in ["src=", "<link", "<script", "@import", "url(http"] {
        assert!(!report.contains(elsewhere), "{elsewhere}");
    }
    Ok(())
}

#[test]
fn quickstart_repeats_itself_and_goes_on_from_what_is_there() -> Done {
    let (first, again) = (smoke(), tempfile::tempdir()?);
    succeed(&quickstart(&["--seed", "3"], again.path()));
    for file in ["standard", "aligned", "aligned-cut"].map(|model| format!("{model}/model.safetensors")) {
        assert!(fs::read(first.join(&file))? == fs::read(again.path().join(&file))?, "{file} differs");
    }
    let aligned = again.path().join("aligned/model.safetensors");
    let before = fs::read(&aligned)?;
    let output = quickstart(&["--seed", "3"], again.path());
    succeed(&output);
    assert!(fs::read(&aligned)? == before);
    let other = tempfile::tempdir()?;
    succeed(&quickstart(&["--seed", "4"], other.path()));
    assert!(fs::read(other.path().join("aligned/model.safetensors"))? != before, "the seed does nothing");
    Ok(())
}

#[cfg(unix)]
#[test]
fn ctrl_c_leaves_a_run_that_goes_on() -> Done {
    use std::{
        io::{BufRead, BufReader},
        process::Stdio,
    };

    let out = tempfile::tempdir()?;
    let mut child = Command::new(example("quickstart"))
        .args(["--preset", "small", "--out"])
        .arg(out.path())
        .stderr(Stdio::piped())
        .spawn()?;
    let mut lines = BufReader::new(child.stderr.take().ok_or("stderr")?).lines();
    // The first line of progress comes in the middle of the first of two trainings.
    let progress = lines.next().ok_or("no progress")??;
    assert!(progress.starts_with("training standard"), "{progress}");
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status()?.success());
    let rest: Vec<String> = lines.collect::<Result<_, _>>()?;
    assert_eq!(child.wait()?.code(), Some(130), "{rest:?}");
    assert!(rest.last().is_some_and(|line| line.contains("goes on from there")), "{rest:?}");
    let run = out.path().join("runs/standard-small-seed0");
    let steps = fs::read_to_string(run.join("metrics.jsonl"))?.lines().count();
    assert!(steps > 0 && run.join("state.safetensors").is_file());
    assert!(!out.path().join("results.json").exists());
    Ok(())
}

#[test]
fn inspect_writes_the_states_that_the_library_gives() -> Done {
    let model = smoke().join("aligned");
    let out = tempfile::tempdir()?;
    let arguments = ["--model", text(&model), "--input", "digits", "--limit", "50"];
    succeed(&inspect(&arguments, out.path()));
    let vit = Vit::load(&model, &Cpu)?.frozen();
    let rows: Vec<usize> = (0..50).collect();
    let preprocess = Preprocess::load(&model)?.ok_or("no preprocessor_config.json")?;
    let held_out = digits()?.split(0.2, 0)?.1;
    let batch = Batch::from(preprocess.apply_set(&held_out, &rows, &Cpu)?);
    let hidden = candle_core::safetensors::load(out.path().join("hidden.safetensors"), &Cpu)?;
    assert_eq!(hidden.len(), 13);
    for (layer, want) in tap::features(&vit, &batch, Pass::EVAL)?.iter().enumerate() {
        let got = &hidden[&format!("layer_{layer}")];
        // Other batches than here: products may sum in another order.
        layerwise_testkit::assert_close(got, want, 1e-5)?;
    }

    let results: Value = serde_json::from_slice(&fs::read(out.path().join("results.json"))?)?;
    for measure in ["cos", "cka_biased", "cka_debiased"] {
        let matrix = results["similarity"][measure].as_array().ok_or("matrix")?;
        assert_eq!(matrix.len(), 13);
        for (i, row) in matrix.iter().enumerate().skip(1) {
            let row = row.as_array().ok_or("row")?;
            assert_eq!(row.len(), 13);
            assert!((row[i].as_f64().ok_or("diagonal")? - 1.).abs() < 1e-9, "{measure} {i}: {}", row[i]);
            // The class token's embedding is the same for every image.
            assert!(row[0].is_null(), "{measure}");
        }
    }
    let labels = Tensor::new(&held_out.labels()[..50], &Cpu)?;
    let scores = evaluate(&vit, [Ok((batch.clone(), labels))])?;
    assert_eq!(numbers(&results["models"]["aligned"]["accuracy"]), scores.accuracy);
    for figure in ["similarity", "curves"] {
        assert!(fs::read(out.path().join(figure).with_extension("png"))?.starts_with(b"\x89PNG"));
    }
    assert!(fs::read_to_string(out.path().join("report.html"))?.contains("The layers of aligned"));

    succeed(&inspect(&[&arguments[..], &["--tokens"]].concat(), out.path()));
    let tokens = candle_core::safetensors::load(out.path().join("hidden.safetensors"), &Cpu)?;
    for layer in ["layer_0", "layer_5", "layer_12"] {
        assert_eq!(tokens[layer].dims(), [50, 17, 48]);
        let first = tokens[layer].narrow(1, 0, 1)?.squeeze(1)?;
        layerwise_testkit::assert_close(&first, &hidden[layer], 0.)?;
    }
    Ok(())
}

#[test]
fn inspect_takes_images_in_the_order_of_their_names() -> Done {
    let model = smoke().join("standard");
    let (images, out) = (tempfile::tempdir()?, tempfile::tempdir()?);
    // Written in another order; the second one has to be resampled.
    for (name, side, level) in [("c.png", 8, 200u8), ("a.png", 8, 10), ("b.png", 20, 90)] {
        let pixel = |x: u32, y: u32| image::Rgb([level, (x * 9) as u8, (y * 7) as u8]);
        image::RgbImage::from_fn(side, side, pixel).save(images.path().join(name))?;
    }
    succeed(&inspect(&["--model", text(&model), "--input", text(images.path())], out.path()));
    let vit = Vit::load(&model, &Cpu)?.frozen();
    let preprocess = Preprocess::load(&model)?.ok_or("no preprocessor_config.json")?;
    let hidden = candle_core::safetensors::load(out.path().join("hidden.safetensors"), &Cpu)?;
    for (row, name) in ["a.png", "b.png", "c.png"].iter().enumerate() {
        let image = layerwise::data::read_image(&images.path().join(name))?;
        let batch = Batch::from(preprocess.apply(&image, &Cpu)?.unsqueeze(0)?);
        let want = &tap::features(&vit, &batch, Pass::EVAL)?[12];
        layerwise_testkit::assert_close(&hidden["layer_12"].narrow(0, row, 1)?, want, 1e-5)?;
    }
    let results: Value = serde_json::from_slice(&fs::read(out.path().join("results.json"))?)?;
    assert_eq!(results["files"], serde_json::json!(["a.png", "b.png", "c.png"]));
    assert_eq!(results["unexpected_tensors"], serde_json::json!([]));
    // Three samples are too few for the debiased CKA.
    assert!(results["similarity"]["cka_debiased"][12][12].is_null());
    assert!(results["similarity"]["cka_biased"][12][12].is_number());

    // Fewer layers than the file has: the states are those of the first ones, and the rest is not passed over in silence.
    let cut = tempfile::tempdir()?;
    for file in ["model.safetensors", "layerwise.json", "preprocessor_config.json"] {
        fs::copy(model.join(file), cut.path().join(file))?;
    }
    let config = fs::read_to_string(model.join("config.json"))?;
    let config = config.replace("\"num_hidden_layers\": 12", "\"num_hidden_layers\": 11");
    fs::write(cut.path().join("config.json"), config)?;
    let output = inspect(&["--model", text(cut.path()), "--input", text(images.path())], out.path());
    succeed(&output);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("unused tensors") && stderr.contains("vit.encoder.layer.11."), "{stderr}");
    let results: Value = serde_json::from_slice(&fs::read(out.path().join("results.json"))?)?;
    assert_eq!(results["unexpected_tensors"].as_array().map(Vec::len), Some(16));
    Ok(())
}

#[test]
fn inspect_measures_what_it_is_asked_for_and_beside_another_model() -> Done {
    let (model, other) = (smoke().join("aligned"), smoke().join("standard"));
    let out = tempfile::tempdir()?;
    let all = "cos,angular,cka,cka-debiased,rbf-cka,cca,svcca,pwcca,procrustes,pnka,rsa,knn";
    let input = ["--model", text(&model), "--input", "digits", "--limit", "60"];
    succeed(&inspect(&[&input[..], &["--measures", all, "--other", text(&model)]].concat(), out.path()));
    let results: Value = serde_json::from_slice(&fs::read(out.path().join("results.json"))?)?;
    let (within, across) = (&results["similarity"], &results["between"]["similarity"]);
    assert_eq!(within.as_object().map(serde_json::Map::len), Some(12));
    for (measure, matrix) in within.as_object().ok_or("similarity")? {
        // Itself as the other one.
        let rows = matrix.as_array().ok_or("matrix")?.iter().zip(across[measure].as_array().ok_or("matrix")?);
        for (layer, (one, two)) in rows.enumerate() {
            let (one, two) = (numbers(one), numbers(two));
            assert_eq!((one.len(), two.len()), if layer == 0 { (0, 0) } else { (12, 12) }, "{measure}");
            assert!(one.iter().zip(&two).all(|(a, b)| (a - b).abs() < 1e-9), "{measure}: {one:?} {two:?}");
            let same = if measure == "angular" { 0. } else { 1. };
            // An arc cosine at 1 makes 1e-8 of a rounding.
            assert!(layer == 0 || (one[layer - 1] - same).abs() < 1e-6, "{measure} {layer}: {one:?}");
        }
    }
    assert!(fs::read(out.path().join("between.png"))?.starts_with(b"\x89PNG"));

    succeed(&inspect(&[&input[..], &["--measures", "cka", "--other", text(&other)]].concat(), out.path()));
    let results: Value = serde_json::from_slice(&fs::read(out.path().join("results.json"))?)?;
    assert_eq!(results["between"]["other"], "standard");
    assert!(results["similarity"]["cos"].is_null() && results["models"]["aligned"]["cos_to_last"].is_null());
    let last = numbers(&results["between"]["similarity"]["cka_biased"][12]);
    assert!(last.len() == 12 && last.iter().all(|cka| (0. ..=1.).contains(cka)), "{last:?}");

    let output = inspect(&[&input[..], &["--measures", "cka,cosine"]].concat(), out.path());
    fails_with(&output, 2, &["cosine", "cka-debiased"]);
    let absent = out.path().join("absent");
    fails_with(&inspect(&[&input[..], &["--other", text(&absent)]].concat(), out.path()), 1, &["absent"]);
    Ok(())
}

#[test]
fn what_is_wrong_is_said_in_one_line() -> Done {
    let folder = tempfile::tempdir()?;
    let at = |name: &str| folder.path().join(name);
    let good = smoke().join("aligned");
    let copy = |name: &str, change: &dyn Fn(&mut Vec<u8>)| -> Done<PathBuf> {
        fs::create_dir_all(at(name))?;
        for file in ["config.json", "layerwise.json", "preprocessor_config.json"] {
            fs::copy(good.join(file), at(name).join(file))?;
        }
        let mut weights = fs::read(good.join("model.safetensors"))?;
        change(&mut weights);
        fs::write(at(name).join("model.safetensors"), weights)?;
        Ok(at(name))
    };
    let truncated = copy("truncated", &|bytes| bytes.truncate(5000))?;
    let nan = copy("nan", &|bytes| {
        let end = bytes.len();
        bytes[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    })?;
    let config = copy("config", &|_| {})?;
    let text_of = fs::read_to_string(good.join("config.json"))?;
    fs::write(config.join("config.json"), text_of.replace("\"gelu\"", "\"gelutanh\""))?;
    fs::create_dir(at("empty"))?;
    fs::create_dir(at("images"))?;
    fs::write(at("images").join("broken.png"), b"\x89PNG\r\n\x1a\nnothing")?;
    fs::write(at("file"), "")?;

    let (absent, empty, images, file) = (at("absent"), at("empty"), at("images"), at("file"));
    let cases: [(&Path, &Path, &[&str]); 7] = [
        (&absent, Path::new("digits"), &["absent"]),
        (&truncated, Path::new("digits"), &["truncated", "model.safetensors"]),
        (&nan, Path::new("digits"), &["model.safetensors", "NaN", "finite"]),
        (&config, Path::new("digits"), &["config.json", "gelutanh"]),
        (&good, &absent, &["absent", "folder"]),
        (&good, &empty, &["empty", "PNG"]),
        (&good, &images, &["broken.png"]),
    ];
    for (model, input, words) in cases {
        let output = inspect(&["--model", text(model), "--input", text(input)], &at("out"));
        fails_with(&output, 1, words);
        assert!(
            !at("out").join("hidden.safetensors").exists()
                && !at("out").join("hidden.safetensors.tmp").exists()
        );
    }
    fails_with(&quickstart(&["--device", "cuda"], &at("out")), 1, &["without CUDA"]);
    fails_with(&quickstart(&[], &file.join("below")), 1, &["below"]);
    fails_with(&run("quickstart", &["--preset", "huge"], &at("out")), 2, &["huge"]);
    fails_with(&inspect(&["--input", "digits"], &at("out")), 2, &["--model"]);

    // A damaged run is not overwritten.
    succeed(&quickstart(&[], &at("run")));
    let state = at("run").join("runs/standard-smoke-seed0/state.safetensors");
    let damaged = fs::read(&state)?[..777].to_vec();
    fs::write(&state, &damaged)?;
    fails_with(&quickstart(&[], &at("run")), 1, &["state.safetensors"]);
    assert_eq!(fs::read(&state)?, damaged);
    Ok(())
}

/// The folder of one smoke run of the quickstart, shared by the tests.
fn smoke() -> &'static Path {
    static OUT: OnceLock<TempDir> = OnceLock::new();
    OUT.get_or_init(|| {
        let out = tempfile::tempdir().expect("a temporary folder");
        let output = quickstart(&["--seed", "3"], out.path());
        succeed(&output);
        let tables = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(tables.contains("acc. standard") && tables.contains("time ratio"), "{tables}");
        out
    })
    .path()
}

fn quickstart(arguments: &[&str], out: &Path) -> Output {
    run("quickstart", &[&["--preset", "smoke"], arguments].concat(), out)
}

fn inspect(arguments: &[&str], out: &Path) -> Output {
    run("inspect", arguments, out)
}

/// The quickstart's test images as its model takes them.
fn held_out(out: &Path, model: &str) -> Done<Batch> {
    let (_, test) = digits()?.split(0.2, 0)?;
    let preprocess = Preprocess::load(&out.join(model))?.ok_or("no preprocessor_config.json")?;
    Ok(preprocess.apply_set(&test, &(0..test.len()).collect::<Vec<_>>(), &Cpu)?.into())
}

fn held_out_labels() -> Done<Tensor> {
    Ok(Tensor::new(digits()?.split(0.2, 0)?.1.labels(), &Cpu)?)
}
