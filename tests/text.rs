//! The experiments with text at their smallest: a BERT of random weights on tasks of a few made-up lines.

mod running;

use std::{fmt::Write as _, fs, path::Path};

use candle_core::Device::Cpu;
use layerwise::{
    models::{Bert, BertConfig},
    ops::init,
};
use serde_json::{Value, json};

use running::{fails_with, numbers, run, succeed, text};

type Done<T = ()> = Result<T, Box<dyn std::error::Error>>;

const DEPTH: usize = 3;
const WORDS: [&str; 9] = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "good", "bad", "film", "the", "a"];

#[test]
fn tasks_are_trained_measured_and_found_again() -> Done {
    let folder = tempfile::tempdir()?;
    let (model, data) = (checkpoint(folder.path(), WORDS.len())?, tasks(folder.path())?);
    let (out, runs) = (folder.path().join("out"), folder.path().join("runs"));
    let arguments =
        ["--model", text(&model), "--data", text(&data), "--runs", text(&runs), "--preset", "smoke"];
    let arguments =
        [&arguments[..], &["--task", "sst2,sts-b", "--seed", "3", "--lr", "0.005", "--epochs", "40"]]
            .concat();
    succeed(&run("f07_aligned_bert", &arguments, &out));
    let results: Value = serde_json::from_slice(&fs::read(out.join("results.json"))?)?;
    for (task, metrics) in [("SST-2", &["accuracy"][..]), ("STS-B", &["Pearson", "Spearman"])] {
        let task = &results["tasks"][task];
        assert_eq!(
            (&task["settings"]["train_samples"], &task["settings"]["held_out_samples"]),
            (&json!(64), &json!(24))
        );
        for (name, model) in
            ["standard", "aligned"].into_iter().zip(task["models"].as_array().ok_or("models")?)
        {
            let seed = &model[0];
            assert_eq!(seed["name"], name);
            let score = numbers(&seed["score"]);
            assert_eq!((score.len(), numbers(&seed["cos_to_last"]).len()), (DEPTH, DEPTH));
            for (layer, score) in score.iter().enumerate() {
                let mean = metrics.iter().map(|metric| numbers(&seed["metrics"][metric])[layer]).sum::<f64>();
                assert!((score - mean / metrics.len() as f64).abs() < 1e-12);
            }
            // A word tells all there is to tell: whoever is trained for it says so.
            let learned = if name == "aligned" { &score[..] } else { &score[DEPTH - 1..] };
            assert!(learned.iter().all(|score| *score > 0.9), "{name}: {score:?}");
            for exit in seed["exits"].as_array().ok_or("exits")? {
                assert_eq!(numbers(&exit["histogram"]).iter().sum::<f64>(), 24.);
            }
        }
    }
    for figure in ["scores", "cos", "exits"] {
        assert!(fs::read(out.join(figure).with_extension("png"))?.starts_with(b"\x89PNG"));
        assert!(!fs::read_to_string(out.join(figure).with_extension("svg"))?.contains("NaN"));
    }
    assert_eq!(fs::read_to_string(out.join("report.html"))?.matches("<figure>").count(), 3);
    // What is trained is not trained again, and is a model that others load.
    let again = folder.path().join("again");
    succeed(&run("f07_aligned_bert", &arguments, &again));
    let second: Value = serde_json::from_slice(&fs::read(again.join("results.json"))?)?;
    assert_eq!(second["tasks"], results["tasks"]);
    let trained = fs::read_dir(runs.join("models"))?.map(|entry| entry.map(|entry| entry.path()));
    for trained in trained.collect::<Result<Vec<_>, _>>()? {
        assert_eq!(Bert::load(&trained, &Cpu)?.config().num_hidden_layers, DEPTH);
        assert!(trained.join("tokenizer.json").is_file());
    }
    Ok(())
}

