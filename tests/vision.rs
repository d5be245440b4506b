//! The vision experiments at their smallest: what they write, and that they agree with each other.

mod running;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::OnceLock,
};

use candle_core::{DType::F64, Device::Cpu, Tensor};
use layerwise::{
    data::{ImageSet, Preprocess, Split, cifar10, digits},
    exit::evaluate,
    models::{Batch, Pass, Vit, tap},
    ops::softmax,
    similarity::{ProbeConfig, fit_probe, neural_collapse},
};
use serde_json::Value;
use tempfile::TempDir;

use running::{fails_with, numbers, run, succeed, text};

type Done<T = ()> = Result<T, Box<dyn std::error::Error>>;

const DEPTH: usize = 12;
/// Examples, and the figures that each draws.
const EXAMPLES: [(&str, &[&str]); 7] = [
    ("f03_three_trainings", &["layers", "collapse", "similarity"]),
    ("f04_minimal_depth", &["depth", "convergence"]),
    ("f05_early_exit", &["trade_off", "leaving"]),
    ("f12_elastic", &["depths"]),
    ("f13_cosine_regulariser", &["layers"]),
    ("finetune_vit", &["layers"]),
    ("objectives", &["objectives"]),
];

#[test]
fn every_example_writes_what_it_promises() -> Done {
    for (example, figures) in EXAMPLES {
        let (out, results) = (smoke().join(example), results(example)?);
        assert_eq!((&results["example"], &results["seed"]), (&example.into(), &3.into()));
        assert_eq!(results["config"]["images"], "digits");
        for figure in figures {
            assert!(fs::read(out.join(figure).with_extension("png"))?.starts_with(b"\x89PNG"), "{figure}");
            let svg = fs::read_to_string(out.join(figure).with_extension("svg"))?;
            assert!(svg.contains("</svg>") && !svg.contains("NaN"), "{figure}");
        }
        let report = fs::read_to_string(out.join("report.html"))?;
        assert_eq!(report.matches("<figure>").count(), figures.len(), "{example}");
        for (name, model) in results["models"].as_object().ok_or("models")? {
            let layers =
                name.split(' ').find_map(|word| word.parse().ok()).filter(|_| name.contains("layers"));
            assert_eq!(numbers(&model["accuracy"]).len(), layers.unwrap_or(DEPTH), "{example}: {name}");
        }
    }
    Ok(())
}

#[test]
fn experiments_with_the_same_models_agree() -> Done {
    let [three, depths, exits, elastic, regulariser, fine_tuned, _] = EXAMPLES.map(|(name, _)| results(name));
    let (three, depths, exits) = (three?, depths?, exits?);
    let (elastic, regulariser, fine_tuned) = (elastic?, regulariser?, fine_tuned?);
    for model in ["standard", "aligned"] {
        let accuracy = numbers(&three["models"][model]["accuracy"]);
        for other in [&depths, &exits, &regulariser, &fine_tuned] {
            assert_eq!(accuracy, numbers(&other["models"][model]["accuracy"]), "{}", other["example"]);
        }
        let cos = numbers(&three["models"][model]["cos_to_last"]);
        assert_eq!(cos, numbers(&regulariser["models"][model]["cos_to_last"]));
        assert_eq!(numbers(&three["models"][model]["nc1"]).len(), DEPTH);
        assert!(numbers(&three["models"][model]["probe"]).iter().all(|share| (0. ..=1.).contains(share)));
        assert_eq!(three["models"][model]["exit_parameters"], 0);
    }
    // 11 inner exits of 48 weights and a bias for each of 10 classes.
    assert_eq!(three["models"]["multi-exit"]["exit_parameters"], 11 * 49 * 10);
    let aligned = numbers(&three["models"]["aligned"]["accuracy"]);
    // What a folder answers, not what its exit did in the whole model.
    let depths_of: Vec<f64> =
        elastic["depths"].as_array().ok_or("depths")?.iter().filter_map(|d| d["accuracy"].as_f64()).collect();
    assert_eq!(depths_of, aligned);
    for cut in depths["cuts"].as_array().ok_or("cuts")? {
        let depth = cut["depth"].as_u64().ok_or("depth")? as usize;
        assert_eq!(cut["accuracy"].as_f64(), Some(aligned[depth - 1]));
        assert_eq!(cut["bytes"], elastic["depths"][depth - 1]["bytes"], "the same file");
    }
    Ok(())
}

