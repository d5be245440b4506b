//! The nine tasks of GLUE: real files where they are, and files that are wrong.

use std::fs;

use layerwise_data::{
    Error, Targets, Text, TextSet,
    glue::{Part, Task, load, load_file},
    text_lines,
};
use layerwise_testkit::from_env;

type Result<T = ()> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Numbers of samples are those that the official files are known to have.
#[test]
fn real_files_are_read() -> Result {
    let Some(shared) = from_env("LAYERWISE_SHARED") else { return Ok(()) };
    let data = shared.join("data/glue");
    for (task, part, samples, pair) in [
        (Task::Cola, Part::Train, 8551, false),
        (Task::Cola, Part::Dev, 1043, false),
        (Task::Cola, Part::Test, 1063, false),
        (Task::Sst2, Part::Train, 67_349, false),
        (Task::Sst2, Part::Dev, 872, false),
        (Task::Sst2, Part::Test, 1821, false),
        (Task::Mrpc, Part::Train, 3668, true),
        (Task::Mrpc, Part::Dev, 408, true),
        (Task::Mrpc, Part::Test, 1725, true),
        (Task::StsB, Part::Train, 5749, true),
        (Task::StsB, Part::Dev, 1500, true),
        (Task::StsB, Part::Test, 1379, true),
        (Task::Qnli, Part::Dev, 5463, true),
        (Task::Rte, Part::Train, 2490, true),
        (Task::Rte, Part::Dev, 277, true),
        (Task::Rte, Part::Test, 3000, true),
        (Task::Wnli, Part::Train, 635, true),
        (Task::Wnli, Part::Dev, 71, true),
        (Task::Wnli, Part::Test, 146, true),
    ] {
        let set = load(task, &data.join(task.name()), part)?;
        assert_eq!(set.len(), samples, "{task:?} {part:?}");
        assert!(set.texts().iter().all(|text| text.second.is_some() == pair && !text.first.is_empty()));
        match (set.targets(), part) {
            (Targets::None, Part::Test) => {}
            (Targets::Classes { labels, names }, Part::Train | Part::Dev) if task != Task::StsB => {
                assert_eq!(names, task.classes());
                // Every class is there.
                assert!((0..names.len() as u32).all(|class| labels.contains(&class)), "{task:?}");
            }
            (Targets::Numbers(scores), Part::Train | Part::Dev) if task == Task::StsB => {
                assert!(scores.contains(&0.) && scores.contains(&5.));
            }
            (targets, _) => panic!("{task:?} {part:?}: {targets:?}"),
        }
    }
    let mrpc = load(Task::Mrpc, &data.join("MRPC"), Part::Train)?;
    let first = &mrpc.texts()[0];
    assert!(
        first.first.starts_with("Amrozi accused his brother , whom he called \" the witness \""),
        "{first:?}"
    );
    // Carriage returns at the ends of lines.
    let sst = load_file(Task::Sst2, &data.join("SST-2/test-labeled.tsv.gz"))?;
    assert_eq!(sst.len(), 1821);
    assert_eq!(sst.texts()[0].first, "uneasy mishmash of styles and genres .");
    for (task, name, samples) in [
        (Task::Mnli, "train-subset", 8999),
        (Task::Qqp, "dev-subset", 1000),
        (Task::Qnli, "train-subset", 8999),
    ] {
        let set = load_file(task, &data.join(task.name()).join(format!("{name}.tsv.gz")))?;
        assert_eq!(set.len(), samples);
        assert!(matches!(set.targets(), Targets::Classes { names, .. } if names == task.classes()));
    }
    Ok(())
}

#[test]
fn files_as_they_come() -> Result {
    let classes = |set: &TextSet| match set.targets() {
        Targets::Classes { labels, .. } => labels.clone(),
        other => panic!("{other:?}"),
    };
    // A mark, quotes, carriage returns, no line end at the end, more columns than are read.
    let set = of(
        Task::Mrpc,
        "\u{feff}Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\r\n1\t3\t4\t\" a \"\tb\" c\r\n0\t5\t6\td\te",
    )?;
    assert_eq!(classes(&set), [1, 0]);
    assert_eq!((set.texts()[0].first.as_str(), set.texts()[0].second.as_deref()), ("\" a \"", Some("b\" c")));
    // Labels by name or number; columns in any order.
    let set = of(Task::Mnli, "gold_label\tsentence2\tx\tsentence1\ncontradiction\ta\t\tb\n1\tc\t\td\n")?;
    assert_eq!((classes(&set), set.texts()[1].first.as_str()), (vec![2, 1], "d"));
    // CoLA has no names of columns, but for its test part.
    assert_eq!(classes(&of(Task::Cola, "gj04\t1\t\tA b.\nx\t0\t*\tC d.\n")?), [1, 0]);
    assert_eq!(of(Task::Cola, "index\tsentence\n0\tA b.\n")?.targets(), &Targets::None);
    // Labels that are withheld.
    assert_eq!(
        of(Task::Rte, "index\tsentence1\tsentence2\tlabel\n0\ta\tb\t-1\n1\tc\td\t-1\n")?.targets(),
        &Targets::None
    );
    assert_eq!(
        of(Task::StsB, "sentence1\tsentence2\tscore\na\tb\t2.5\n")?.targets(),
        &Targets::Numbers(vec![2.5])
    );
    // Two rows of the official QQP are cut short.
    let set = of(
        Task::Qqp,
        "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n1\t1\t2\ta\tb\t1\n2\t3\t4\tcut\n3\t5\t6\tc\td\t0\n",
    )?;
    assert_eq!(classes(&set), [1, 0]);
    Ok(())
}

