//! In tensor operations, on whatever device the rows are: one number a row is read back, when it is wanted.

use candle_core::{D, DType, Result as CandleResult, Tensor};
use layerwise_ops::{ReadBack, certainty, read_back};

use super::Signal;
use crate::{Result, gate::FLOOR};

/// As [`host::values`](super::host::values), in f32; the values are on their way.
pub(super) fn values(
    signal: &Signal,
    xs: &Tensor,
    memory: Option<&Tensor>,
) -> Result<(ReadBack, Option<Tensor>)> {
    let sure = |column: usize| Ok((read_back(&certainty(xs)?.narrow(1, column, 1)?)?, None));
    let (values, memory) = match signal {
        Signal::MaxProbability => return sure(1),
        Signal::Margin => return sure(2),
        Signal::Entropy => return sure(3),
        Signal::Patience => {
            let memory = patience(xs, memory)?;
            (memory.narrow(1, 1, 1)?.squeeze(1)?.to_dtype(DType::F32)?, Some(memory))
        }
        Signal::Saturation => {
            let values = match memory {
                Some(before) => cosine(xs, before)?,
                None => xs.narrow(1, 0, 1)?.squeeze(1)?.ones_like()?.neg()?,
            };
            (values, Some(xs.clone()))
        }
        Signal::Change => {
            let values = match memory {
                Some(before) => (xs.to_dtype(DType::F64)? - before.to_dtype(DType::F64)?)?
                    .abs()?
                    .max(D::Minus1)?
                    .to_dtype(DType::F32)?,
                None => (xs.narrow(1, 0, 1)?.squeeze(1)?.ones_like()? * f64::INFINITY)?,
            };
            (values, Some(xs.clone()))
        }
        Signal::Gate(gate) => {
            // In f64: means may be far above deviations, and their squares large.
            let standard = standardised(&xs.to_dtype(DType::F64)?)?;
            let weights = Tensor::new(gate.weights.as_slice(), xs.device())?.unsqueeze(1)?;
            let logits = (standard.matmul(&weights)?.squeeze(1)? + gate.bias)?;
            ((logits.neg()?.exp()? + 1.)?.recip()?.to_dtype(DType::F32)?, None)
        }
    };
    // 0 times what is not finite is NaN.
    let not_finite = (xs * 0.)?.sum(D::Minus1)?;
    Ok((read_back(&(values + not_finite)?)?, memory))
}

fn patience(xs: &Tensor, memory: Option<&Tensor>) -> CandleResult<Tensor> {
    let answer = xs.argmax_keepdim(D::Minus1)?;
    let one = answer.ones_like()?;
    let streak = match memory {
        None => one,
        Some(before) => {
            let same = before.narrow(1, 0, 1)?.eq(&answer)?.to_dtype(DType::U32)?;
            ((same * before.narrow(1, 1, 1)?)? + one)?
        }
    };
    Tensor::cat(&[answer, streak], 1)
}

fn cosine(a: &Tensor, b: &Tensor) -> CandleResult<Tensor> {
    // In f64, so that a square of a large number is one.
    let (a, b) = (a.to_dtype(DType::F64)?, b.to_dtype(DType::F64)?);
    let dot = |a: &Tensor, b: &Tensor| (a * b)?.sum(D::Minus1);
    let lengths = (dot(&a, &a)?.sqrt()? * dot(&b, &b)?.sqrt()?)?;
    let some = lengths.gt(0.)?.to_dtype(DType::F64)?;
    let none = (1. - &some)?;
    (dot(&a, &b)? / (lengths + none)?)?.to_dtype(DType::F32)
}

/// Each row less its mean, over its deviation; see [`Gate`](crate::Gate).
fn standardised(xs: &Tensor) -> CandleResult<Tensor> {
    let centred = xs.broadcast_sub(&xs.mean_keepdim(D::Minus1)?)?;
    let mean_square = |xs: &Tensor| xs.sqr()?.mean_keepdim(D::Minus1);
    let deviation = (mean_square(&centred)? + (mean_square(xs)? * FLOOR)?)?.sqrt()?;
    let some = deviation.gt(0.)?.to_dtype(xs.dtype())?;
    centred.broadcast_div(&(deviation + (1. - some)?)?)
}