#[test]
fn objectives_are_summed_up_as_their_models_say() -> Done {
    let results = results("objectives")?;
    let summaries = results["objectives"].as_object().ok_or("objectives")?;
    assert_eq!(summaries.len(), 9);
    for (name, summary) in summaries {
        let curves: Vec<Vec<f64>> = (3..5)
            .map(|seed| numbers(&results["models"][format!("{name}, seed {seed}")]["accuracy"]))
            .collect();
        let mean = |f: &dyn Fn(&Vec<f64>) -> f64| curves.iter().map(f).sum::<f64>() / curves.len() as f64;
        let close = |key: &str, want: f64| {
            let got = summary[key].as_f64().unwrap_or(f64::NAN);
            assert!((got - want).abs() < 1e-12, "{name}: {key} {got} {want}");
        };
        close("last", mean(&|curve| curve[DEPTH - 1]));
        close("half", mean(&|curve| curve[DEPTH / 2 - 1]));
        close("area", mean(&|curve| curve.iter().sum::<f64>() / DEPTH as f64));
        // Of two values: half their distance, times the root of 2.
        close("last_deviation", (curves[0][DEPTH - 1] - curves[1][DEPTH - 1]).abs() / 2f64.sqrt());
        assert!(results["models"][format!("{name}, seed 3")]["objective"] != Value::Null);
    }
    Ok(())
}

#[test]
fn leaving_early_is_measured_at_every_threshold() -> Done {
    let results = results("f05_early_exit")?;
    let exits = results["exits"].as_array().ok_or("exits")?;
    assert_eq!(exits.len(), 3 * 12);
    for exit in exits {
        let histogram = numbers(&exit["histogram"]);
        assert_eq!(histogram.iter().sum::<f64>(), 359.);
        let layers: f64 = histogram.iter().enumerate().map(|(i, count)| (i + 1) as f64 * count).sum();
        let ratio = DEPTH as f64 * 359. / layers;
        assert!(exit["layer_ratio"].as_f64().is_some_and(|got| (got - ratio).abs() < 1e-12), "{exit}");
        assert!(exit["wall_ratio"].as_f64() > Some(0.));
    }
    // The rule itself, on the logits of all layers.
    let (model, preprocess) = trained("aligned")?;
    let (_, test) = digits()?.split(0.2, 0)?;
    let logits = tap::layer_logits(&model, &whole(&test, &preprocess)?, Pass::EVAL)?;
    let probabilities = logits.iter().map(|logits| Ok(softmax(&logits.to_dtype(F64)?)?.to_vec2::<f64>()?));
    let probabilities = probabilities.collect::<Done<Vec<_>>>()?;
    let surest =
        |row: &[f64]| row.iter().copied().enumerate().fold((0, 0.), |a, b| if b.1 > a.1 { b } else { a });
    for exit in exits.iter().filter(|exit| exit["model"] == "aligned") {
        let threshold = exit["threshold"].as_f64().ok_or("threshold")?;
        let (mut histogram, mut right) = (vec![0.; DEPTH], 0.);
        for (sample, label) in test.labels().iter().enumerate() {
            let sure = |layer: &usize| surest(&probabilities[*layer][sample]).1 > threshold;
            let layer = (0..DEPTH).find(sure).unwrap_or(DEPTH - 1);
            histogram[layer] += 1.;
            right += f64::from(u8::from(surest(&probabilities[layer][sample]).0 == *label as usize));
        }
        // One sample may stand within a rounding of the threshold.
        let moved: f64 = histogram.iter().zip(numbers(&exit["histogram"])).map(|(a, b)| (a - b).abs()).sum();
        let accuracy = exit["accuracy"].as_f64().ok_or("accuracy")? * 359.;
        assert!(moved <= 2. && (accuracy - right).abs() < 1.5, "{exit}: {histogram:?}, {right} right");
    }
    Ok(())
}

