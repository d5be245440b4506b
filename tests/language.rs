//! The experiments with language at their smallest: a GPT-2 that learns a page of this project's for a moment.

mod running;

use std::{fs, path::Path};

use candle_core::Device::Cpu;
use layerwise::models::{Gpt2, Gpt2Config, Tapped};
use serde_json::{Value, json};

use running::{fails_with, numbers, run, succeed, text};

type Done<T = ()> = Result<T, Box<dyn std::error::Error>>;

const DEPTH: usize = 3;

fn page(name: &str) -> String {
    format!("{}/{name}", env!("CARGO_MANIFEST_DIR"))
}

fn results(folder: &Path) -> Done<Value> {
    Ok(serde_json::from_slice(&fs::read(folder.join("results.json"))?)?)
}

#[test]
fn a_language_model_is_trained_measured_and_says_something() -> Done {
    let folder = tempfile::tempdir()?;
    let (out, runs) = (folder.path().join("out"), folder.path().join("runs"));
    // What it has read it knows: little text teaches nothing of other text.
    let (train, test) =
        (page("tests/fixtures/language/design.txt"), page("tests/fixtures/language/design.txt"));
    let data = ["--train", &train, "--test", &test, "--runs", text(&runs), "--preset", "smoke"];
    let flags = [&data[..], &["--epochs", "20", "--lr", "0.003"]].concat();
    let arguments = [&flags[..], &["--objective", "standard,aligned", "--seed", "3"]].concat();
    succeed(&run("f08_aligned_gpt", &arguments, &out));
    let first = results(&out)?;
    let models = first["language_models"].as_array().ok_or("models")?;
    let mut losses = Vec::new();
    let aligned = json!({ "aligned": { "weights": "linear" } });
    for (model, (name, objective)) in
        models.iter().zip([("standard", json!("standard")), ("aligned", aligned)])
    {
        let model = &model[0];
        assert_eq!((&model["name"], &model["said"]["coherence"]), (&json!(name), &Value::Null));
        assert_eq!(model["objective"], objective);
        let loss = numbers(&model["loss"]);
        for (loss, perplexity) in loss.iter().zip(numbers(&model["perplexity"])) {
            assert!((loss.exp() / perplexity - 1.).abs() < 1e-9);
        }
        let (agreement, saturation) = (numbers(&model["agreement"]), numbers(&model["saturation"]));
        assert_eq!((agreement[DEPTH - 1], numbers(&model["cos_to_last"])[DEPTH - 1].round()), (1., 1.));
        assert_eq!(saturation.iter().sum::<f64>(), 16. * 64.);
        // Who says the last answer from layer 1 on says it in layer 1.
        assert!(saturation[0] / (16. * 64.) <= agreement[0] + 1e-12);
        assert!(numbers(&model["said"]["diversity"]).iter().all(|share| (0. ..=1.).contains(share)));
        assert_eq!(model["said"]["continuations"].as_array().map(Vec::len), Some(DEPTH));
        losses.push(loss);
    }
    // 400 words that are all alike would be 5.99; aligned, layer 1 knows more than it does of itself.
    assert!(losses.iter().all(|loss| loss[DEPTH - 1] < 4.8), "{losses:?}");
    assert!(losses[1][0] < losses[0][0] - 0.1, "{losses:?}");
    for figure in ["layers", "alike"] {
        assert!(fs::read(out.join(figure).with_extension("png"))?.starts_with(b"\x89PNG"));
        assert!(!fs::read_to_string(out.join(figure).with_extension("svg"))?.contains("NaN"));
    }
    assert_eq!(fs::read_to_string(out.join("report.html"))?.matches("<figure>").count(), 2);

    // Nothing is trained again; what was trained is fine-tuned, and goes on with prompts.
    let again = folder.path().join("again");
    succeed(&run("f08_aligned_gpt", &arguments, &again));
    assert_eq!(results(&again)?["language_models"], first["language_models"]);
    if let Some(weights) = layerwise_testkit::from_env("LAYERWISE_WEIGHTS") {
        let encoder = weights.join("minilm6");
        succeed(&run("f08_aligned_gpt", &[&arguments[..], &["--encoder", text(&encoder)]].concat(), &again));
        for model in results(&again)?["language_models"].as_array().ok_or("models")? {
            let coherence = numbers(&model[0]["said"]["coherence"]);
            // What goes on with a text of this project is about as much.
            assert!(
                coherence.len() == DEPTH && coherence.iter().all(|c| (0.1..0.95).contains(c)),
                "{coherence:?}"
            );
        }
        assert!(fs::read_to_string(again.join("layers.svg"))?.contains("coherence"));
    }
    let model = fs::read_dir(runs.join("models"))?.map(|entry| entry.map(|entry| entry.path()));
    let model = model.collect::<Result<Vec<_>, _>>()?;
    let aligned = model
        .iter()
        .find(|path| path.ends_with("design-gpt2-aligned-smoke-epochs20-lr0.003-seed3"))
        .ok_or("aligned")?;
    let tuned = [&["--model", text(aligned), "--objective", "mixed"], &data[..], &["--epochs", "1"]].concat();
    succeed(&run("f08_aligned_gpt", &tuned, &again));
    let tuned = numbers(&results(&again)?["language_models"][0][0]["loss"]);
    assert!(
        tuned.iter().zip(&losses[1]).all(|(tuned, loss)| (tuned - loss).abs() < 0.5),
        "{tuned:?} from {losses:?}"
    );
    spoken(folder.path(), aligned)?;
    refused(folder.path(), aligned)
}

