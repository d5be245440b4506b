//! Tensors as memory of the GPU, and kernels as functions.

use std::{
    ops::Range,
    sync::{Mutex, PoisonError},
};

use candle_core::{
    CpuStorage, CudaDevice, CudaStorage, DType, InplaceOp1, Layout, Result, Shape, Storage, StorageRef,
    Tensor, WithDType,
    backend::BackendStorage,
    bail,
    cuda_backend::{
        CudaDType,
        cudarc::driver::{CudaSlice, CudaView, DeviceRepr, LaunchConfig},
    },
    op::BackpropOp,
};

/// Calls a function of a type of number with that of some tensors.
macro_rules! by_type {
    ($dtype:expr, $function:ident($($argument:expr),* $(,)?)) => {
        match $dtype {
            candle_core::DType::F32 => $function::<f32>($($argument),*),
            candle_core::DType::F16 => $function::<half::f16>($($argument),*),
            candle_core::DType::BF16 => $function::<half::bf16>($($argument),*),
            other => candle_core::bail!("there are no kernels for {other:?}"),
        }
    };
}
pub(super) use by_type;

/// PTX of each file in `kernels/`.
#[allow(unreachable_pub, reason = "written by cudaforge")]
pub(super) mod ptx {
    include!(concat!(env!("OUT_DIR"), "/ptx.rs"));
}

/// A type of number that there are kernels for.
pub(super) trait Number: CudaDType + WithDType + DeviceRepr {
    /// Behind the name of each.
    const SUFFIX: &'static str;
}

impl Number for f32 {
    const SUFFIX: &'static str = "f32";
}

impl Number for half::f16 {
    const SUFFIX: &'static str = "f16";
}

impl Number for half::bf16 {
    const SUFFIX: &'static str = "bf16";
}

/// Whether there are kernels for these: on one GPU, of one type of number, not empty.
pub(crate) fn has_kernel<'a>(tensors: impl IntoIterator<Item = &'a Tensor>) -> bool {
    let mut tensors = tensors.into_iter();
    let Some(first) = tensors.next() else { return false };
    let alike = |xs: &Tensor| xs.dtype() == first.dtype() && xs.device().same_device(first.device());
    first.device().is_cuda()
        && matches!(first.dtype(), DType::F32 | DType::F16 | DType::BF16)
        && first.elem_count() > 0
        && tensors.all(|xs| xs.elem_count() > 0 && alike(xs))
}

/// A contiguous tensor on the GPU, locked for reading.
pub(super) struct Input<'a> {
    storage: StorageRef<'a>,
    range: Range<usize>,
}

impl<'a> Input<'a> {
    pub(super) fn of(xs: &'a Tensor) -> Result<Self> {
        let (storage, layout) = xs.storage_and_layout();
        match layout.contiguous_offsets() {
            Some((start, end)) => Ok(Self { storage, range: start..end }),
            None => bail!("a kernel got a strided argument of shape {:?}", layout.dims()),
        }
    }

    fn cuda(&self) -> Result<&CudaStorage> {
        match &*self.storage {
            Storage::Cuda(storage) => Ok(storage),
            _ => bail!("a kernel of CUDA got numbers that are elsewhere"),
        }
    }

    pub(super) fn device(&self) -> Result<CudaDevice> {
        Ok(self.cuda()?.device.clone())
    }

    pub(super) fn view<T: CudaDType>(&self) -> Result<CudaView<'_, T>> {
        Ok(self.cuda()?.as_cuda_slice::<T>()?.slice(self.range.clone()))
    }
}

/// Memory that a kernel writes all of.
pub(super) fn room<T: DeviceRepr>(device: &CudaDevice, count: usize) -> Result<CudaSlice<T>> {
    // SAFETY: whoever asks for it gives it to a kernel that writes every element before anything reads one.
    unsafe { device.alloc::<T>(count) }
}

/// What a kernel has written.
pub(super) struct Fresh {
    pub(super) storage: CudaStorage,
    pub(super) shape: Shape,
}

