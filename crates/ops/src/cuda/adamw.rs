use candle_core::{CudaStorage, Result, Tensor, cuda_backend::cudarc::driver::CudaViewMut};

use super::launch::{Input, Number, by_type, grid, launch, named, visit};
use crate::simd::AdamW;

/// Elements that a block takes.
const PART: usize = 4096;

/// One step of `p`, `m` and `v`, f32 and contiguous, by a gradient of any type of number.
pub(crate) fn adamw([p, m, v]: [&Tensor; 3], gradient: &Tensor, update: &AdamW) -> Result<()> {
    let step = |p: &mut CudaStorage, m: &mut CudaStorage, v: &mut CudaStorage| {
        by_type!(gradient.dtype(), kernel([p, m, v], gradient, update))
    };
    // Each is lent to an operation only.
    visit(p, |p| visit(m, |m| visit(v, |v| step(p, m, v))))
}

fn kernel<T: Number>(memory: [&mut CudaStorage; 3], gradient: &Tensor, update: &AdamW) -> Result<()> {
    let (input, count) = (Input::of(gradient)?, gradient.elem_count());
    let (device, g) = (input.device()?, input.view::<T>()?);
    let [p, m, v] = memory.map(|storage| storage.as_cuda_slice_mut::<f32>());
    let [mut p, mut m, mut v]: [CudaViewMut<'_, f32>; 3] =
        [p?.slice_mut(..count), m?.slice_mut(..count), v?.slice_mut(..count)];
    let of_count = count as u64;
    let AdamW { beta1, beta2, fresh1, fresh2, gradient, keep, rate, correction, eps } = update;
    launch!(device, ADAMW, named::<T>("adamw"), grid((count.div_ceil(PART), 1), (256, 1))?, arguments => {
        arguments.arg(&mut p).arg(&g).arg(&mut m).arg(&mut v).arg(&of_count);
        arguments.arg(beta1).arg(beta2).arg(fresh1).arg(fresh2).arg(gradient);
        arguments.arg(keep).arg(rate).arg(correction).arg(eps)
    });
    Ok(())
}
