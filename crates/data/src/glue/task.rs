use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::{Error, metrics::Metric};

/// One of the nine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum Task {
    /// Is a sentence acceptable English?
    Cola,
    /// Is a sentence of a film review positive?
    Sst2,
    /// Do two sentences of news say the same?
    Mrpc,
    /// How alike are two sentences, 0 to 5?
    StsB,
    /// Are two questions of Quora the same?
    Qqp,
    /// Does a premise entail a hypothesis, contradict it, or neither?
    Mnli,
    /// Does a sentence of Wikipedia hold the answer to a question?
    Qnli,
    /// Does a text entail a hypothesis?
    Rte,
    /// Does a sentence entail itself with a pronoun replaced?
    Wnli,
}

/// Which part of a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// For training.
    Train,
    /// Held out, with labels; of MNLI what is matched to the genres of the training part.
    Dev,
    /// Of MNLI, other genres.
    DevMismatched,
    /// Labels are withheld.
    Test,
    /// Of MNLI, other genres.
    TestMismatched,
}

/// Columns of a file.
pub(super) enum Columns {
    /// By their names in the first line: label, text, and the second text of a pair.
    Named { label: &'static str, first: &'static str, second: Option<&'static str> },
    /// There is no such line in files with labels: label and text, counted from 0.
    Placed { label: usize, first: usize },
}

impl Task {
    /// All of them, in GLUE's order.
    pub const ALL: [Self; 9] = [
        Self::Cola,
        Self::Sst2,
        Self::Mrpc,
        Self::StsB,
        Self::Qqp,
        Self::Mnli,
        Self::Qnli,
        Self::Rte,
        Self::Wnli,
    ];

    /// Its name, which is also that of its folder.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Cola => "CoLA",
            Self::Sst2 => "SST-2",
            Self::Mrpc => "MRPC",
            Self::StsB => "STS-B",
            Self::Qqp => "QQP",
            Self::Mnli => "MNLI",
            Self::Qnli => "QNLI",
            Self::Rte => "RTE",
            Self::Wnli => "WNLI",
        }
    }

    /// Its classes, in the order of their labels; none for STS-B, whose target is a number.
    #[must_use]
    pub fn classes(self) -> &'static [&'static str] {
        match self {
            Self::Cola => &["unacceptable", "acceptable"],
            Self::Sst2 => &["negative", "positive"],
            Self::Mrpc => &["not_equivalent", "equivalent"],
            Self::StsB => &[],
            Self::Qqp => &["not_duplicate", "duplicate"],
            Self::Mnli => &["entailment", "neutral", "contradiction"],
            Self::Qnli | Self::Rte => &["entailment", "not_entailment"],
            Self::Wnli => &["not_entailment", "entailment"],
        }
    }

    /// What it is scored by; the score of the task is the mean of these.
    #[must_use]
    pub fn metrics(self) -> &'static [Metric] {
        match self {
            Self::Cola => &[Metric::Matthews],
            Self::Mrpc | Self::Qqp => &[Metric::F1, Metric::Accuracy],
            Self::StsB => &[Metric::Pearson, Metric::Spearman],
            Self::Sst2 | Self::Mnli | Self::Qnli | Self::Rte | Self::Wnli => &[Metric::Accuracy],
        }
    }

    pub(super) fn columns(self) -> Columns {
        let named = |label, first, second| Columns::Named { label, first, second: Some(second) };
        match self {
            Self::Cola => Columns::Placed { label: 1, first: 3 },
            Self::Sst2 => Columns::Named { label: "label", first: "sentence", second: None },
            Self::Mrpc => named("Quality", "#1 String", "#2 String"),
            Self::StsB => named("score", "sentence1", "sentence2"),
            Self::Qqp => named("is_duplicate", "question1", "question2"),
            Self::Mnli => named("gold_label", "sentence1", "sentence2"),
            Self::Qnli => named("label", "question", "sentence"),
            Self::Rte | Self::Wnli => named("label", "sentence1", "sentence2"),
        }
    }

    /// Name of a part's file.
    pub(super) fn file(self, part: Part) -> &'static str {
        match (self, part) {
            (_, Part::Train) => "train.tsv",
            (Self::Mnli, Part::Dev) => "dev_matched.tsv",
            (Self::Mnli, Part::Test) => "test_matched.tsv",
            (_, Part::Dev) => "dev.tsv",
            (_, Part::Test) => "test.tsv",
            (_, Part::DevMismatched) => "dev_mismatched.tsv",
            (_, Part::TestMismatched) => "test_mismatched.tsv",
        }
    }
}

impl FromStr for Task {
    type Err = Error;

    /// Its name, in letters of any case, with or without the dash.
    fn from_str(name: &str) -> Result<Self, Error> {
        let plain = |name: &str| name.replace('-', "").to_lowercase();
        Self::ALL.into_iter().find(|task| plain(task.name()) == plain(name)).ok_or_else(|| Error::Setting {
            field: "task",
            value: name.to_owned(),
            expected: Self::ALL.map(Self::name).join(", "),
        })
    }
}

impl TryFrom<String> for Task {
    type Error = Error;

    fn try_from(name: String) -> Result<Self, Error> {
        name.parse()
    }
}

impl From<Task> for String {
    fn from(task: Task) -> Self {
        task.name().to_owned()
    }
}
