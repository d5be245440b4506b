//! The experiments with text at their smallest: a BERT of random weights on tasks of a few made-up lines.

mod running;

use std::{
    fmt::Write as _,
    fs,
    io::{Read, Write as _},
    path::Path,
};

use candle_core::{Device::Cpu, Tensor};
use layerwise::{
    exit::{SavedExits, Signal},
    models::{Batch, Bert, BertConfig, Pass, Pooling, Vit, VitConfig, tap},
    ops::init,
};
use serde_json::{Value, json};

use running::{Server, fails_with, numbers, run, succeed, text};

type Done<T = ()> = Result<T, Box<dyn std::error::Error>>;

const DEPTH: usize = 3;
const WORDS: [&str; 9] = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "good", "bad", "film", "the", "a"];

#[test]
fn tasks_are_trained_measured_and_found_again() -> Done {
    let folder = tempfile::tempdir()?;
    let (model, data) = (checkpoint(folder.path(), WORDS.len(), Pooling::Cls)?, tasks(folder.path())?);
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
            let exits = seed["exits"].as_array().ok_or("exits")?;
            // Of numbers a gate has learned from a fifth of the samples, if there was something to learn: aligned, all layers say the same;
            // trained for the last, inner ones say 2.5, whatever they read.
            let (ways, samples) = if metrics.len() == 1 { (1, 24.) } else { (2, 19.) };
            assert!(exits.len() == ways || name == "aligned", "{name}: {exits:?}");
            for exits in exits {
                assert_eq!(exits["samples"], samples);
                let leaving = exits["leaving"].as_array().ok_or("leaving")?;
                assert!(!leaving.is_empty());
                for exit in leaving {
                    assert_eq!(numbers(&exit["histogram"]).iter().sum::<f64>(), samples);
                }
                let ratio = |exit: &Value| exit["layer_ratio"].as_f64();
                let score = |exit: &Value| exit["score"].as_f64();
                assert!(
                    leaving.is_sorted_by(|a, b| ratio(a) < ratio(b) && score(a) > score(b)),
                    "{leaving:?}"
                );
                assert!(ratio(&leaving[0]) >= Some(1.), "{leaving:?}");
            }
        }
    }
    for figure in ["scores", "cos", "exits"] {
        assert!(fs::read(out.join(figure).with_extension("png"))?.starts_with(b"\x89PNG"));
        assert!(!fs::read_to_string(out.join(figure).with_extension("svg"))?.contains("NaN"));
    }
    assert_eq!(fs::read_to_string(out.join("report.html"))?.matches("<figure>").count(), 3);
    // By the mean of all tokens: a model of its own, which says so.
    let mean = ["--task", "sst-2", "--objective", "aligned", "--pooling", "mean"];
    let (mean, runs_of_mean) = ([&arguments[..], &mean].concat(), folder.path().join("mean-runs"));
    let mean: Vec<&str> =
        mean.iter().map(|word| if *word == text(&runs) { text(&runs_of_mean) } else { word }).collect();
    let out_of_mean = folder.path().join("mean");
    succeed(&run("f07_aligned_bert", &mean, &out_of_mean));
    let by_mean: Value = serde_json::from_slice(&fs::read(out_of_mean.join("results.json"))?)?;
    let score = numbers(&by_mean["tasks"]["SST-2"]["models"][0][0]["score"]);
    assert!(score.iter().all(|score| *score > 0.9), "{score:?}");
    let name = "sst2-bert-mean-aligned-smoke-epochs40-lr0.005-seed3";
    let by_mean = runs_of_mean.join("models").join(name);
    assert_eq!(Bert::load(&by_mean, &Cpu)?.config().pooling, Pooling::Mean);
    // What is trained is not trained again, and is a model that others load.
    let again = folder.path().join("again");
    succeed(&run("f07_aligned_bert", &arguments, &again));
    let second: Value = serde_json::from_slice(&fs::read(again.join("results.json"))?)?;
    assert_eq!(second["tasks"], results["tasks"]);
    let trained = fs::read_dir(runs.join("models"))?.map(|entry| entry.map(|entry| entry.path()));
    let trained = trained.collect::<Result<Vec<_>, _>>()?;
    assert_eq!(trained.len(), 4);
    for trained in &trained {
        assert_eq!(Bert::load(trained, &Cpu)?.config().num_hidden_layers, DEPTH);
        assert!(trained.join("tokenizer.json").is_file());
    }
    let aligned = |task: &str| {
        let name = |path: &&std::path::PathBuf| {
            path.file_name().is_some_and(|name| {
                let name = name.to_string_lossy();
                name.starts_with(task) && name.contains("aligned")
            })
        };
        trained.iter().find(name).ok_or(task.to_owned())
    };
    let (classes, number) = (aligned("sst2")?, aligned("stsb")?);
    inspected(folder.path(), classes, &data)?;
    served(folder.path(), classes, &data)?;
    numbers_are_served(number, &data, &results["tasks"]["STS-B"]["models"][1][0])?;
    // What is kept beside a model stays, though the model is measured again.
    let mut saved = SavedExits::load(number, DEPTH)?;
    saved.thresholds.at.values_mut().for_each(|threshold| *threshold /= 2.);
    saved.save(number)?;
    succeed(&run("f07_aligned_bert", &[&arguments[..], &["--objective", "aligned"]].concat(), &again));
    assert_eq!(SavedExits::load(number, DEPTH)?, saved);
    Ok(())
}

