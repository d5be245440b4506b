//! The reproduced figures at their smallest: what they write, and that they agree with each other.

mod running;

use std::{fs, path::Path, process::Output, sync::OnceLock};

use serde_json::Value;
use tempfile::TempDir;

use running::{fails_with, numbers, run, succeed, text};

type Done<T = ()> = Result<T, Box<dyn std::error::Error>>;

const VISION: [&str; 4] =
    ["f01_pca_class_means", "f02_cos_tracks_cka", "f09_box_plots", "f10_residual_branch"];
const MLP: &str = "f11_mlp_residual_mnist";

#[test]
fn every_figure_writes_what_it_promises() -> Done {
    for (example, figures) in [
        (VISION[0], &["class_means", "curves"][..]),
        (VISION[1], &["tracks", "similarity"]),
        (VISION[2], &["box_plots", "saturation"]),
        (VISION[3], &["blocks"]),
        (MLP, &["curves"]),
    ] {
        let (out, results) = (smoke().join(example), results(example)?);
        assert_eq!((&results["example"], &results["seed"]), (&example.into(), &3.into()));
        assert_eq!(results["config"]["images"], "digits");
        for figure in figures {
            assert!(fs::read(out.join(figure).with_extension("png"))?.starts_with(b"\x89PNG"), "{figure}");
            assert!(
                fs::read_to_string(out.join(figure).with_extension("svg"))?.contains("</svg>"),
                "{figure}"
            );
        }
        let report = fs::read_to_string(out.join("report.html"))?;
        assert_eq!(report.matches("<figure>").count(), figures.len(), "{example}");
    }
    Ok(())
}

#[test]
fn figures_of_the_same_models_agree() -> Done {
    let [means, tracks, boxes, blocks] = VISION.map(results);
    let (means, tracks, boxes, blocks) = (means?, tracks?, boxes?, blocks?);
    let depth = 12;
    for model in ["standard", "aligned"] {
        let (means, boxes) = (&means["models"][model], &boxes["models"][model]);
        let accuracy = numbers(&means["accuracy"]);
        assert_eq!((accuracy.len(), &accuracy), (depth, &numbers(&boxes["accuracy"])));
        assert_eq!(accuracy, numbers(&blocks["models"][model]["accuracy"]));
        close(&numbers(&means["cos_to_last"]), &numbers(&boxes["cos_to_last"]));
        close(&numbers(&means["class_means_cos_to_last"])[depth - 1..], &[1.]);
        let paths = means["plane"]["paths"].as_object().ok_or("paths")?;
        assert_eq!(paths.len(), 10);
        assert!(paths.values().all(|path| path.as_array().is_some_and(|path| path.len() == depth)));
        assert_eq!(numbers(&boxes["saturated"]).iter().sum::<f64>(), 359.);
        for levels in boxes["cos_quantiles"].as_array().ok_or("quantiles")? {
            assert!(numbers(levels).is_sorted() && numbers(levels).len() == 5, "{levels}");
        }
        assert!(numbers(&boxes["negative"]).iter().all(|share| (0. ..=1.).contains(share)));
        let blocks = &blocks["models"][model];
        for (field, entries) in [
            ("adjacent_cos", depth - 1),
            ("norm_ratio", depth - 1),
            ("branch_cos", depth - 1),
            ("block_influence", depth),
        ] {
            assert_eq!(numbers(&blocks[field]).len(), entries, "{field}");
        }
    }
    let seeds: Vec<&String> = tracks["models"].as_object().ok_or("models")?.keys().collect();
    assert_eq!(seeds, ["seed 3", "seed 4", "seed 5"]);
    let seed = &tracks["models"]["seed 3"];
    assert_eq!(numbers(&seed["accuracy"]), numbers(&means["models"]["standard"]["accuracy"]));
    close(&numbers(&seed["cos_to_last"]), &numbers(&means["models"]["standard"]["cos_to_last"]));
    let neighbours: Vec<f64> = (0..depth - 1).filter_map(|l| seed["cos"][l][l + 1].as_f64()).collect();
    close(&neighbours, &numbers(&blocks["models"]["standard"]["adjacent_cos"]));
    let pairs = seed["correlations"].as_array().ok_or("correlations")?;
    assert_eq!(pairs.len(), 4);
    assert!(pairs.iter().all(|pair| pair["pearson"].as_f64().is_none_or(|r| r.abs() <= 1.)), "{pairs:?}");
    assert_eq!(tracks["mean_correlations"].as_array().map(Vec::len), Some(4));
    Ok(())
}

