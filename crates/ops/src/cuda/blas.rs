//! Products by cuBLAS: operands of any type of number, sums in f32, and results of f32 where they are to be exact.

use candle_core::{
    DType, Result, Tensor, bail,
    cuda_backend::{
        WrapErr,
        cudarc::{
            cublas::{result::gemm_strided_batched_ex, sys},
            driver::{CudaSlice, DevicePtr, DevicePtrMut},
        },
    },
};

use super::launch::{Fresh, Input, Number, by_type, room, visit};

/// A contiguous `(.., rows, columns)`: a matrix, or one for each of what stands before.
#[derive(Clone, Copy)]
pub(super) struct Matrix<'a> {
    xs: &'a Tensor,
    transposed: bool,
}

/// As it stands.
pub(super) fn plain(xs: &Tensor) -> Matrix<'_> {
    Matrix { xs, transposed: false }
}

/// With rows and columns exchanged.
pub(super) fn transposed(xs: &Tensor) -> Matrix<'_> {
    Matrix { xs, transposed: true }
}

impl Matrix<'_> {
    /// Rows and columns as they are in memory.
    fn stored(&self) -> Result<(usize, usize)> {
        match self.xs.dims() {
            [.., rows, columns] => Ok((*rows, *columns)),
            dims => bail!("a matrix of {dims:?}"),
        }
    }

    fn seen(&self) -> Result<(usize, usize)> {
        let (rows, columns) = self.stored()?;
        Ok(if self.transposed { (columns, rows) } else { (rows, columns) })
    }
}

/// `scale a b` as numbers of the operands' type.
pub(super) fn product(a: Matrix<'_>, b: Matrix<'_>, scale: f32) -> Result<Fresh> {
    by_type!(a.xs.dtype(), narrow(a, b, scale))
}

/// `scale a b` in f32.
pub(super) fn wide_product(a: Matrix<'_>, b: Matrix<'_>, scale: f32) -> Result<Fresh> {
    by_type!(a.xs.dtype(), wide(a, b, scale))
}

/// `to += scale a b`, of `to` in f32.
pub(super) fn accumulate(to: &Tensor, a: Matrix<'_>, b: Matrix<'_>, scale: f32) -> Result<()> {
    let Sizes { rows, columns, .. } = Sizes::of(a, b)?;
    if to.dims() != [rows, columns] || to.dtype() != DType::F32 {
        bail!("a sum of {:?}, expected {:?} in f32", to.dims(), [rows, columns])
    }
    visit(to, |storage| {
        let memory = storage.as_cuda_slice_mut::<f32>()?;
        by_type!(a.xs.dtype(), onto(memory, a, b, scale))
    })
}

fn onto<T: Number>(to: &mut CudaSlice<f32>, a: Matrix<'_>, b: Matrix<'_>, scale: f32) -> Result<()> {
    into::<T, f32>(to, a, b, scale, 1.)
}

fn narrow<T: Number>(a: Matrix<'_>, b: Matrix<'_>, scale: f32) -> Result<Fresh> {
    fresh::<T, T>(a, b, scale)
}

fn wide<T: Number>(a: Matrix<'_>, b: Matrix<'_>, scale: f32) -> Result<Fresh> {
    fresh::<T, f32>(a, b, scale)
}

fn fresh<T: Number, C: Number>(a: Matrix<'_>, b: Matrix<'_>, scale: f32) -> Result<Fresh> {
    let Sizes { rows, columns, batch, .. } = Sizes::of(a, b)?;
    let mut dims = a.xs.dims().to_vec();
    dims.truncate(dims.len() - 2);
    dims.extend([rows, columns]);
    let device = Input::of(a.xs)?.device()?;
    let mut to = room::<C>(&device, batch * rows * columns)?;
    into::<T, C>(&mut to, a, b, scale, 0.)?;
    Ok(Fresh::new(to, &device, dims))
}

