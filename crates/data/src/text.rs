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

impl Targets {
    /// What is best said of a sample of which nothing is known: the logarithm of how often each class is, counted once more than it is, so that one that is never
    /// there is rare, not impossible; or the mean of the numbers.
    ///
    /// ```
    /// use layerwise_data::Targets;
    ///
    /// assert_eq!(Targets::Numbers(vec![1., 4.]).prior(), [2.5]);
    /// let names = ["no", "yes"].map(String::from).to_vec();
    /// let prior = Targets::Classes { labels: vec![1, 1, 0, 1], names }.prior();
    /// assert!((prior[1].exp() - 4. / 6.).abs() < 1e-6);
    /// ```
    #[must_use]
    pub fn prior(&self) -> Vec<f32> {
        match self {
            Self::None => Vec::new(),
            Self::Numbers(numbers) => {
                let sum: f64 = numbers.iter().map(|&number| f64::from(number)).sum();
                vec![(sum / numbers.len().max(1) as f64) as f32]
            }
            Self::Classes { labels, names } => {
                let mut counts = vec![1f64; names.len()];
                for &label in labels {
                    if let Some(count) = counts.get_mut(label as usize) {
                        *count += 1.;
                    }
                }
                let all: f64 = counts.iter().sum();
                counts.iter().map(|count| (count / all).ln() as f32).collect()
            }
        }
    }
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

/// A file as one text, plain or `.gz`; a mark at its beginning and what ends its lines besides `\n` are taken away.
///
/// # Errors
///
/// [`Error::Format`] naming file and line of what is no UTF-8; [`Error::Empty`] for a file without text; [`Error::Io`].
pub fn text_file(path: &Path) -> Result<String> {
    let lines = Lines::read(path)?;
    let mut text = String::new();
    for line in lines.iter() {
        text.push_str(line?.1);
        text.push('\n');
    }
    if text.trim().is_empty() {
        return Err(Error::Empty { what: path.display().to_string() });
    }
    Ok(text)
}
