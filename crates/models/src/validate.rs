//! What configurations check alike.

use std::collections::BTreeMap;

use crate::{Error, Result};

// Far above any model there is; keeps the arithmetic on sizes from overflowing when a file lies.
pub(crate) const MAX_SIZE: usize = 1 << 20;
pub(crate) const MAX_LAYERS: usize = 1 << 12;

/// Fields, their values, and the largest of each.
pub(crate) fn sizes(fields: &[(&'static str, usize, usize)]) -> Result<()> {
    match fields.iter().find(|(_, value, max)| !(1..=*max).contains(value)) {
        Some(&(field, value, max)) => Err(Error::Size { field, value, max }),
        None => Ok(()),
    }
}

/// Number of heads and width, each with its field.
pub(crate) fn heads_divide(
    (heads_field, heads): (&'static str, usize),
    (width_field, width): (&'static str, usize),
) -> Result<()> {
    match width.is_multiple_of(heads) {
        true => Ok(()),
        false => Err(Error::HeadsDivideWidth { heads_field, heads, width_field, width }),
    }
}

pub(crate) fn dropouts(fields: &[(&'static str, f64)]) -> Result<()> {
    range(fields, |value| (0. ..1.).contains(&value), "a probability in [0, 1)")
}

pub(crate) fn not_negative(fields: &[(&'static str, f64)]) -> Result<()> {
    range(fields, |value| value.is_finite() && value >= 0., "a finite number that is not negative")
}

fn range(fields: &[(&'static str, f64)], fits: fn(f64) -> bool, expected: &'static str) -> Result<()> {
    match fields.iter().find(|(_, value)| !fits(*value)) {
        Some(&(field, value)) => Err(Error::Range { field, value, expected }),
        None => Ok(()),
    }
}

/// Names are those of all labels, or there are none.
pub(crate) fn labels(labels: usize, names: &BTreeMap<usize, String>) -> Result<()> {
    if names.is_empty() || names.keys().copied().eq(0..labels) {
        return Ok(());
    }
    Err(Error::Labels { labels, problem: format!("it names {} of them", names.len()) })
}