/// Lines of a file, pairs too, and the samples of a task.
fn inspected(folder: &Path, model: &Path, data: &Path) -> Done {
    let (lines, out) = (folder.join("lines.txt"), folder.join("inspect"));
    fs::write(&lines, "a good film\nthe bad film\tgood\r\nbad\na film\nthe good film\n")?;
    let inspect = |input: &Path, more: &[&str]| {
        run("inspect", &[&["--model", text(model), "--input", text(input)], more].concat(), &out)
    };
    succeed(&inspect(&lines, &["--tokens"]));
    let bert = Bert::load(model, &Cpu)?.frozen();
    let hidden = candle_core::safetensors::load(out.join("hidden.safetensors"), &Cpu)?;
    assert_eq!(hidden.len(), DEPTH + 1);
    // [CLS] the bad film [SEP] good [SEP] is the longest; its second text, without the mark at its end, is another segment.
    let pair = Batch {
        inputs: Tensor::new(&[[1u32, 7, 5, 6, 2, 4, 2]], &Cpu)?,
        mask: None,
        token_types: Some(Tensor::new(&[[0u32, 0, 0, 0, 0, 1, 0]], &Cpu)?),
    };
    let short = Batch::from(Tensor::new(&[[1u32, 5, 2]], &Cpu)?);
    for (layer, (pair, short)) in tap::hidden_states(&bert, &pair, Pass::EVAL)?
        .iter()
        .zip(tap::hidden_states(&bert, &short, Pass::EVAL)?)
        .enumerate()
    {
        let got = &hidden[&format!("layer_{layer}")];
        assert_eq!(got.dims(), [5, 7, 24]);
        layerwise_testkit::assert_close(&got.narrow(0, 1, 1)?, &pair.xs, 1e-5)?;
        layerwise_testkit::assert_close(&got.narrow(0, 2, 1)?.narrow(1, 0, 3)?, &short.xs, 1e-5)?;
        let padding = got.narrow(0, 2, 1)?.narrow(1, 3, 4)?.abs()?.sum_all()?.to_scalar::<f32>()?;
        assert_eq!(padding, 0.);
    }
    // What f07 found of the same samples.
    succeed(&inspect(&data.join("SST-2"), &["--other", text(model)]));
    let results: Value = serde_json::from_slice(&fs::read(out.join("results.json"))?)?;
    let name = model.file_name().ok_or("a name")?.to_string_lossy();
    let accuracy = numbers(&results["models"][&*name]["accuracy"]);
    assert!(accuracy.len() == DEPTH && accuracy.iter().all(|accuracy| *accuracy > 0.9), "{accuracy:?}");
    assert!(results["similarity"]["cos"][DEPTH][DEPTH].as_f64().ok_or("cos")? > 1. - 1e-6);

    fs::write(&lines, "a film\n\nfilm\n")?;
    fails_with(&inspect(&lines, &[]), 1, &["lines.txt", "line 2", "empty"]);
    fs::write(&lines, b"a film\n\xff\n")?;
    fails_with(&inspect(&lines, &[]), 1, &["lines.txt", "line 2", "UTF-8"]);
    fails_with(&inspect(&folder.join("absent.txt"), &[]), 1, &["absent.txt"]);
    fails_with(&inspect(Path::new("digits"), &[]), 1, &["takes texts"]);
    fails_with(&inspect(folder, &[]), 1, &["expected a text file, or a folder of GLUE", "MRPC"]);
    let vit = folder.join("vit");
    Vit::new(
        VitConfig { hidden_size: 12, num_attention_heads: 2, ..Default::default() },
        &mut init::rng(0),
        &Cpu,
    )?
    .save(&vit)?;
    fails_with(&inspect(&data.join("SST-2"), &["--other", text(&vit)]), 1, &["expected"]);
    Ok(())
}

