//! Small tables: aligned text for the terminal, the same rows for the report.

use std::fmt;

/// Rows of cells under a header. Numbers and all other cells are aligned to the right, the first column too.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    header: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// An empty table with these columns.
    pub fn new<S: Into<String>>(header: impl IntoIterator<Item = S>) -> Self {
        Self { header: header.into_iter().map(Into::into).collect(), rows: Vec::new() }
    }

    /// Adds a row; missing cells are empty, those beyond the header are dropped.
    pub fn row<S: Into<String>>(&mut self, cells: impl IntoIterator<Item = S>) -> &mut Self {
        let mut row: Vec<String> = cells.into_iter().map(Into::into).collect();
        row.resize(self.header.len(), String::new());
        self.rows.push(row);
        self
    }

    /// Names of the columns.
    #[must_use]
    pub fn header(&self) -> &[String] {
        &self.header
    }

    /// The rows, each as wide as the header.
    #[must_use]
    pub fn rows(&self) -> &[Vec<String>] {
        &self.rows
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines = || std::iter::once(&self.header).chain(&self.rows);
        let width = |column: usize| lines().map(|line| line[column].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..self.header.len()).map(width).collect();
        for line in lines() {
            let cells: Vec<String> =
                line.iter().zip(&widths).map(|(cell, &width)| format!("{cell:>width$}")).collect();
            writeln!(f, "{}", cells.join("  ").trim_end())?;
        }
        Ok(())
    }
}

/// A column of [`per_layer`]: its name, how a number is written, and one number a layer.
pub type Column = (String, fn(f64) -> String, Vec<f64>);

/// A column for each curve of one quantity, called after the quantity and the curve.
#[must_use]
pub fn columns<'a>(
    what: &str,
    write: fn(f64) -> String,
    curves: impl IntoIterator<Item = (&'a str, Vec<f64>)>,
) -> Vec<Column> {
    curves.into_iter().map(|(name, values)| (format!("{what} {name}"), write, values)).collect()
}

/// One row a layer, counted from `first`, with a column of numbers each. A column that ends early has dashes.
#[must_use]
pub fn per_layer(first: usize, columns: &[Column]) -> Table {
    let names = columns.iter().map(|(name, ..)| name.clone());
    let mut table = Table::new(std::iter::once("layer".to_owned()).chain(names));
    for row in 0..columns.iter().map(|(.., values)| values.len()).max().unwrap_or(0) {
        let cells =
            columns.iter().map(|(_, write, values)| write(values.get(row).copied().unwrap_or(f64::NAN)));
        table.row(std::iter::once((first + row).to_string()).chain(cells));
    }
    table
}

/// A share as a percentage with one decimal: `0.9472` is `94.7`. Missing or undefined: `-`.
#[must_use]
pub fn percent(share: f64) -> String {
    if share.is_finite() { format!("{:.1}", 100. * share) } else { "-".into() }
}

/// A number with three decimals, as similarities have them. Undefined: `-`.
#[must_use]
pub fn thousandths(value: f64) -> String {
    decimals(value, 3)
}

/// A number with so many decimals. Undefined: `-`.
#[must_use]
pub fn decimals(value: f64, places: usize) -> String {
    if value.is_finite() { format!("{value:.places$}") } else { "-".into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aligns_columns_by_their_widest_cell() {
        let mut table = Table::new(["layer", "COS"]);
        table.row(["1", "0.25"]).row(["12", "1"]).row(["über"]);
        assert_eq!(table.to_string(), "layer   COS\n    1  0.25\n   12     1\n über\n");
    }

    #[test]
    fn an_empty_table_is_its_header() {
        assert_eq!(Table::new(["a", "b"]).to_string(), "a  b\n");
        assert_eq!(Table::default().to_string(), "\n");
    }

    #[test]
    fn layers_count_from_the_first() {
        let columns: [Column; 2] =
            [("acc.".into(), percent, vec![0.5, 1.]), ("COS".into(), thousandths, vec![0.25])];
        assert_eq!(
            per_layer(1, &columns).to_string(),
            "layer   acc.    COS\n    1   50.0  0.250\n    2  100.0      -\n"
        );
    }

    #[test]
    fn undefined_numbers_are_dashes() {
        assert_eq!((percent(0.9472), percent(f64::NAN)), ("94.7".into(), "-".into()));
        assert_eq!((decimals(2.5, 2), decimals(f64::INFINITY, 2)), ("2.50".into(), "-".into()));
    }
}