#[test]
fn probes_and_collapse_are_of_training_images() -> Done {
    let results = results("f03_three_trainings")?;
    let (model, preprocess) = trained("aligned")?;
    let (train, test) = digits()?.split(0.2, 0)?;
    let seen = train.take(240)?;
    let layers = |set: &ImageSet| -> Done<Vec<Tensor>> {
        Ok(tap::features(&model, &whole(set, &preprocess)?, Pass::EVAL)?)
    };
    let labels = |set: &ImageSet| set.labels().iter().map(|&label| label as usize).collect::<Vec<_>>();
    let (fitted, scored) = (layers(&seen)?, layers(&test)?);
    let model = &results["models"]["aligned"];
    let (nc1, probe) = (numbers(&model["nc1"]), numbers(&model["probe"]));
    for layer in [1, 6, 12] {
        let want = neural_collapse(&fitted[layer], &labels(&seen), 10)?.nc1;
        // f32 features of the same weights, normalised in another order.
        assert!((nc1[layer - 1] / want - 1.).abs() < 1e-3, "layer {layer}: {} {want}", nc1[layer - 1]);
        let fit = fit_probe(&fitted[layer], &labels(&seen), 10, &ProbeConfig::default())?;
        let want = fit.accuracy(&scored[layer], &labels(&test))?;
        assert!((probe[layer - 1] - want).abs() < 1.5 / 359., "layer {layer}: {} {want}", probe[layer - 1]);
    }
    Ok(())
}

#[test]
fn a_budget_picks_the_most_accurate_depth_that_fits() -> Done {
    let folder = tempfile::tempdir()?;
    let elastic = |flags: &[&str], out: &str| -> Done<Value> {
        let out = folder.path().join(out);
        succeed(&vision("f12_elastic", flags, &smoke().join("runs"), &out));
        Ok(serde_json::from_slice(&fs::read(out.join("results.json"))?)?)
    };
    let generous = elastic(&["--latency", "1e9"], "generous")?;
    let accuracy = |depth: &Value| depth["accuracy"].as_f64().unwrap_or(f64::NAN);
    let of_all = generous["depths"].as_array().ok_or("depths")?;
    let best = of_all.iter().map(accuracy).fold(0., f64::max);
    // Of equals the shallowest.
    let first = of_all.iter().position(|depth| accuracy(depth) == best).ok_or("a best one")? + 1;
    assert_eq!(generous["budget"]["picked"], first as u64);
    let none = elastic(&["--latency", "1e-9"], "none")?;
    assert_eq!(none["budget"]["picked"], Value::Null);
    let depths = generous["depths"].as_array().ok_or("depths")?;
    if cfg!(target_os = "linux") {
        assert!(depths.iter().all(|depth| depth["memory_mib"].as_f64() > Some(0.)), "{depths:?}");
        let none = elastic(&["--latency", "1e9", "--memory", "1e-9"], "no-memory")?;
        assert_eq!(none["budget"]["picked"], Value::Null);
    }
    // Any checkpoint will do.
    let model = smoke().join("runs/models/digits-aligned-smoke-seed3");
    let out = folder.path().join("loaded");
    succeed(&run("f12_elastic", &["--preset", "smoke", "--model", text(&model)], &out));
    let cut = Vit::load(&out.join("depth-5"), &Cpu)?;
    assert_eq!(cut.config().num_hidden_layers, 5);
    Ok(())
}