#[test]
fn what_is_wrong_is_said_in_one_line() -> Done {
    let folder = tempfile::tempdir()?;
    let (model, data) = (checkpoint(folder.path(), WORDS.len())?, tasks(folder.path())?);
    let out = folder.path().join("out");
    let f07 = |model: &Path, data: &Path, more: &[&str]| {
        let runs = folder.path().join("runs");
        let arguments =
            ["--model", text(model), "--data", text(data), "--runs", text(&runs), "--preset", "smoke"];
        run("f07_aligned_bert", &[&arguments[..], more].concat(), &out)
    };
    fails_with(&f07(&model, &data, &["--task", "mrcp"]), 1, &["--task", "mrcp", "CoLA, SST-2, MRPC"]);
    fails_with(&f07(&model, &data, &["--task", "rte"]), 1, &["RTE", "expected a folder"]);
    fails_with(
        &f07(&model, &data, &["--task", "sst-2", "--max-tokens", "13"]),
        1,
        &["--max-tokens 13", "12"],
    );
    let small = folder.path().join("small");
    fs::create_dir(&small)?;
    let other = checkpoint(&small, 5)?;
    fails_with(
        &f07(&other, &data, &["--task", "sst-2"]),
        1,
        &["tokenizer.json", "9 pieces", "vocabulary of 5"],
    );
    fs::write(data.join("SST-2/dev.tsv"), "sentence\tlabel\na good film\tsplendid\n")?;
    fails_with(&f07(&model, &data, &["--task", "sst-2"]), 1, &["SST-2", "dev.tsv", "line 2", "splendid"]);
    Ok(())
}

/// A BERT of random weights with a table of so many words, and a tokenizer of [`WORDS`].
fn checkpoint(folder: &Path, words: usize) -> Done<std::path::PathBuf> {
    let model = folder.join("bert");
    let config = BertConfig {
        vocab_size: words,
        hidden_size: 24,
        num_hidden_layers: DEPTH,
        num_attention_heads: 3,
        intermediate_size: 48,
        max_position_embeddings: 12,
        num_labels: 0,
        initializer_range: 0.1,
        ..Default::default()
    };
    Bert::new(config, &mut init::rng(1), &Cpu)?.save(&model)?;
    let vocabulary: serde_json::Map<_, _> =
        WORDS.iter().enumerate().map(|(id, word)| ((*word).to_owned(), json!(id))).collect();
    let special = |id: usize| json!({ "id": id, "content": WORDS[id], "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true });
    let piece = |id: usize| json!({ "SpecialToken": { "id": WORDS[id], "type_id": 0 } });
    let sequence = |name: &str, kind: u8| json!({ "Sequence": { "id": name, "type_id": kind } });
    let ids = |id: usize| json!({ "id": WORDS[id], "ids": [id], "tokens": [WORDS[id]] });
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [special(0), special(1), special(2), special(3)],
        "normalizer": null, "pre_tokenizer": { "type": "WhitespaceSplit" }, "decoder": null,
        "post_processor": { "type": "TemplateProcessing", "single": [piece(1), sequence("A", 0), piece(2)],
            "pair": [piece(1), sequence("A", 0), piece(2), sequence("B", 1), piece(2)],
            "special_tokens": { "[CLS]": ids(1), "[SEP]": ids(2) } },
        "model": { "type": "WordLevel", "vocab": vocabulary, "unk_token": "[UNK]" },
    });
    fs::write(model.join("tokenizer.json"), tokenizer.to_string())?;
    Ok(model)
}

/// Reviews of films that are good or bad, and pairs of these that say the same or not.
fn tasks(folder: &Path) -> Done<std::path::PathBuf> {
    let data = folder.join("glue");
    for task in ["SST-2", "STS-B"] {
        fs::create_dir_all(data.join(task))?;
    }
    for (part, samples) in [("train", 64), ("dev", 24)] {
        let mut reviews = String::from("sentence\tlabel\n");
        let mut pairs = String::from("sentence1\tsentence2\tscore\n");
        for i in 0..samples {
            let (word, article) = (["bad", "good"][i % 2], ["a", "the"][i / 2 % 2]);
            let rest = if i % 3 == 0 { "" } else { " the film" };
            writeln!(reviews, "{article} {word} film{rest}\t{}", i % 2)?;
            writeln!(pairs, "{article} film{rest}\t{article} {word} film\t{}", [1., 4.][i % 2])?;
        }
        fs::write(data.join(format!("SST-2/{part}.tsv")), reviews)?;
        fs::write(data.join(format!("STS-B/{part}.tsv")), pairs)?;
    }
    Ok(data)
}
