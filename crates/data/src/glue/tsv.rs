//! Lines, columns and labels of a file.

use std::{ops::RangeInclusive, path::Path};

use super::{Task, task::Columns};
use crate::{Error, Result, Targets, Text, TextSet, error::at_line, lines::Lines};

/// STS-B's.
const SCORES: RangeInclusive<f32> = 0. ..=5.;

/// Where a file keeps what.
struct Places {
    first: usize,
    second: Option<usize>,
    label: Option<usize>,
}

pub(super) fn load(task: Task, path: &Path) -> Result<TextSet> {
    let bytes = Lines::read(path)?;
    let mut lines = bytes.iter().peekable();
    let empty = || Error::Empty { what: path.display().to_string() };
    let head = match lines.peek() {
        Some(Ok((_, head))) => *head,
        Some(Err(_)) => return Err(lines.next().and_then(Result::err).unwrap_or_else(empty)),
        None => return Err(empty()),
    };
    let (places, header) = places(task, head, path)?;
    if header {
        lines.next();
    }
    let mut texts = Vec::new();
    let mut labels = Vec::new();
    for line in lines {
        let (number, line) = line?;
        let columns: Vec<&str> = line.split('\t').collect();
        if columns == [""] {
            return Err(at_line(path, number, "an empty line, expected a sample"));
        }
        let last =
            [Some(places.first), places.second, places.label].into_iter().flatten().max().unwrap_or_default();
        if columns.len() <= last {
            if task == Task::Qqp {
                tracing::warn!(file = %path.display(), line = number, "a row cut short is left out");
                continue;
            }
            return Err(at_line(
                path,
                number,
                format!("{} columns, expected at least {}", columns.len(), last + 1),
            ));
        }
        let text = |column: usize| columns[column].trim().to_owned();
        texts.push(Text { first: text(places.first), second: places.second.map(text) });
        labels.extend(places.label.map(|label| (number, text(label))));
    }
    if texts.is_empty() {
        return Err(empty());
    }
    TextSet::new(texts, targets(task, &labels, path)?)
}

/// Where the columns are, and whether the first line says so.
fn places(task: Task, head: &str, path: &Path) -> Result<(Places, bool)> {
    let head: Vec<&str> = head.split('\t').map(str::trim).collect();
    let column = |name: &str| head.iter().position(|column| *column == name);
    let named = |first: &str, second: Option<&str>, label: Option<usize>| {
        let find = |name: &str| {
            column(name)
                .ok_or_else(|| at_line(path, 1, format!("columns {head:?}, expected one named {name:?}")))
        };
        Ok((Places { first: find(first)?, second: second.map(find).transpose()?, label }, true))
    };
    match task.columns() {
        // The file without labels has names.
        Columns::Placed { .. } if head.len() == 2 => named("sentence", None, None),
        Columns::Placed { label, first } => Ok((Places { first, second: None, label: Some(label) }, false)),
        Columns::Named { label, first, second } => named(first, second, column(label)),
    }
}

/// What labels in words or numbers mean.
fn targets(task: Task, labels: &[(usize, String)], path: &Path) -> Result<Targets> {
    // How some copies say that there is none.
    if labels.iter().all(|(_, label)| label == "-1") {
        return Ok(Targets::None);
    }
    let classes = task.classes();
    let wrong = |(number, label): &(usize, String), expected: String| {
        at_line(path, *number, format!("label {label:?}, expected {expected}"))
    };
    if classes.is_empty() {
        let number = |label: &(usize, String)| {
            let score = label.1.parse::<f32>().ok().filter(|score| SCORES.contains(score));
            score.ok_or_else(|| wrong(label, format!("a number from {} to {}", SCORES.start(), SCORES.end())))
        };
        return Ok(Targets::Numbers(labels.iter().map(number).collect::<Result<_>>()?));
    }
    let class = |label: &(usize, String)| {
        let by_name = classes.iter().position(|name| *name == label.1);
        let by_number = || label.1.parse::<usize>().ok().filter(|number| *number < classes.len());
        let class = by_name.or_else(by_number).map(|class| class as u32);
        class.ok_or_else(|| wrong(label, format!("one of {classes:?} or its number")))
    };
    let labels = labels.iter().map(class).collect::<Result<_>>()?;
    Ok(Targets::Classes { labels, names: classes.iter().map(|name| (*name).to_owned()).collect() })
}
