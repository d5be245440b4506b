use candle_core::{
    CudaDevice, Result,
    cuda_backend::{
        WrapErr,
        cudarc::driver::{
            result::{device, mem_pool},
            sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD,
        },
    },
};

/// Memory that tensors have left stays the program's, whatever is waited for.
pub(crate) fn keep_memory(gpu: &CudaDevice) -> Result<()> {
    let stream = gpu.cuda_stream();
    let context = stream.context();
    if !context.has_async_alloc() {
        return Ok(());
    }
    let mut most = u64::MAX;
    // SAFETY: the pool is the driver's own, of a GPU whose context lives; the attribute is a `cuuint64_t`.
    unsafe {
        let pool = device::get_mem_pool(context.cu_device()).w()?;
        mem_pool::set_attribute(pool, CU_MEMPOOL_ATTR_RELEASE_THRESHOLD, (&raw mut most).cast()).w()
    }
}
