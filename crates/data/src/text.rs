use std::path::Path;

use crate::{Error, Result, error::at_line, lines::Lines};

/// A sentence, or a pair.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Text {
    /// The sentence, or the first of two.
    pub first: String,
    /// The second of two.
    pub second: Option<String>,
}

impl From<&str> for Text {
    fn from(text: &str) -> Self {
        Self { first: text.to_owned(), second: None }
    }
}

impl Text {
    /// A line: a sentence, or two with a tab between them.
    #[must_use]
    pub fn of_line(line: &str) -> Self {
        match line.trim().split_once('\t') {
            Some((first, second)) => {
                Self { first: first.trim().to_owned(), second: Some(second.trim().to_owned()) }
            }
            None => line.trim().into(),
        }
    }
}

/// What is to be told of each sample.
#[derive(Clone, Debug, PartialEq)]
pub enum Targets {
    /// Nothing is known.
    None,
    /// One of some classes.
    Classes {
        /// Of each sample.
        labels: Vec<u32>,
        /// Of all classes.
        names: Vec<String>,
    },
    /// A number.
    Numbers(Vec<f32>),
}

/// Texts and their targets, in memory.
#[derive(Clone, Debug, PartialEq)]
pub struct TextSet {
    texts: Vec<Text>,
    targets: Targets,
}

impl TextSet {
    /// As many targets as texts, or none.
    ///
    /// # Errors
    ///
    /// [`Error::Empty`] without texts; [`Error::Setting`] for another number of targets, or one that is not finite; [`Error::Label`] for a
    /// label without class.
    pub fn new(texts: Vec<Text>, targets: Targets) -> Result<Self> {
        if texts.is_empty() {
            return Err(Error::Empty { what: "texts".into() });
        }
        let count = match &targets {
            Targets::None => texts.len(),
            Targets::Numbers(numbers) => numbers.len(),
            Targets::Classes { labels, .. } => labels.len(),
        };
        if count != texts.len() {
            let expected = format!("{}, one a text", texts.len());
            return Err(Error::Setting { field: "targets", value: count.to_string(), expected });
        }
        match &targets {
            Targets::Classes { labels, names } => {
                let classes = names.len();
                if let Some((sample, &label)) =
                    labels.iter().enumerate().find(|(_, label)| **label as usize >= classes)
                {
                    return Err(Error::Label { sample, label, classes });
                }
            }
            Targets::Numbers(numbers) => {
                if let Some(number) = numbers.iter().find(|number| !number.is_finite()) {
                    let value = number.to_string();
                    return Err(Error::Setting {
                        field: "targets",
                        value,
                        expected: "finite numbers".into(),
                    });
                }
            }
            Targets::None => {}
        }
        Ok(Self { texts, targets })
    }

    /// Number of samples, at least 1.
    #[must_use]
    #[allow(clippy::len_without_is_empty, reason = "there is always one")]
    pub fn len(&self) -> usize {
        self.texts.len()
    }

    /// Of all samples.
    #[must_use]
    pub fn texts(&self) -> &[Text] {
        &self.texts
    }

    /// Of all samples.
    #[must_use]
    pub fn targets(&self) -> &Targets {
        &self.targets
    }

    /// The samples `indices`, in that order.
    ///
    /// # Errors
    ///
    /// [`Error::Index`] for one that is not there; [`Error::Empty`] for none.
    pub fn select(&self, indices: &[usize]) -> Result<Self> {
        if let Some(&index) = indices.iter().find(|index| **index >= self.len()) {
            return Err(Error::Index { index, len: self.len() });
        }
        let targets = match &self.targets {
            Targets::None => Targets::None,
            Targets::Numbers(numbers) => Targets::Numbers(indices.iter().map(|&i| numbers[i]).collect()),
            Targets::Classes { labels, names } => Targets::Classes {
                labels: indices.iter().map(|&i| labels[i]).collect(),
                names: names.clone(),
            },
        };
        Self::new(indices.iter().map(|&i| self.texts[i].clone()).collect(), targets)
    }
}

/// The lines of a file, plain or `.gz`, each a sample without target: a sentence, or two with a tab between them.
///
/// # Errors
///
/// [`Error::Format`] naming file and line of what is no UTF-8 or empty; [`Error::Empty`] for a file without lines; [`Error::Io`].
pub fn text_lines(path: &Path) -> Result<TextSet> {
    let lines = Lines::read(path)?;
    let text = |line: Result<(usize, &str)>| match line? {
        (number, line) if line.trim().is_empty() => {
            Err(at_line(path, number, "an empty line, expected a text"))
        }
        (_, line) => Ok(Text::of_line(line)),
    };
    let texts: Vec<Text> = lines.iter().map(text).collect::<Result<_>>()?;
    if texts.is_empty() {
        return Err(Error::Empty { what: path.display().to_string() });
    }
    TextSet::new(texts, Targets::None)
}
