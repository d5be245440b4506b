//! Tensors on the CPU as slices.

use std::{
    cell::RefCell,
    sync::{Mutex, PoisonError},
};

use candle_core::{CpuStorage, CustomOp1, DType, InplaceOp1, Layout, Result, Shape, Tensor, bail};

/// Whether the kernels of this crate apply: f32 on the CPU, not empty.
pub(crate) fn has_kernel(xs: &Tensor) -> bool {
    xs.device().is_cpu() && xs.dtype() == DType::F32 && xs.elem_count() > 0
}

/// Whether the kernels of CUDA apply, where they are compiled.
#[cfg(feature = "cuda")]
pub(crate) use crate::cuda::has_kernel as has_gpu_kernel;

/// Whether the kernels of CUDA apply: they are not compiled.
#[cfg(not(feature = "cuda"))]
pub(crate) fn has_gpu_kernel<'a>(_: impl IntoIterator<Item = &'a Tensor>) -> bool {
    false
}

/// The values of a contiguous f32 argument of a custom operation.
pub(crate) fn slice<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&storage.as_slice::<f32>()?[start..end]),
        None => bail!("a kernel got a strided argument of shape {:?}", layout.dims()),
    }
}

/// Calls `f` with the values of contiguous f32 tensors on the CPU.
pub(crate) fn with_slices<const N: usize, R>(
    tensors: [&Tensor; N],
    f: impl FnOnce([&[f32]; N]) -> Result<R>,
) -> Result<R> {
    with_values(&tensors, |values| f(std::array::from_fn(|i| values[i])))
}

/// Calls `f` with the values of any number of contiguous f32 tensors on the CPU.
///
/// candle's operations read recursively, `storage_and_layout` does not: a thread that waits in rayon while it holds that lock
/// may pick up a job that reads the same tensor, and both would wait for ever behind a writer.
pub(crate) fn with_values<R>(tensors: &[&Tensor], f: impl FnOnce(&[&[f32]]) -> Result<R>) -> Result<R> {
    let (mut f, mut result) = (Some(f), None);
    read(tensors, &[], &mut |values| {
        if let Some(f) = f.take() {
            result = Some(f(values)?);
        }
        Ok(())
    })?;
    match result {
        Some(result) => Ok(result),
        None => bail!("the values were not read"),
    }
}

/// Adds the values of the tensors that are left to those that are read, then calls `f`.
fn read(left: &[&Tensor], seen: &[&[f32]], f: &mut dyn FnMut(&[&[f32]]) -> Result<()>) -> Result<()> {
    let Some((tensor, left)) = left.split_first() else { return f(seen) };
    let next = |values: &[f32]| {
        let mut seen: Vec<&[f32]> = seen.to_vec();
        seen.push(values);
        read(left, &seen, f)
    };
    tensor.apply_op1_no_bwd(&Read(RefCell::new(next)))?;
    Ok(())
}

struct Read<F>(RefCell<F>);

impl<F: FnMut(&[f32]) -> Result<()>> CustomOp1 for Read<F> {
    fn name(&self) -> &'static str {
        "read"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        (self.0.borrow_mut())(slice(storage, layout)?)?;
        Ok((CpuStorage::F32(Vec::new()), Shape::from(0)))
    }
}

/// Whether two of these share memory.
#[cfg(feature = "cuda")]
pub(crate) fn share_memory(tensors: &[&Tensor]) -> bool {
    let mut places: Vec<usize> = tensors.iter().map(|xs| place(xs)).collect();
    places.sort_unstable();
    places.windows(2).any(|pair| pair[0] == pair[1])
}

/// What tells the memory of a tensor from that of others.
pub(crate) fn place(xs: &Tensor) -> usize {
    std::ptr::from_ref(&*xs.storage_and_layout().0).addr()
}

/// Calls `f` with the values of a contiguous f32 tensor on the CPU, to change them in place.
pub(crate) fn with_values_mut(
    tensor: &Tensor,
    f: impl FnOnce(&mut [f32]) -> Result<()> + Send,
) -> Result<()> {
    tensor.inplace_op1(&Visit(Mutex::new(Some(f))))
}

/// candle lends a tensor's memory to an operation only.
struct Visit<F>(Mutex<Option<F>>);

impl<F: FnOnce(&mut [f32]) -> Result<()>> InplaceOp1 for Visit<F> {
    fn name(&self) -> &'static str {
        "visit"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let f = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        match (storage, layout.contiguous_offsets(), f) {
            (CpuStorage::F32(values), Some((start, end)), Some(f)) => f(&mut values[start..end]),
            _ => bail!("expected contiguous f32"),
        }
    }
}

/// Size of the last dimension.
pub(crate) fn width(layout: &Layout) -> usize {
    layout.dims().last().copied().unwrap_or(1)
}

/// Elements that one task gets at least: handing a task to another thread costs as much as some thousands of them.
pub(crate) const CHUNK: usize = 8192;

/// Rows of `width` elements that one task gets at least.
pub(crate) fn rows_per_task(width: usize) -> usize {
    CHUNK.div_ceil(width.max(1))
}

/// Rows per part when `rows` are cut into at most 16 parts: sums over parts do not depend on the number of threads.
pub(crate) fn rows_per_part(rows: usize, width: usize) -> usize {
    rows.div_ceil(16).max(rows_per_task(width))
}
