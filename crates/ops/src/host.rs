//! Tensors on the CPU as slices.

use std::{
    ops::Deref,
    sync::{Mutex, PoisonError},
};

use candle_core::{CpuStorage, DType, InplaceOp1, Layout, Result, Storage, Tensor, bail};

/// Whether the kernels of this crate apply: f32 on the CPU, not empty.
pub(crate) fn has_kernel(xs: &Tensor) -> bool {
    xs.device().is_cpu() && xs.dtype() == DType::F32 && xs.elem_count() > 0
}

/// The values of a contiguous f32 argument of a custom operation.
pub(crate) fn slice<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&storage.as_slice::<f32>()?[start..end]),
        None => bail!("a kernel got a strided argument of shape {:?}", layout.dims()),
    }
}

/// The values of a contiguous f32 tensor on the CPU.
pub(crate) struct Values<'a> {
    storage: Box<dyn Deref<Target = Storage> + 'a>,
    layout: &'a Layout,
}

impl<'a> Values<'a> {
    pub(crate) fn of(tensor: &'a Tensor) -> Result<Self> {
        let (storage, layout) = tensor.storage_and_layout();
        match &*storage {
            Storage::Cpu(cpu) => slice(cpu, layout)?,
            _ => bail!("a kernel for the CPU got a tensor of another device"),
        };
        Ok(Self { storage: Box::new(storage), layout })
    }
}

impl Values<'_> {
    /// Where the memory begins that the tensor is, or is a part of.
    pub(crate) fn memory(&self) -> *const f32 {
        match &**self.storage {
            Storage::Cpu(CpuStorage::F32(values)) => values.as_ptr(),
            _ => std::ptr::null(), // `of` has seen that it is not so
        }
    }
}

impl Deref for Values<'_> {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        match &**self.storage {
            Storage::Cpu(cpu) => slice(cpu, self.layout).unwrap_or_default(),
            _ => &[], // `of` has seen that it is not so
        }
    }
}

/// Calls `f` with the values of contiguous f32 tensors on the CPU.
pub(crate) fn with_slices<const N: usize, R>(
    tensors: [&Tensor; N],
    f: impl FnOnce([&[f32]; N]) -> Result<R>,
) -> Result<R> {
    let tensors = tensors.map(Tensor::storage_and_layout);
    let mut slices: [&[f32]; N] = [&[]; N];
    for (out, (storage, layout)) in slices.iter_mut().zip(&tensors) {
        *out = match &**storage {
            Storage::Cpu(storage) => slice(storage, layout)?,
            _ => bail!("a kernel for the CPU got a tensor of another device"),
        };
    }
    f(slices)
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