/// Thresholds, saved and kept by a server of texts.
fn served(folder: &Path, model: &Path, data: &Path) -> Done {
    let (task, out) = (data.join("SST-2"), folder.join("server"));
    let budget =
        ["--budget", "2", "--save", "--preset", "smoke", "--model", text(model), "--data", text(&task)];
    succeed(&run("calibrate", &budget, &out));
    let server = Server::start(model, &[])?;
    let ask = ["--preset", "smoke", "--address", &server.address, "--data", text(&task), "--clients", "4"];
    succeed(&run("early_exit_server", &[&["load", "--rounds", "1"], &ask[..]].concat(), &out));
    let load: Value = serde_json::from_slice(&fs::read(out.join("results.json"))?)?;
    assert_eq!(load["without_exits"]["layers"], DEPTH as f64);
    assert!(load["with_exits"]["layers"].as_f64() <= Some(2.), "{}", load["with_exits"]);
    assert!(load["with_exits"]["accuracy"].as_f64() > Some(0.9), "{}", load["with_exits"]);
    succeed(&run("early_exit_server", &[&["soak", "--seconds", "2"], &ask[..]].concat(), &out));
    let soak: Value = serde_json::from_slice(&fs::read(out.join("results.json"))?)?;
    assert_eq!((soak["wrong"].as_array().map(Vec::len), &soak["server"]["failed"]), (Some(0), &0.into()));
    assert!(soak["server"]["refused"].as_u64() > Some(0), "{}", soak["server"]);
    for (body, status, words) in [
        (&b"the good film"[..], 200, "\"label\":\"positive\""),
        (b"the bad film\n", 200, "\"label\":\"negative\""),
        // Longer than the model has positions for: cut, and said so.
        (&b"good ".repeat(1000), 200, "\"truncated\":true"),
        (b" \n", 400, "is empty"),
        (b"a \xff", 400, "UTF-8"),
    ] {
        let said = ask_for(&server, body)?;
        assert!(said.starts_with(&format!("HTTP/1.1 {status} ")) && said.contains(words), "{said}");
        assert_eq!(said.contains("truncated"), words.contains("truncated"), "{said}");
    }
    Ok(())
}