#[test]
fn transformers_reads_the_cut_models() -> Done {
    let Some(python) = layerwise_testkit::from_env("LAYERWISE_PYTHON") else { return Ok(()) };
    let folder = tempfile::tempdir()?;
    let cuts: Vec<PathBuf> =
        [6, 9, 12].map(|depth| smoke().join(format!("f04_minimal_depth/cut-{depth}"))).into();
    let (_, test) = digits()?.split(0.2, 0)?;
    let preprocess = Preprocess::load(&cuts[0])?.ok_or("no preprocessor_config.json")?;
    let pixels = preprocess.apply_set(&test, &(0..20).collect::<Vec<_>>(), &Cpu)?;
    let at = |name: &str| folder.path().join(name);
    candle_core::safetensors::save(&[("pixels", pixels.clone())].into(), at("pixels.safetensors"))?;
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("crates/models/tests/fixtures/load_hf.py");
    let output = Command::new(python)
        .env("HF_HUB_OFFLINE", "1")
        .args([&script, &at("pixels.safetensors"), &at("logits.safetensors")])
        .args(&cuts)
        .output()?;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let theirs = candle_core::safetensors::load(at("logits.safetensors"), &Cpu)?;
    for cut in &cuts {
        let ours = tap::forward(&Vit::load(cut, &Cpu)?, &Batch::from(pixels.clone()), Pass::EVAL)?;
        let name = cut.file_name().and_then(|name| name.to_str()).ok_or("a name")?;
        // 12 blocks of sums of at most 192 terms in f32, on both sides.
        layerwise_testkit::assert_close(&ours, &theirs[name], 1e-5)
            .map_err(|error| format!("{name}: {error}"))?;
    }
    Ok(())
}

#[test]
fn what_is_missing_or_does_not_fit_is_said_before_anything_is_trained() -> Done {
    let folder = tempfile::tempdir()?;
    let (runs, out) = (folder.path().join("runs"), folder.path().join("out"));
    let small =
        |example: &str, flags: &[&str]| run(example, &[flags, &["--runs", text(&runs)]].concat(), &out);
    for (example, _) in EXAMPLES.into_iter().filter(|(example, _)| *example != "finetune_vit") {
        fails_with(&small(example, &[]), 1, &["--data", "CIFAR-10"]);
    }
    fails_with(&small("finetune_vit", &[]), 1, &["--pretrained", "ViT or DeiT"]);
    let shift = ["--preset", "smoke", "--shift", text(folder.path())];
    fails_with(&small("f06_shift_and_transfer", &shift), 1, &["--data", "CIFAR-10"]);
    fails_with(&small("f03_three_trainings", &["--image-size", "28"]), 2, &["--pretrained"]);
    // Built without the hub.
    if !cfg!(feature = "hub") {
        let id = ["--preset", "smoke", "--pretrained", "facebook/deit-small-patch16-224"];
        fails_with(&small("finetune_vit", &id), 1, &["--pretrained facebook/deit", "--features hub"]);
        fails_with(
            &small("f05_early_exit", &["--data", "uoft-cs/cifar10"]),
            1,
            &["--data uoft-cs", "--features hub"],
        );
    }
    fails_with(&small("objectives", &["--seeds", "0"]), 2, &["--seeds"]);
    let last = u64::MAX.to_string();
    fails_with(&small("objectives", &["--preset", "smoke", "--seed", &last]), 1, &["--seed", &last]);
    fails_with(
        &small("objectives", &["--preset", "smoke", "--only", "alined"]),
        1,
        &["alined", "alternating"],
    );
    for depths in ["0", "12", "6,15"] {
        fails_with(
            &small("f04_minimal_depth", &["--preset", "smoke", "--depths", depths]),
            1,
            &["--depths", "12"],
        );
    }
    let few = ["--preset", "smoke", "--train-limit", "5"];
    fails_with(&small("f03_three_trainings", &few), 1, &["--train-limit", "no image of class"]);
    fails_with(&small("f13_cosine_regulariser", &["--preset", "smoke", "--betas=-1"]), 1, &["beta"]);
    let model = smoke().join("runs/models/digits-aligned-smoke-seed3");
    let pretrained = ["--preset", "smoke", "--pretrained", text(&model)];
    let flags = [&pretrained[..], &["--image-size", "9"]].concat();
    fails_with(&small("finetune_vit", &flags), 1, &["--image-size 9", "patch"]);
    assert!(!out.exists() || fs::read_dir(&out)?.next().is_none(), "nothing is written");
    Ok(())
}