#[test]
fn residual_connections_are_what_differs() -> Done {
    let results = results(MLP)?;
    let models = results["models"].as_object().ok_or("models")?;
    assert_eq!(models.len(), 6);
    for (name, model) in models {
        for field in ["accuracy", "cos_to_last", "cka_to_last"] {
            assert_eq!(numbers(&model[field]).len(), 9, "{name} {field}");
        }
    }
    for variant in ["plain", "residual"] {
        assert_eq!(results["mean_correlations"][variant].as_array().map(Vec::len), Some(3));
    }
    // Even after two epochs.
    let inner = |variant: &str| numbers(&models[&format!("{variant}, seed 3")]["cos_to_last"])[7];
    assert!(inner("residual") > 0.5 && inner("plain") < 0.5, "{} {}", inner("residual"), inner("plain"));
    Ok(())
}

#[test]
fn trained_models_are_found_again_and_others_are_not_taken_for_them() -> Done {
    let folder = tempfile::tempdir()?;
    let again = |runs: &Path| {
        figure(VISION[2], &["--preset", "smoke", "--seed", "3"], runs, &folder.path().join("again"))
    };
    let output = again(&smoke().join("runs"));
    succeed(&output);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(!stderr.contains("training") && stderr.contains("stand in"), "{stderr}");
    let models = |path: &Path| -> Done<Value> {
        Ok(serde_json::from_slice::<Value>(&fs::read(path.join("results.json"))?)?["models"].take())
    };
    assert_eq!(models(&folder.path().join("again"))?, models(&smoke().join(VISION[2]))?);

    let run = folder.path().join("runs/digits-standard-smoke-seed3");
    fs::create_dir_all(&run)?;
    let task = fs::read_to_string(smoke().join("runs/digits-standard-smoke-seed3/task.json"))?;
    fs::write(
        run.join("task.json"),
        task.replace("\"num_attention_heads\": 3", "\"num_attention_heads\": 4"),
    )?;
    fails_with(&again(&folder.path().join("runs")), 1, &["task.json", "differs in model"]);
    Ok(())
}

#[test]
fn a_checkpoint_is_measured_instead() -> Done {
    let folder = tempfile::tempdir()?;
    // A trained model's folder is one that any program reads.
    let model = smoke().join("runs/models/digits-aligned-smoke-seed3");
    for example in VISION {
        let out = folder.path().join(example);
        let arguments = ["--preset", "smoke", "--model", text(&model), "--limit", "100"];
        succeed(&run(example, &arguments, &out));
        let results: Value = serde_json::from_slice(&fs::read(out.join("results.json"))?)?;
        let models = results["models"].as_object().ok_or("models")?;
        assert_eq!((models.len(), &results["config"]["test_samples"]), (1, &100.into()), "{example}");
        assert_eq!(numbers(&models["digits-aligned-smoke-seed3"]["accuracy"]).len(), 12, "{example}");
    }
    // What says how to train does not go with it, and what cannot be measured is said before anything is.
    for flags in [["--seed", "3"], ["--runs", "runs"]] {
        let arguments = [&["--preset", "smoke", "--model", text(&model)][..], &flags].concat();
        fails_with(&run(VISION[0], &arguments, folder.path()), 2, &["cannot be used with", flags[0]]);
    }
    let arguments = ["--preset", "smoke", "--limit", "5"];
    let output = figure(VISION[0], &arguments, &folder.path().join("few"), folder.path());
    fails_with(&output, 1, &["--limit", "no image of class"]);
    assert!(!folder.path().join("few").exists(), "nothing is trained");

    // Without labels there are layers, but neither classes nor accuracy.
    let images = folder.path().join("images");
    fs::create_dir(&images)?;
    for level in [10u8, 90, 170, 250] {
        let pixel = |x: u32, y: u32| image::Rgb([level, (x * 20) as u8, (y * 9) as u8]);
        image::RgbImage::from_fn(8, 8, pixel).save(images.join(format!("{level}.png")))?;
    }
    let arguments = ["--data", text(&images), "--model", text(&model)];
    let out = folder.path().join("images-out");
    succeed(&run(VISION[3], &arguments, &out));
    succeed(&run(VISION[2], &arguments, &out));
    assert!(!out.join("saturation.svg").exists());
    fails_with(&run(VISION[0], &arguments, &out), 1, &["--data", "labels"]);
    Ok(())
}