/// By a threshold that is given, and by what f07 keeps beside the model: the boldest that costs at most a point.
fn numbers_are_served(model: &Path, data: &Path, measured: &Value) -> Done {
    let saved = SavedExits::load(model, DEPTH)?.thresholds;
    let exits = measured["exits"].as_array().and_then(|exits| exits.last()).ok_or("exits")?;
    let signal =
        if matches!(saved.signal, Signal::Gate(_)) { "learned gate" } else { "change of the answer" };
    assert_eq!(exits["signal"], signal);
    let full = exits["full"].as_f64().ok_or("full")?;
    let cheap = exits["leaving"].as_array().ok_or("leaving")?.iter().rev();
    let boldest = cheap.filter(|exit| exit["score"].as_f64() >= Some(full - 0.01)).max_by(|a, b| {
        let ratio = |exit: &Value| exit["layer_ratio"].as_f64().unwrap_or_default();
        ratio(a).total_cmp(&ratio(b))
    });
    assert!(boldest.ok_or("nobody leaves")?["layer_ratio"].as_f64() > Some(1.), "{exits}");
    let kept = Server::start(model, &[])?;
    let stats: Value =
        serde_json::from_str(said_to(&kept, "GET /stats", b"")?.lines().last().ok_or("a body")?)?;
    assert_eq!(stats["settings"]["thresholds"], serde_json::to_value(&saved)?);
    let server = Server::start(model, &["--threshold", "0.1"])?;
    for server in [&kept, &server] {
        for (body, from, to) in [(&b"a film\ta good film"[..], 2.5, 5.5), (b"a film\ta bad film", -0.5, 2.5)]
        {
            let said = ask_for(server, body)?;
            let answer: Value = serde_json::from_str(said.lines().last().ok_or("a body")?)?;
            let number = answer["number"].as_f64().ok_or(said)?;
            assert!((from..to).contains(&number) && answer["layer"].as_u64() >= Some(1), "{answer}");
        }
    }
    let task = data.join("STS-B");
    let ask = ["load", "--address", &server.address, "--data", text(&task)];
    let folder = tempfile::tempdir()?;
    fails_with(
        &run("early_exit_server", &ask, folder.path()),
        1,
        &["expected labelled samples of a task with classes"],
    );
    let calibrate = ["--model", text(model), "--data", text(&task)];
    fails_with(&run("calibrate", &calibrate, folder.path()), 1, &["--data", "numbers to tell"]);
    Ok(())
}

fn ask_for(server: &Server, body: &[u8]) -> Done<String> {
    said_to(server, "POST /classify", body)
}

