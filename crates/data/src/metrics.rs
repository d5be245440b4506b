//! What the tasks of GLUE, and texts that models say, are scored by. Sums are f64.

use std::collections::HashSet;

use candle_core::{D, DType, Tensor};
use serde::{Deserialize, Serialize};

use crate::{Error, Result, Targets};

/// A score of predictions, at most 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// Share of right answers.
    Accuracy,
    /// Of class 1.
    F1,
    /// Matthews' correlation of two classes.
    Matthews,
    /// Pearson's correlation.
    Pearson,
    /// Spearman's correlation.
    Spearman,
}

impl Metric {
    /// The score of logits `(rows, classes)`, or of predicted numbers `(rows, 1)`, on any device.
    ///
    /// # Errors
    ///
    /// [`Error::Setting`] for targets of the other kind or another number of them, for logits of another shape, and for a NaN.
    pub fn score(self, logits: &Tensor, targets: &Targets) -> Result<f64> {
        let wrong = |expected: String| Error::Setting {
            field: "logits",
            value: format!("{:?}", logits.dims()),
            expected,
        };
        let rows = |rows: usize, columns: usize| match logits.dims() == [rows, columns] {
            true => Ok(logits.to_dtype(DType::F32)?),
            false => Err(wrong(format!("({rows}, {columns})"))),
        };
        let score = match (self, targets) {
            (Self::Accuracy | Self::F1 | Self::Matthews, Targets::Classes { labels, names }) => {
                let logits = rows(labels.len(), names.len())?;
                finite(&logits)?;
                let predictions = logits.argmax(D::Minus1)?.to_vec1::<u32>()?;
                let of = match self {
                    Self::F1 => f1,
                    Self::Matthews => matthews,
                    _ => accuracy,
                };
                of(&predictions, labels)
            }
            (Self::Pearson | Self::Spearman, Targets::Numbers(numbers)) => {
                let predictions = rows(numbers.len(), 1)?;
                finite(&predictions)?;
                let of = if self == Self::Pearson { pearson } else { spearman };
                let predictions = predictions.flatten_all()?.to_dtype(DType::F64)?.to_vec1()?;
                let correlation =
                    of(&predictions, &numbers.iter().map(|x| f64::from(*x)).collect::<Vec<_>>());
                // Who always says the same knows nothing.
                if correlation.is_nan() { 0. } else { correlation }
            }
            _ => {
                let value = format!("{self:?}");
                let expected = "a metric of classes for classes, of numbers for numbers".to_owned();
                return Err(Error::Setting { field: "metric", value, expected });
            }
        };
        Ok(score)
    }

    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Accuracy => "accuracy",
            Self::F1 => "F1",
            Self::Matthews => "Matthews",
            Self::Pearson => "Pearson",
            Self::Spearman => "Spearman",
        }
    }
}

fn finite(logits: &Tensor) -> Result<()> {
    // 0 times what is not finite is NaN.
    let sum = (logits * 0.)?.sum_all()?.to_scalar::<f32>()?;
    if sum == 0. {
        return Ok(());
    }
    Err(Error::Setting { field: "logits", value: "NaN".to_owned(), expected: "finite numbers".to_owned() })
}

/// Share of predictions that are right; 0 without samples.
#[must_use]
pub fn accuracy(predictions: &[u32], labels: &[u32]) -> f64 {
    let right = predictions.iter().zip(labels).filter(|(a, b)| a == b).count();
    ratio(right as f64, labels.len() as f64)
}

/// `2 TP / (2 TP + FP + FN)` of class 1; 0 where it neither is there nor predicted.
#[must_use]
pub fn f1(predictions: &[u32], labels: &[u32]) -> f64 {
    let [[_, fp], [fn_, tp]] = confusion(predictions, labels);
    ratio(2. * tp, 2. * tp + fp + fn_)
}

/// `(TP TN - FP FN) / sqrt((TP + FP)(TP + FN)(TN + FP)(TN + FN))` (Matthews 1975); 0 where one of the sums is.
#[must_use]
pub fn matthews(predictions: &[u32], labels: &[u32]) -> f64 {
    let [[tn, fp], [fn_, tp]] = confusion(predictions, labels);
    ratio(tp * tn - fp * fn_, ((tp + fp) * (tp + fn_) * (tn + fp) * (tn + fn_)).sqrt())
}

/// Pearson's correlation; NaN where one of them is constant or there are fewer than two pairs.
///
/// ```
/// use layerwise_data::metrics::pearson;
///
/// assert!((pearson(&[1., 2., 3.], &[2., 4., 6.]) - 1.).abs() < 1e-12);
/// ```
#[must_use]
pub fn pearson(x: &[f64], y: &[f64]) -> f64 {
    let n = x.len().min(y.len());
    let centred = |values: &[f64]| -> Vec<f64> {
        let mean = values.iter().sum::<f64>() / n as f64;
        values.iter().map(|value| value - mean).collect()
    };
    // Asked of the values themselves: rounding makes a constant vary about its mean.
    let varies = [x, y].iter().all(|values| values[..n].iter().any(|value| *value != values[0]));
    let (x, y) = (centred(&x[..n]), centred(&y[..n]));
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let scale = (dot(&x, &x) * dot(&y, &y)).sqrt();
    if varies { (dot(&x, &y) / scale).clamp(-1., 1.) } else { f64::NAN }
}

/// Spearman's correlation: Pearson's of the ranks, equal values sharing their mean rank; NaN where a value is not finite.
#[must_use]
pub fn spearman(x: &[f64], y: &[f64]) -> f64 {
    let n = x.len().min(y.len());
    let finite = [x, y].iter().all(|values| values[..n].iter().all(|value| value.is_finite()));
    if finite { pearson(&ranks(&x[..n]), &ranks(&y[..n])) } else { f64::NAN }
}

/// Counts of `[label is 1][prediction is 1]`.
fn confusion(predictions: &[u32], labels: &[u32]) -> [[f64; 2]; 2] {
    let mut counts = [[0.; 2]; 2];
    for (prediction, label) in predictions.iter().zip(labels) {
        counts[usize::from(*label == 1)][usize::from(*prediction == 1)] += 1.;
    }
    counts
}

fn ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| values[a].total_cmp(&values[b]));
    let mut ranks = vec![0.; values.len()];
    let mut start = 0;
    for equal in order.chunk_by(|&a, &b| values[a] == values[b]) {
        let mean = start as f64 + (equal.len() - 1) as f64 / 2.;
        equal.iter().for_each(|&i| ranks[i] = mean);
        start += equal.len();
    }
    ranks
}

fn ratio(a: f64, b: f64) -> f64 {
    if b > 0. { a / b } else { 0. }
}

/// How little a text repeats itself, in `[0, 1]` (paper, eq. 6); what is too short to have n-grams repeats none.
///
/// ```text
/// prod_(n = 2..4) |unique n-grams| / |n-grams|
/// ```
///
/// ```
/// use layerwise_data::metrics::diversity;
///
/// assert_eq!(diversity(&[1, 2, 3, 4, 5]), 1.);
/// // Pairs 12 21 12 21, triples 121 212 121, fours 1212 2121.
/// assert_eq!(diversity(&[1, 2, 1, 2, 1]), (2. / 4.) * (2. / 3.) * (2. / 2.));
/// ```
#[must_use]
pub fn diversity(ids: &[u32]) -> f64 {
    let share = |n: usize| {
        let unique: HashSet<&[u32]> = ids.windows(n).collect();
        if ids.len() < n { 1. } else { unique.len() as f64 / (ids.len() - n + 1) as f64 }
    };
    (2..=4).map(share).product()
}