#[test]
fn what_is_wrong_is_said_with_file_and_line() {
    let head = "index\tsentence1\tsentence2\tlabel\n";
    let bytes = [head.as_bytes(), b"0\ta\xff\tb\tentailment\n"].concat();
    let long = format!("{head}0\ta\tb\tentailment\n1\tc\td\tmaybe\n");
    for (task, content, says) in [
        (
            Task::Rte,
            long.as_bytes(),
            "line 3: label \"maybe\", expected one of [\"entailment\", \"not_entailment\"] or its number",
        ),
        (Task::Rte, &bytes, "line 2: not UTF-8 from byte 3 of the line on"),
        (
            Task::Rte,
            b"index\tsentence1\tlabel\n0\ta\tb\n",
            "line 1: columns [\"index\", \"sentence1\", \"label\"], expected one named \"sentence2\"",
        ),
        (
            Task::Rte,
            b"index\tsentence1\tsentence2\tlabel\n0\ta\tb\tentailment\n\n1\tc\td\tentailment\n",
            "line 3: an empty line",
        ),
        (
            Task::Rte,
            b"index\tsentence1\tsentence2\tlabel\n0\ta\tb\n",
            "line 2: 3 columns, expected at least 4",
        ),
        (Task::Rte, b"index\tsentence1\tsentence2\tlabel\n", "no samples"),
        (Task::Rte, b"", "no samples"),
        (Task::Rte, b"\xff\n", "line 1: not UTF-8 from byte 0"),
        (
            Task::Cola,
            b"gj04\t2\t\tA b.\n",
            "line 1: label \"2\", expected one of [\"unacceptable\", \"acceptable\"]",
        ),
        (Task::Cola, b"gj04\t1\tA b.\n", "line 1: 3 columns, expected at least 4"),
        (
            Task::StsB,
            b"sentence1\tsentence2\tscore\na\tb\t5.5\n",
            "line 2: label \"5.5\", expected a number from 0 to 5",
        ),
        (Task::StsB, b"sentence1\tsentence2\tscore\na\tb\tNaN\n", "line 2: label \"NaN\""),
        // One label among others is not withheld.
        (Task::Wnli, b"sentence1\tsentence2\tlabel\na\tb\t-1\nc\td\t1\n", "line 2: label \"-1\""),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("dev.tsv");
        fs::write(&path, content).unwrap();
        let text = load(task, folder.path(), Part::Dev).unwrap_err().to_string();
        assert!(text.contains(says) && text.contains("dev.tsv"), "{text}, expected {says}");
    }
    let folder = tempfile::tempdir().unwrap();
    let error = load(Task::Mnli, folder.path(), Part::DevMismatched).unwrap_err();
    assert!(
        matches!(&error, Error::NotFound { expected, .. } if expected == "dev_mismatched.tsv or dev_mismatched.tsv.gz"),
        "{error}"
    );
    assert!(matches!(load(Task::Mnli, &folder.path().join("x"), Part::Dev), Err(Error::NotFound { .. })));
    assert!(matches!(load_file(Task::Mnli, &folder.path().join("x")), Err(Error::Io { .. })));
}

#[test]
fn names_of_tasks() {
    for (name, task) in [
        ("sst2", Task::Sst2),
        ("SST-2", Task::Sst2),
        ("stsb", Task::StsB),
        ("CoLA", Task::Cola),
        ("mnli", Task::Mnli),
    ] {
        assert_eq!(name.parse::<Task>().unwrap(), task);
    }
    assert!("glue".parse::<Task>().unwrap_err().to_string().contains("CoLA, SST-2, MRPC"));
}

#[test]
fn lines_of_a_file() -> Result {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("lines.txt");
    fs::write(&path, "\u{feff}one\r\n two \nthree")?;
    let set = text_lines(&path)?;
    assert!(set.texts().iter().map(|text| text.first.as_str()).eq(["one", "two", "three"]));
    assert!(set.texts().iter().all(|text| text.second.is_none()));
    fs::write(&path, "one \t two\tthree\n\tfour\n")?;
    let pair = |first: &str, second: &str| Text { first: first.into(), second: Some(second.into()) };
    assert_eq!(text_lines(&path)?.texts(), [pair("one", "two\tthree"), "four".into()]);
    let refused = |content: &[u8], says: &str| {
        fs::write(&path, content).unwrap();
        let text = text_lines(&path).unwrap_err().to_string();
        assert!(text.contains(says) && text.contains("lines.txt"), "{text}");
    };
    refused(b"a\n\nb\n", "line 2: an empty line");
    refused(b"a\n\xf0\x28\n", "line 2: not UTF-8 from byte 0");
    refused(b"", "no samples");
    Ok(())
}

fn of(task: Task, content: &str) -> layerwise_data::Result<TextSet> {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("dev.tsv");
    fs::write(&path, content).expect("a file");
    load_file(task, &path)
}