struct Sizes {
    batch: usize,
    rows: usize,
    inner: usize,
    columns: usize,
}

impl Sizes {
    fn of(a: Matrix<'_>, b: Matrix<'_>) -> Result<Self> {
        let ((rows, inner), (other, columns)) = (a.seen()?, b.seen()?);
        let batch = |of: Matrix<'_>| of.xs.elem_count() / (rows * inner).max(1);
        let before = |of: Matrix<'_>| of.xs.dims()[..of.xs.rank() - 2].to_vec();
        if inner != other || before(a) != before(b) || a.xs.dtype() != b.xs.dtype() {
            bail!(
                "a product of {:?} {:?} and {:?} {:?}",
                a.xs.dims(),
                a.xs.dtype(),
                b.xs.dims(),
                b.xs.dtype()
            )
        }
        Ok(Self { batch: batch(a), rows, inner, columns })
    }
}

fn kind(dtype: DType) -> sys::cudaDataType {
    match dtype {
        DType::F16 => sys::cudaDataType::CUDA_R_16F,
        DType::BF16 => sys::cudaDataType::CUDA_R_16BF,
        _ => sys::cudaDataType::CUDA_R_32F,
    }
}

/// `to = scale a b + keep to`.
fn into<T: Number, C: Number>(
    to: &mut CudaSlice<C>,
    a: Matrix<'_>,
    b: Matrix<'_>,
    scale: f32,
    keep: f32,
) -> Result<()> {
    let Sizes { batch, rows, inner, columns } = Sizes::of(a, b)?;
    let (of_a, of_b) = (a.stored()?, b.stored()?);
    let [first, second] = [Input::of(a.xs)?, Input::of(b.xs)?];
    let device = first.device()?;
    let (stream, blas) = (device.cuda_stream(), device.cublas_handle());
    let (a_view, b_view) = (first.view::<T>()?, second.view::<T>()?);
    let ((a_memory, _a), (b_memory, _b), (to_memory, _to)) =
        (a_view.device_ptr(&stream), b_view.device_ptr(&stream), to.device_ptr_mut(&stream));
    let sizes = [columns, rows, inner, of_a.1, of_b.1, batch].map(i32::try_from);
    let [Ok(n), Ok(m), Ok(k), Ok(ld_a), Ok(ld_b), Ok(batch)] = sizes else {
        bail!("a product of {rows} by {inner} and {inner} by {columns}, {batch} times")
    };
    let way = |of: Matrix<'_>| match of.transposed {
        true => sys::cublasOperation_t::CUBLAS_OP_T,
        false => sys::cublasOperation_t::CUBLAS_OP_N,
    };
    // As candle's own products: of f32 in ten bits only where the program has said so.
    let compute = match T::DTYPE == DType::F32 && candle_core::cuda::gemm_reduced_precision_f32() {
        true => sys::cublasComputeType_t::CUBLAS_COMPUTE_32F_FAST_TF32,
        false => sys::cublasComputeType_t::CUBLAS_COMPUTE_32F,
    };
    let (scale, keep): (*const f32, *const f32) = (&scale, &keep);
    // SAFETY: all three are contiguous, on this GPU, and of these sizes. What is row by row here is column by column to cuBLAS, so that it computes the transpose, `b^T a^T`.
    unsafe {
        gemm_strided_batched_ex(
            *blas.handle(),
            way(b),
            way(a),
            n,
            m,
            k,
            scale.cast(),
            b_memory as *const _,
            kind(T::DTYPE),
            ld_b,
            (of_b.0 * of_b.1) as i64,
            a_memory as *const _,
            kind(T::DTYPE),
            ld_a,
            (of_a.0 * of_a.1) as i64,
            keep.cast(),
            to_memory as *mut _,
            kind(C::DTYPE),
            n,
            (rows * columns) as i64,
            batch,
            compute,
            sys::cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT,
        )
    }
    .w()
}
