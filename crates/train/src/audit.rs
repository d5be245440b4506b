use candle_core::{DType, Tensor};
use layerwise_models::{Batch, Params, Pass, Tapped};

use crate::{Error, Gradients, Result, loss, take_gradients};

/// Fails unless every parameter of `params` has a finite, non-zero gradient; `idle` are names that may have none.
///
/// candle's fused layer norm, softmax and rotary operations have no backward pass: `backward()` succeeds, the loss falls, and
/// whatever lies behind them stays as it was. This names it.
///
/// # Errors
///
/// [`Error::Audit`] with all names.
pub fn audit_gradients(params: &Params, gradients: &Gradients, idle: &[String]) -> Result<()> {
    let (mut missing, mut zero, mut not_finite) = (Vec::new(), Vec::new(), Vec::new());
    for (name, _) in params.iter() {
        if idle.iter().any(|idle| idle == name) {
            continue;
        }
        let Some(gradient) = gradients.get(name) else {
            missing.push(name.to_owned());
            continue;
        };
        let size = gradient.to_dtype(DType::F64)?.abs()?.sum_all()?.to_scalar::<f64>()?;
        if !size.is_finite() {
            not_finite.push(name.to_owned());
        } else if size == 0. {
            zero.push(name.to_owned());
        }
    }
    if missing.is_empty() && zero.is_empty() && not_finite.is_empty() {
        return Ok(());
    }
    Err(Error::Audit { missing, zero, not_finite })
}

/// One backward pass of the loss with these exit weights, followed by [`audit_gradients`].
///
/// With a head per exit, a turn that weighs only the last exit leaves the other heads idle: audit with all weights non-zero.
///
/// # Errors
///
/// [`Error::Audit`] with all names; otherwise as [`loss`].
pub fn audit<M: Tapped + ?Sized>(
    model: &M,
    params: &Params,
    batch: &Batch,
    labels: &Tensor,
    weights: &[f64],
    idle: &[String],
) -> Result<()> {
    let loss = loss(model, batch, labels, &weights.to_vec().into(), 0., Pass::EVAL)?;
    audit_gradients(params, &take_gradients(layerwise_ops::backward(&loss.total)?, params), idle)
}