#[test]
fn a_model_is_fine_tuned_at_another_size() -> Done {
    let folder = tempfile::tempdir()?;
    let model = smoke().join("runs/models/digits-aligned-smoke-seed3");
    let (runs, out) = (folder.path().join("runs"), folder.path().join("out"));
    let flags = [
        "--pretrained",
        text(&model),
        "--image-size",
        "12",
        "--train-limit",
        "96",
        "--epochs",
        "1",
        "--lr",
        "1e-3",
    ];
    succeed(&vision("finetune_vit", &flags, &runs, &out));
    let results: Value = serde_json::from_slice(&fs::read(out.join("results.json"))?)?;
    assert_eq!(
        (&results["config"]["image_size"], &results["config"]["train_samples"]),
        (&12.into(), &96.into())
    );
    // Named by what makes it another one.
    let tuned = runs
        .join("models/digits-first96-digits-aligned-smoke-seed3-12px-aligned-smoke-epochs1-lr0.001-seed3");
    let tuned = Vit::load(&tuned, &Cpu)?;
    assert_eq!((tuned.config().image_size, tuned.config().patches()), (12, 36));
    assert_eq!(tuned.config().label(7), "7");
    // In bf16 it is another run, of much the same weights, which are f32 as before.
    succeed(&vision("finetune_vit", &[&flags[..], &["--precision", "bf16"]].concat(), &runs, &out));
    let results: Value = serde_json::from_slice(&fs::read(out.join("results.json"))?)?;
    assert_eq!(results["config"]["precision"], "bf16");
    let name = "digits-first96-digits-aligned-smoke-seed3-12px-aligned-smoke-epochs1-lr0.001-bf16-seed3";
    let rounded = Vit::load(&runs.join("models").join(name), &Cpu)?;
    for ((name, wide), (_, rounded)) in tuned.params().iter().zip(rounded.params().iter()) {
        let off = (wide.as_tensor() - rounded.as_tensor())?.abs()?.max_all()?.to_scalar::<f32>()?;
        assert!(off < 0.02, "{name}: {off}");
        let bits = rounded.flatten_all()?.to_vec1::<f32>()?;
        assert!(bits.iter().any(|x| x.to_bits() & 0xffff != 0), "{name} has 16 bits");
    }
    Ok(())
}

