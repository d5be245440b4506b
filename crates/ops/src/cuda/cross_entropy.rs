use candle_core::{Result, Tensor};

use super::{
    launch::{Fresh, Input, NULL, Number, by_type, launch, named, room, row_blocks},
    record::{Backward, record},
};

/// What rows of logits are held against.
pub(super) struct Held<'a> {
    pub(super) targets: &'a Tensor,
    pub(super) weights: &'a Tensor,
    pub(super) smoothing: f32,
    pub(super) learns: bool,
}

/// What rows of logits, f32 and without the bias, say: `(rows, 5)` cross-entropy, whether right, largest probability, margin, entropy. And the derivatives of their
/// cross-entropies by them, times the rows' weights. A row of weight 0 says 0.
pub(super) fn answer<T: Number>(
    held: &Held<'_>,
    z: &Tensor,
    bias: Option<&Tensor>,
) -> Result<(Fresh, Option<Fresh>)> {
    let (count, classes) = z.dims2()?;
    let inputs = [Input::of(z)?, Input::of(held.targets)?, Input::of(held.weights)?];
    let (z, targets, weights) =
        (inputs[0].view::<f32>()?, inputs[1].view::<u32>()?, inputs[2].view::<f32>()?);
    let bias = bias.map(Input::of).transpose()?;
    let bias = bias.as_ref().map(Input::view::<T>).transpose()?;
    let (device, of_classes) = (inputs[0].device()?, classes as i32);
    let mut says = room::<f32>(&device, 5 * count)?;
    let mut to = held.learns.then(|| room::<T>(&device, count * classes)).transpose()?;
    launch!(device, CROSS_ENTROPY, named::<T>("cross_entropy"), row_blocks(count, classes)?, arguments => {
        arguments.arg(&z);
        match &bias {
            Some(bias) => arguments.arg(bias),
            None => arguments.arg(&NULL),
        };
        match &mut to {
            Some(to) => arguments.arg(to),
            None => arguments.arg(&NULL),
        };
        arguments.arg(&targets).arg(&weights).arg(&mut says).arg(&of_classes).arg(&held.smoothing)
    });
    let by_logits = to.map(|to| Fresh::new(to, &device, (count, classes)));
    Ok((Fresh::new(says, &device, (count, 5)), by_logits))
}

/// `w_i ce_i` of each row of f32 logits; a row that weighs 0 counts nothing.
pub(crate) fn cross_entropy(logits: &Tensor, ids: &[u32], weights: &[f32], smoothing: f32) -> Result<Tensor> {
    let (logits, device) = (logits.contiguous()?, logits.device());
    // What is ignored may be no class.
    let ids = ids.iter().zip(weights).map(|(&id, &weight)| if weight == 0. { 0 } else { id });
    let rows = RowLosses {
        targets: Tensor::from_iter(ids, device)?,
        weights: Tensor::new(weights, device)?,
        smoothing,
    };
    let (says, _) = answer::<f32>(&rows.held(&rows.weights, false), &logits.detach(), None)?;
    let losses = (says.tensor().narrow(1, 0, 1)?.squeeze(1)? * &rows.weights)?;
    match logits.track_op() {
        true => record(&[&logits], Fresh::copy(&losses)?, rows),
        false => Ok(losses),
    }
}

struct RowLosses {
    targets: Tensor,
    weights: Tensor,
    smoothing: f32,
}

impl RowLosses {
    fn held<'a>(&'a self, weights: &'a Tensor, learns: bool) -> Held<'a> {
        Held { targets: &self.targets, weights, smoothing: self.smoothing, learns }
    }
}

impl Backward for RowLosses {
    fn name(&self) -> &'static str {
        "cross-entropy"
    }

    fn backward(&self, inputs: &[&Tensor], _: &Tensor, gradient: &Tensor) -> Result<Vec<Option<Tensor>>> {
        let weights = (&self.weights * gradient)?;
        let (_, by_logits) = answer::<f32>(&self.held(&weights, true), &inputs[0].detach(), None)?;
        Ok(vec![by_logits.map(Fresh::tensor)])
    }
}

/// Of each row of logits: the answer, largest probability, margin and entropy, `(rows, 4)` in f32.
pub(crate) fn certainty(logits: &Tensor) -> Result<Tensor> {
    by_type!(logits.dtype(), how_sure(&logits.contiguous()?))
}

fn how_sure<T: Number>(logits: &Tensor) -> Result<Tensor> {
    let (rows, classes) = logits.dims2()?;
    let input = Input::of(logits)?;
    let (device, z, of_classes) = (input.device()?, input.view::<T>()?, classes as i32);
    let mut says = room::<f32>(&device, 4 * rows)?;
    launch!(device, CROSS_ENTROPY, named::<T>("certainty"), row_blocks(rows, classes)?, arguments =>
        arguments.arg(&z).arg(&mut says).arg(&of_classes));
    Ok(Fresh::new(says, &device, (rows, 4)).tensor())
}