fn said_to(server: &Server, what: &str, body: &[u8]) -> Done<String> {
    let mut stream = std::net::TcpStream::connect(&server.address)?;
    let head = format!(
        "{what} HTTP/1.1\r\nhost: here\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(&[head.as_bytes(), body].concat())?;
    let mut said = String::new();
    stream.read_to_string(&mut said)?;
    Ok(said)
}

/// What exits read is in the model's folder, and then in that of the trained one; so is how many tokens it takes. MNLI has two parts to score.
#[test]
fn what_a_folder_says_is_done() -> Done {
    let folder = tempfile::tempdir()?;
    let model = &checkpoint(folder.path(), WORDS.len(), Pooling::Mean)?;
    let data = &tasks(folder.path())?;
    let (out, runs) = (folder.path().join("out"), folder.path().join("runs"));
    fs::write(model.join("tokenizer_config.json"), r#"{"do_lower_case": false, "model_max_length": 12}"#)?;
    let header = "sentence1\tsentence2\tgold_label\n";
    fs::create_dir_all(data.join("MNLI"))?;
    let labels = ["entailment", "contradiction"];
    for (part, swapped) in [("train", 0), ("dev_matched", 0), ("dev_mismatched", 1)] {
        let lines = (0..48).map(|i| {
            let word = ["good", "bad"][i % 2];
            format!("a {word} film\tthe {word} film the film a film\t{}\n", labels[(i + swapped) % 2])
        });
        fs::write(
            data.join("MNLI").join(part).with_extension("tsv"),
            header.to_owned() + &lines.collect::<String>(),
        )?;
    }
    let arguments =
        ["--model", text(model), "--data", text(data), "--runs", text(&runs), "--preset", "smoke"];
    let more =
        ["--task", "mnli", "--objective", "aligned", "--max-tokens", "6", "--epochs", "40", "--lr", "0.005"];
    succeed(&run("f07_aligned_bert", &[&arguments[..], &more].concat(), &out));
    let results: Value = serde_json::from_slice(&fs::read(out.join("results.json"))?)?;
    let task = &results["tasks"]["MNLI"];
    assert_eq!(
        (&task["settings"]["pooling"], &task["settings"]["truncated"]),
        (&json!("mean"), &json!([48, 48]))
    );
    let metrics = &task["models"][0][0]["metrics"];
    assert!(numbers(&metrics["accuracy"]).iter().all(|score| *score > 0.9), "{metrics}");
    assert!(numbers(&metrics["accuracy, mismatched"]).iter().all(|score| *score < 0.1), "{metrics}");
    let mismatched = json!({ "file": "dev_mismatched.tsv", "samples": 48, "truncated": 48 });
    assert_eq!(task["settings"]["mismatched"], mismatched);
    let trained = fs::read_dir(runs.join("models"))?.next().ok_or("a model")??.path();
    assert!(text(&trained).contains("-mean-tokens6-aligned"), "{trained:?}");
    assert_eq!(Bert::load(&trained, &Cpu)?.config().pooling, Pooling::Mean);
    let kept: Value = serde_json::from_slice(&fs::read(trained.join("tokenizer_config.json"))?)?;
    assert_eq!(kept, json!({ "do_lower_case": false, "model_max_length": 6 }));
    let (lines, out) = (folder.path().join("lines.txt"), folder.path().join("inspect"));
    fs::write(&lines, "a good film\nthe bad film the good film\n")?;
    let inspect = || run("inspect", &["--model", text(&trained), "--input", text(&lines)], &out);
    let inspected = inspect();
    succeed(&inspected);
    let said = String::from_utf8_lossy(&inspected.stderr);
    assert!(said.contains("1 of 2 texts have more than 6 tokens"), "{said}");
    fs::write(trained.join("tokenizer_config.json"), "{ model_max_length")?;
    fails_with(&inspect(), 1, &["tokenizer_config.json"]);
    // What is wrong is said before anything is trained.
    let runs = folder.path().join("no-runs");
    let f07 = |model: &Path| {
        let arguments = ["--model", text(model), "--data", text(data), "--runs", text(&runs)];
        run("f07_aligned_bert", &[&arguments[..], &more].concat(), &out)
    };
    fails_with(&f07(&trained), 1, &["tokenizer_config.json"]);
    fs::write(data.join("MNLI/dev_mismatched.tsv"), "sentence1\tsentence2\na\tb\n")?;
    fails_with(&f07(model), 1, &["dev_mismatched.tsv", "no labels"]);
    assert!(!runs.exists());
    Ok(())
}

#[test]
fn what_is_wrong_is_said_in_one_line() -> Done {
    let folder = tempfile::tempdir()?;
    let (model, data) = (checkpoint(folder.path(), WORDS.len(), Pooling::Cls)?, tasks(folder.path())?);
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
    let other = checkpoint(&small, 5, Pooling::Cls)?;
    fails_with(
        &f07(&other, &data, &["--task", "sst-2"]),
        1,
        &["tokenizer.json", "9 pieces", "vocabulary of 5"],
    );
    fs::write(data.join("SST-2/dev.tsv"), "sentence\tsentiment\na good film\t1\n")?;
    fails_with(&f07(&model, &data, &["--task", "sst-2"]), 1, &["dev.tsv", "no labels"]);
    fs::write(data.join("SST-2/dev.tsv"), "sentence\tlabel\na good film\tsplendid\n")?;
    fails_with(&f07(&model, &data, &["--task", "sst-2"]), 1, &["SST-2", "dev.tsv", "line 2", "splendid"]);
    Ok(())
}

/// A BERT of random weights with a table of so many words, and a tokenizer of [`WORDS`].
fn checkpoint(folder: &Path, words: usize, pooling: Pooling) -> Done<std::path::PathBuf> {
    let model = folder.join("bert");
    let config = BertConfig {
        vocab_size: words,
        hidden_size: 24,
        num_hidden_layers: DEPTH,
        num_attention_heads: 3,
        intermediate_size: 48,
        max_position_embeddings: 12,
        num_labels: 0,
        pooling,
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

/// Reviews of films that are good or bad, and pairs that say as much of one, more or less.
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
            let (word, score) = [("bad ", 1.), ("good ", 4.), ("", 2.5)][i % 3];
            let rest = if i / 3 % 2 == 0 { "" } else { " the film" };
            writeln!(pairs, "{article} film{rest}\t{article} {word}film\t{score}")?;
        }
        fs::write(data.join(format!("SST-2/{part}.tsv")), reviews)?;
        fs::write(data.join(format!("STS-B/{part}.tsv")), pairs)?;
    }
    Ok(data)
}