#[test]
fn real_images_train_and_shift_and_transfer() -> Done {
    let Some(shared) = layerwise_testkit::from_env("LAYERWISE_SHARED") else { return Ok(()) };
    let data = |name: &str| shared.join("data").join(name);
    let (cifar10, shift, tiny) =
        (data("cifar10"), data("cifar10-shift-tinyimagenet"), data("tiny-imagenet-20"));
    let folder = tempfile::tempdir()?;
    let runs = folder.path().join("runs");
    let out = folder.path().join("f06");
    let flags = ["--data", text(&cifar10), "--shift", text(&shift), "--transfer-from", text(&tiny)];
    succeed(&vision("f06_shift_and_transfer", &flags, &runs, &out));
    let results: Value = serde_json::from_slice(&fs::read(out.join("results.json"))?)?;
    assert_eq!(results["config"]["transfer_from"]["images"], "tiny-imagenet-20");
    let held_out = cifar10::load(&cifar10, Split::Test)?.take(240)?;
    // No airplane, deer or horse.
    let shared = held_out.labels().iter().filter(|label| ![0, 4, 7].contains(*label)).count() as f64;
    for model in ["standard", "aligned"] {
        for (key, samples) in [("familiar", shared), ("shifted", 1396.), ("source", 240.), ("probe", 240.)] {
            let curve = numbers(&results["models"][model][key]);
            assert_eq!(curve.len(), DEPTH, "{model}: {key}");
            for share in curve {
                assert!(
                    (share * samples - (share * samples).round()).abs() < 1e-9,
                    "{model}: {key}: {share} of {samples}"
                );
            }
        }
    }
    // Shifted to itself, or rather to all of the test set of which 240 images are held out.
    let out = folder.path().join("itself");
    let flags = ["--data", text(&cifar10), "--shift", text(&cifar10), "--limit", "240"];
    succeed(&vision("f06_shift_and_transfer", &flags, &runs, &out));
    let itself: Value = serde_json::from_slice(&fs::read(out.join("results.json"))?)?;
    succeed(&vision("f13_cosine_regulariser", &["--data", text(&cifar10), "--betas", "1"], &runs, &out));
    let plain: Value = serde_json::from_slice(&fs::read(out.join("results.json"))?)?;
    for model in ["standard", "aligned"] {
        let [familiar, accuracy] =
            [&itself["models"][model]["familiar"], &plain["models"][model]["accuracy"]].map(numbers);
        // Both are counts over 240; one was divided, the other is a mean.
        let close = |(a, b): (&f64, &f64)| (a - b).abs() < 1e-12;
        assert!(
            familiar.len() == DEPTH && familiar.iter().zip(&accuracy).all(close),
            "{familiar:?} {accuracy:?}"
        );
    }
    let whole = Vit::load(&runs.join("models/cifar10-aligned-smoke-seed3"), &Cpu)?.packed()?;
    let preprocess =
        Preprocess::load(&runs.join("models/cifar10-aligned-smoke-seed3"))?.ok_or("no preprocessing")?;
    let test = cifar10::load(&cifar10, Split::Test)?;
    let batches = (0..test.len()).step_by(100).map(|start| {
        let rows: Vec<usize> = (start..start + 100).collect();
        let pixels = preprocess.apply_set(&test, &rows, &Cpu).map_err(candle_core::Error::wrap)?;
        Ok((Batch::from(pixels), Tensor::new(&test.labels()[start..start + 100], &Cpu)?))
    });
    let (shifted, want) =
        (numbers(&itself["models"]["aligned"]["shifted"]), evaluate(&whole, batches)?.accuracy);
    assert!(shifted.iter().zip(&want).all(|(a, b)| (a - b).abs() < 1e-12), "{shifted:?} {want:?}");
    let Some(weights) = layerwise_testkit::from_env("LAYERWISE_WEIGHTS") else { return Ok(()) };
    let vit = weights.join("vit-s14");
    let flags =
        ["--data", text(&cifar10), "--pretrained", text(&vit), "--train-limit", "96", "--limit", "64"];
    let out = folder.path().join("tuned");
    succeed(&vision("finetune_vit", &flags, &runs, &out));
    let results: Value = serde_json::from_slice(&fs::read(out.join("results.json"))?)?;
    assert_eq!(
        (&results["config"]["image_size"], &results["config"]["pretrained"]),
        (&28.into(), &text(&vit).into())
    );
    let sized = Tensor::zeros((1, 3, 28, 28), candle_core::DType::F32, &Cpu)?;
    let tuned = Vit::load(&runs.join("models/cifar10-first96-vit-s14-28px-standard-smoke-seed3"), &Cpu)?;
    assert_eq!(tap::forward(&tuned, &sized.into(), Pass::EVAL)?.dims(), [1, 10]);
    Ok(())
}

/// A model of the smoke runs, as it is served.
fn trained(name: &str) -> Done<(Vit, Preprocess)> {
    let folder = smoke().join(format!("runs/models/digits-{name}-smoke-seed3"));
    Ok((
        Vit::load(&folder, &Cpu)?.packed()?,
        Preprocess::load(&folder)?.ok_or("no preprocessor_config.json")?,
    ))
}

/// All images of a set, as a model takes them.
fn whole(set: &ImageSet, preprocess: &Preprocess) -> Done<Batch> {
    Ok(preprocess.apply_set(set, &(0..set.len()).collect::<Vec<_>>(), &Cpu)?.into())
}

/// The folder of one smoke run of every example, with the runs they share, for all tests.
fn smoke() -> &'static Path {
    static OUT: OnceLock<TempDir> = OnceLock::new();
    let out = OUT.get_or_init(|| {
        let out = tempfile::tempdir().expect("a temporary folder");
        for (example, _) in EXAMPLES {
            let flags: &[&str] = if example == "objectives" { &["--seeds", "2"] } else { &[] };
            let folder = out.path().join(example);
            succeed(&vision(example, flags, &out.path().join("runs"), &folder));
        }
        out
    });
    out.path()
}

fn vision(example: &str, flags: &[&str], runs: &Path, out: &Path) -> Output {
    run(example, &[&["--preset", "smoke", "--seed", "3", "--runs", text(runs)], flags].concat(), out)
}

fn results(example: &str) -> Done<Value> {
    Ok(serde_json::from_slice(&fs::read(smoke().join(example).join("results.json"))?)?)
}