/// Every way to decode; drafts say what all layers say.
fn spoken(folder: &Path, model: &Path) -> Done {
    let (out, prompts) = (folder.join("said"), folder.join("prompts.txt"));
    fs::write(&prompts, "The trainer\nA model that\nlayers\n")?;
    let said = |more: &[&str]| -> Done<Value> {
        let arguments =
            [&["--model", text(model), "--prompts", text(&prompts), "--max-new-tokens", "20"], more].concat();
        succeed(&run("generate", &arguments, &out));
        results(&out)
    };
    let greedy = ["--temperature", "0"];
    let all = said(&greedy)?;
    assert_eq!((&all["speed"]["tokens"], &all["speed"]["layers"]), (&json!(60), &json!(DEPTH as f64)));
    let drafts = said(&[&greedy[..], &["--speculate", "1", "--drafts", "3"]].concat())?;
    assert_eq!(drafts["continuations"], all["continuations"]);
    assert!(
        drafts["speed"]["accepted"].as_u64() > Some(0) && drafts["speed"]["steps"].as_u64() < Some(20),
        "{drafts}"
    );
    let drafts =
        said(&[&greedy[..], &["--speculate", "2", "--words", "200", "--text", &page("README.md")]].concat())?;
    assert_eq!(drafts["continuations"], all["continuations"]);
    assert_eq!(said(&["--exit-layer", "2"])?["speed"]["layers"], 2.);
    let layers =
        |more: &[&str]| -> Done<f64> { Ok(said(more)?["speed"]["layers"].as_f64().ok_or("layers")?) };
    assert_eq!(layers(&["--policy", "confidence", "--threshold", "1"])?, DEPTH as f64);
    let some = 1. ..DEPTH as f64 - 0.05;
    let unsure =
        ["--policy", "confidence", "--threshold", "0.2", "--words", "100", "--text", &page("README.md")];
    assert!(some.contains(&layers(&unsure)?));
    assert_eq!(layers(&["--policy", "entropy", "--threshold", "9", "--check", "2"])?, 2.);
    assert!(some.contains(&layers(&["--policy", "saturation", "--threshold", "0.5"])?));
    let gate = ["--policy", "gate", "--threshold", "0", "--text", &page("README.md")];
    assert_eq!(layers(&gate)?, 1.);

    // Of one prompt the text is printed as it comes; a seed is a text.
    let aloud = |seed: &str| {
        let one =
            ["--model", text(model), "--prompt", "The trainer", "--max-new-tokens", "12", "--seed", seed];
        let output = run("generate", &one, &out);
        succeed(&output);
        String::from_utf8(output.stdout)
    };
    let (first, again, other) = (aloud("1")?, aloud("1")?, aloud("2")?);
    assert!(
        first.starts_with("The trainer") && first.trim() != "The trainer" && first == again && first != other,
        "{first:?}"
    );
    Ok(())
}

