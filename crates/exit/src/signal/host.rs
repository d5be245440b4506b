//! On the processor: one pass over each row.

use candle_core::{Device::Cpu, Storage, Tensor};

use super::{Signal, Values};
use crate::{Result, argmax};

/// `xs` is `(rows, width)`, f32: logits or features, whichever the signal reads.
pub(super) fn values(signal: &Signal, xs: &Tensor, memory: Option<&Tensor>) -> Result<Values> {
    let (_, width) = xs.dims2()?;
    let flat = xs.flatten_all()?.to_vec1::<f32>()?;
    let rows = flat.chunks_exact(width.max(1));
    let of =
        |value: fn(&[f32]) -> f64| Ok(Values { values: rows.clone().map(value).collect(), memory: None });
    match signal {
        Signal::MaxProbability => of(max_probability),
        Signal::Margin => of(margin),
        Signal::Entropy => of(entropy),
        Signal::Patience => patience(rows, memory),
        Signal::Saturation => {
            let values = match memory {
                None => rows.map(|row| if finite(row) { -1. } else { f64::NAN }).collect(),
                Some(before) => {
                    let before = before.flatten_all()?.to_vec1::<f32>()?;
                    rows.zip(before.chunks_exact(width.max(1))).map(|(a, b)| cosine(a, b)).collect()
                }
            };
            Ok(Values { values, memory: Some(xs.clone()) })
        }
        Signal::Change => {
            let before = memory.map(|before| before.flatten_all()?.to_vec1::<f32>()).transpose()?;
            let nothing = f32::NEG_INFINITY;
            let before = before.unwrap_or_else(|| vec![nothing; flat.len()]);
            let values = rows.zip(before.chunks_exact(width.max(1))).map(|(a, b)| change(a, b)).collect();
            Ok(Values { values, memory: Some(xs.clone()) })
        }
        Signal::Gate(gate) => {
            Ok(Values { values: rows.map(|row| gate.probability(row)).collect(), memory: None })
        }
    }
}

/// Whether the largest probability of each row is above `threshold`, or is none; `xs` are logits.
pub(super) fn likelier_than(threshold: f64, xs: &Tensor) -> candle_core::Result<Vec<bool>> {
    let (_, classes) = xs.dims2()?;
    let xs = xs.contiguous()?;
    let (storage, layout) = xs.storage_and_layout();
    let (Storage::Cpu(values), Some((start, end))) = (&*storage, layout.contiguous_offsets()) else {
        candle_core::bail!("logits are not on the CPU")
    };
    let rows = values.as_slice::<f32>()?[start..end].chunks_exact(classes.max(1));
    // If the second largest alone makes the sum of exponentials so large, nothing has to be summed; what is close to it is.
    let too_close = (1. / threshold - 1. + 1e-9).ln();
    let likelier = |row: &[f32]| {
        if !finite(row) {
            return true;
        }
        let (max, second) = largest_two(row);
        f64::from(second) - f64::from(max) <= too_close && max_probability(row) > threshold
    };
    Ok(rows.map(likelier).collect())
}

/// The largest of finite numbers, and the largest of the others.
fn largest_two(row: &[f32]) -> (f32, f32) {
    let none = f32::NEG_INFINITY;
    row.iter().fold((none, none), |(max, second), &x| (max.max(x), second.max(max.min(x))))
}

/// Checks in a row with one answer. The memory is `(rows, 2)`: the last answer, and how many checks gave it.
fn patience<'a>(rows: impl Iterator<Item = &'a [f32]>, memory: Option<&Tensor>) -> Result<Values> {
    let before = memory.map(Tensor::to_vec2::<u32>).transpose()?;
    let mut values = Vec::new();
    let mut memory = Vec::new();
    for (i, row) in rows.enumerate() {
        let answer = argmax(row) as u32;
        let same = before.as_ref().map_or(0, |before| if before[i][0] == answer { before[i][1] } else { 0 });
        values.push(if finite(row) { f64::from(same + 1) } else { f64::NAN });
        memory.extend([answer, same + 1]);
    }
    let memory = Tensor::from_vec(memory, (values.len(), 2), &Cpu)?;
    Ok(Values { values, memory: Some(memory) })
}

fn finite(row: &[f32]) -> bool {
    row.iter().all(|x| x.is_finite())
}

/// Largest logit; NaN when one is not finite.
fn largest(row: &[f32]) -> f32 {
    if finite(row) { row.iter().copied().fold(f32::NEG_INFINITY, f32::max) } else { f32::NAN }
}

/// `exp(x - max)`. The difference of two finite numbers may be too large for f32, not for f64.
fn shifted(x: f32, max: f32) -> f64 {
    (f64::from(x) - f64::from(max)).exp()
}

fn max_probability(row: &[f32]) -> f64 {
    let max = largest(row);
    1. / row.iter().map(|&x| shifted(x, max)).sum::<f64>()
}

fn margin(row: &[f32]) -> f64 {
    let max = largest(row);
    let (mut sum, mut second) = (0., 0f64);
    let mut seen_largest = false;
    for &x in row {
        let p = shifted(x, max);
        sum += p;
        // The first of equals is the largest; another one is the second.
        if x == max && !seen_largest {
            seen_largest = true;
        } else {
            second = second.max(p);
        }
    }
    (1. - second) / sum
}

/// `ln S - (sum_j e_j (x_j - max)) / S`, with `e_j = exp(x_j - max)` and `S` their sum.
fn entropy(row: &[f32]) -> f64 {
    let max = largest(row);
    let (mut sum, mut weighted) = (0., 0.);
    for &x in row {
        let difference = f64::from(x) - f64::from(max);
        let e = difference.exp();
        sum += e;
        weighted += e * difference;
    }
    sum.ln() - weighted / sum
}

/// Largest absolute difference; infinite where there is nothing to compare with.
fn change(a: &[f32], b: &[f32]) -> f64 {
    if !finite(a) {
        return f64::NAN;
    }
    a.iter().zip(b).map(|(a, b)| (f64::from(*a) - f64::from(*b)).abs()).fold(0., f64::max)
}

/// 0 where one of them has no direction.
fn cosine(a: &[f32], b: &[f32]) -> f64 {
    if !finite(a) || !finite(b) {
        return f64::NAN;
    }
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum::<f64>();
    let lengths = (dot(a, a) * dot(b, b)).sqrt();
    if lengths > 0. { (dot(a, b) / lengths).clamp(-1., 1.) } else { 0. }
}