impl Fresh {
    pub(super) fn new<T: CudaDType>(
        memory: CudaSlice<T>,
        device: &CudaDevice,
        shape: impl Into<Shape>,
    ) -> Self {
        Self { storage: CudaStorage::wrap_cuda_slice(memory, device.clone()), shape: shape.into() }
    }

    /// A copy of a tensor, contiguous.
    pub(super) fn copy(xs: &Tensor) -> Result<Self> {
        by_type!(xs.dtype(), copy(xs))
    }

    /// On no graph.
    pub(super) fn tensor(self) -> Tensor {
        Tensor::from_storage(Storage::Cuda(self.storage), self.shape, BackpropOp::none(), false)
    }
}

fn copy<T: Number>(xs: &Tensor) -> Result<Fresh> {
    let (storage, layout) = xs.storage_and_layout();
    let Storage::Cuda(storage) = &*storage else { bail!("a tensor of {:?}", xs.device()) };
    let mut fresh = Fresh::new(room::<T>(&storage.device, xs.elem_count())?, &storage.device, xs.shape());
    storage.copy_strided_src(&mut fresh.storage, 0, layout)?;
    Ok(fresh)
}

/// Blocks of threads.
pub(super) fn grid(blocks: (usize, usize), threads: (u32, u32)) -> Result<LaunchConfig> {
    let (Ok(x), Ok(y)) = (u32::try_from(blocks.0), u32::try_from(blocks.1)) else {
        bail!("a grid of {blocks:?} blocks")
    };
    Ok(LaunchConfig { grid_dim: (x, y, 1), block_dim: (threads.0, threads.1, 1), shared_mem_bytes: 0 })
}

/// One thread for each of so many elements; of very many, several elements for each.
pub(super) fn elements(count: usize) -> Result<LaunchConfig> {
    grid((count.div_ceil(256).min(1 << 20), 1), (256, 1))
}

/// A block for each row, of as many threads as it is wide, in whole warps.
pub(super) fn row_blocks(rows: usize, width: usize) -> Result<LaunchConfig> {
    grid((rows, 1), (width.next_multiple_of(32).clamp(32, 512) as u32, 1))
}

/// Launches a kernel of the PTX `$file` with the arguments that `$add` adds to `$arguments`.
macro_rules! launch {
    ($device:expr, $file:ident, $name:expr, $grid:expr, $arguments:ident => $add:expr) => {{
        use candle_core::cuda_backend::{WrapErr as _, cudarc::driver::PushKernelArg as _};
        let module = concat!("layerwise-ops ", stringify!($file));
        let function = $device.get_or_load_custom_func(&$name, module, $crate::cuda::launch::ptx::$file)?;
        let mut $arguments = function.builder();
        $add;
        // SAFETY: these are the kernel's arguments, in its order and of its types, and the sizes among them those of the memory.
        unsafe { $arguments.launch($grid) }.w()?;
    }};
}
pub(super) use launch;

/// The kernel `name` for this type of number.
pub(super) fn named<T: Number>(name: &str) -> String {
    format!("{name}_{}", T::SUFFIX)
}

/// A pointer to nothing.
pub(super) const NULL: u64 = 0;

/// Calls `f` with the memory of a contiguous tensor that begins with it.
pub(super) fn visit(xs: &Tensor, f: impl FnOnce(&mut CudaStorage) -> Result<()>) -> Result<()> {
    xs.inplace_op1(&Visit(Mutex::new(Some(f))))
}

struct Visit<F>(Mutex<Option<F>>);

impl<F: FnOnce(&mut CudaStorage) -> Result<()>> InplaceOp1 for Visit<F> {
    fn name(&self) -> &'static str {
        "visit"
    }

    fn cpu_fwd(&self, _: &mut CpuStorage, _: &Layout) -> Result<()> {
        bail!("visit: on the CPU")
    }

    fn cuda_fwd(&self, storage: &mut CudaStorage, layout: &Layout) -> Result<()> {
        let f = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        match (layout.contiguous_offsets(), f) {
            (Some((0, _)), Some(f)) => f(storage),
            _ => bail!("expected a contiguous tensor of its own"),
        }
    }
}
