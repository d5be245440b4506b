use candle_core::{Result, Tensor};

use super::{
    launch::{Fresh, Input, Number, by_type, elements, launch, named, room},
    record::{Backward, record},
};
use crate::dropout::Keep;

/// The mask is the one of the CPU.
pub(crate) fn dropout(xs: &Tensor, keep: Keep) -> Result<Tensor> {
    let xs = xs.contiguous()?;
    record(&[&xs], by_type!(xs.dtype(), kernel(&xs, &keep))?, Dropped(keep))
}

fn kernel<T: Number>(xs: &Tensor, keep: &Keep) -> Result<Fresh> {
    let input = Input::of(xs)?;
    let (device, x, count) = (input.device()?, input.view::<T>()?, xs.elem_count());
    let (of_count, (seed, dropped, scale)) = (count as u64, keep.numbers());
    let mut y = room::<T>(&device, count)?;
    launch!(device, DROPOUT, named::<T>("dropout"), elements(count)?, arguments =>
        arguments.arg(&x).arg(&mut y).arg(&of_count).arg(&seed).arg(&dropped).arg(&scale));
    Ok(Fresh::new(y, &device, xs.shape()))
}

struct Dropped(Keep);

impl Backward for Dropped {
    fn name(&self) -> &'static str {
        "dropout"
    }

    fn backward(&self, _: &[&Tensor], _: &Tensor, gradient: &Tensor) -> Result<Vec<Option<Tensor>>> {
        Ok(vec![Some(by_type!(gradient.dtype(), kernel(gradient, &self.0))?.tensor())])
    }
}