#[test]
fn data_that_is_not_there_is_named() -> Done {
    let folder = tempfile::tempdir()?;
    let (empty, out) = (folder.path().join("empty"), folder.path().join("out"));
    fs::create_dir(&empty)?;
    for example in VISION {
        fails_with(&figure(example, &[], &out, &out), 1, &["--data", "CIFAR-10"]);
    }
    fails_with(&figure(VISION[0], &["--data", text(&empty)], &out, &out), 1, &["empty", "data_batch_1.bin"]);
    fails_with(&figure(MLP, &[], &out, &out), 1, &["--data", "MNIST"]);
    fails_with(&figure(MLP, &["--data", text(&empty)], &out, &out), 1, &["empty", "train-images"]);
    let arguments = ["--preset", "smoke", "--model", text(&empty)];
    fails_with(&run(VISION[1], &arguments, &out), 1, &["empty"]);
    assert!(!out.exists());
    Ok(())
}

#[test]
fn the_real_data_sets_train_at_their_smallest() -> Done {
    let Some(shared) = layerwise_testkit::from_env("LAYERWISE_SHARED") else { return Ok(()) };
    let folder = tempfile::tempdir()?;
    for (example, data, images) in [(VISION[0], "cifar10", "cifar10"), (MLP, "mnist", "mnist")] {
        let data = shared.join("data").join(data);
        let out = folder.path().join(example);
        let output = figure(example, &["--preset", "smoke", "--data", text(&data)], &out.join("runs"), &out);
        succeed(&output);
        let results: Value = serde_json::from_slice(&fs::read(out.join("results.json"))?)?;
        assert_eq!(results["config"]["images"], images);
    }
    Ok(())
}

/// The folder of one smoke run of every figure, with the runs they share, for all tests.
fn smoke() -> &'static Path {
    static OUT: OnceLock<TempDir> = OnceLock::new();
    let out = OUT.get_or_init(|| {
        let out = tempfile::tempdir().expect("a temporary folder");
        for example in VISION.iter().chain(&[MLP]) {
            let folder = out.path().join(example);
            succeed(&figure(
                example,
                &["--preset", "smoke", "--seed", "3"],
                &out.path().join("runs"),
                &folder,
            ));
        }
        out
    });
    out.path()
}

fn figure(example: &str, arguments: &[&str], runs: &Path, out: &Path) -> Output {
    run(example, &[arguments, &["--runs", text(runs)]].concat(), out)
}

fn results(example: &str) -> Done<Value> {
    Ok(serde_json::from_slice(&fs::read(smoke().join(example).join("results.json"))?)?)
}

/// Numbers that were computed in another order.
fn close(one: &[f64], two: &[f64]) {
    let close = one.len() == two.len() && one.iter().zip(two).all(|(a, b)| (a - b).abs() < 1e-9);
    assert!(close, "{one:?}\n{two:?}");
}