fn refused(folder: &Path, model: &Path) -> Done {
    let out = folder.join("refused");
    let generate =
        |model: &Path, more: &[&str]| run("generate", &[&["--model", text(model)], more].concat(), &out);
    let prompt = ["--prompt", "The"];
    let with = |more: &[&'static str]| generate(model, &[&prompt[..], more].concat());
    fails_with(&generate(model, &["--prompt", ""]), 1, &["prompt 0", "0 tokens"]);
    fails_with(&generate(model, &["--prompt", &"layers ".repeat(200)]), 1, &["prompt 0", "before place 64"]);
    fails_with(&with(&["--top-p", "1.5"]), 1, &["top_p is 1.5", "above 0 and at most 1"]);
    fails_with(&with(&["--top-p", "0"]), 1, &["top_p is 0"]);
    fails_with(&with(&["--temperature=-1"]), 1, &["temperature"]);
    fails_with(&with(&["--exit-layer", "4"]), 1, &["--exit-layer 4", "1 to 3"]);
    fails_with(&with(&["--speculate", "3"]), 1, &["--speculate 3", "1 to 2"]);
    fails_with(&with(&["--speculate", "1", "--words", "40"]), 2, &["--text"]);
    fails_with(&with(&["--words", "40", "--text", "README.md"]), 1, &["--words", "--speculate", "--policy"]);
    let few = ["--policy", "saturation", "--words", "40", "--text", "README.md"];
    fails_with(&with(&few), 1, &["--words", "reads logits"]);
    fails_with(&with(&["--policy", "confidence", "--check", "3"]), 1, &["layer 3"]);
    fails_with(&with(&["--policy", "confidence", "--threshold", "2"]), 1, &["threshold"]);
    fails_with(&with(&["--policy", "gate"]), 2, &["--text"]);
    fails_with(&with(&["--speculate", "1", "--exit-layer", "1"]), 2, &["cannot be used with"]);
    fails_with(&generate(model, &[]), 2, &["--prompt"]);
    fails_with(&generate(&folder.join("absent"), &prompt), 1, &["absent"]);

    // Another model's tokenizer; weights that are no numbers.
    let other = folder.join("other");
    let config = Gpt2Config {
        vocab_size: 300,
        n_embd: 12,
        n_layer: 2,
        n_head: 2,
        n_positions: 16,
        ..Default::default()
    };
    let init = |config: &Gpt2Config| Gpt2::new(config.clone(), &mut layerwise::ops::init::rng(0), &Cpu);
    init(&config)?.save(&other)?;
    fails_with(&generate(&other, &prompt), 1, &["tokenizer.json"]);
    fs::copy(model.join("tokenizer.json"), other.join("tokenizer.json"))?;
    fails_with(&generate(&other, &prompt), 1, &["tokenizer.json", "300"]);

    // A table that is filled up to a round number: what is no word is not said.
    let words = Gpt2::load(model, &Cpu)?.config().vocab_size;
    let vocab_size = words.next_multiple_of(128);
    assert!(vocab_size > words + 30, "{words}");
    let filled = folder.join("filled");
    init(&Gpt2Config { vocab_size, ..config })?.save(&filled)?;
    fs::copy(model.join("tokenizer.json"), filled.join("tokenizer.json"))?;
    let said = generate(&filled, &["--prompt", "The", "--max-new-tokens", "12", "--top-p", "1"]);
    succeed(&said);
    let told = String::from_utf8(said.stderr)?;
    assert!(told.contains(&format!("{} rows of the table are no word", vocab_size - words)), "{told}");
    let f08 = |train: &str, more: &[&str]| {
        let test = page("README.md");
        let flags = ["--train", train, "--test", &test, "--preset", "smoke", "--runs", text(&out)];
        run("f08_aligned_gpt", &[&flags[..], more].concat(), &out)
    };
    fails_with(&f08("absent.txt", &[]), 1, &["absent.txt"]);
    let short = folder.join("short.txt");
    fs::write(&short, "a few words\n")?;
    fails_with(&f08(text(&short), &[]), 1, &["short.txt", "tokens in blocks of 64"]);
    fs::write(&short, b"a few\n\xff\n")?;
    fails_with(&f08(text(&short), &[]), 1, &["short.txt", "line 2", "UTF-8"]);
    fails_with(&f08(&page("README.md"), &["--model", text(&other)]), 1, &["tokenizer.json", "300"]);
    assert_eq!(Gpt2::load(model, &Cpu)?.depth(), DEPTH);
    Ok(())
}
