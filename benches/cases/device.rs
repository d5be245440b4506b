//! Where benches compute, and in which numbers.

use std::sync::OnceLock;

use anyhow::Result;
use candle_core::{DType, Device};
use clap::ValueEnum;
use layerwise_example_common::flags::DeviceFlag;
use serde::Serialize;

/// The device that `LAYERWISE_DEVICE` names; opened once, as tensors of two openings do not meet.
pub(crate) fn device() -> Result<&'static Device> {
    static DEVICE: OnceLock<Device> = OnceLock::new();
    if let Some(device) = DEVICE.get() {
        return Ok(device);
    }
    let device = DeviceFlag::from_env()?.open("LAYERWISE_DEVICE")?;
    Ok(DEVICE.get_or_init(|| device))
}

/// What `f` gives, when it is there: a GPU's answers are not as soon as it has been told to work.
pub(crate) fn finished<T>(f: impl FnOnce() -> Result<T>) -> Result<T> {
    let value = f()?;
    device()?.synchronize()?;
    Ok(value)
}

/// What is multiplied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Numbers {
    #[default]
    F32,
    /// f32, of which a GPU multiplies ten bits.
    Tf32,
    Bf16,
}

impl Numbers {
    /// Those of what runs here.
    pub(crate) fn here() -> Result<&'static [Self]> {
        Ok(if device()?.is_cuda() { &[Self::F32, Self::Tf32, Self::Bf16] } else { &[Self::F32] })
    }

    pub(crate) fn dtype(self) -> DType {
        if self == Self::Bf16 { DType::BF16 } else { DType::F32 }
    }

    /// Products from now on are of these: what candle asks cuBLAS for.
    pub(crate) fn choose(self) {
        candle_core::cuda::set_gemm_reduced_precision_f32(self == Self::Tf32);
    }

    /// What the name of a case says of them.
    pub(crate) fn in_name(self) -> &'static str {
        match self {
            Self::F32 => "",
            Self::Tf32 => "-tf32",
            Self::Bf16 => "-bf16",
        }
    }
}

/// The most memory that there was in use at once, from Linux and from the device.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Peak {
    /// Of this process.
    pub(crate) rss_mib: f64,
    /// Of candle's tensors on the GPU.
    pub(crate) device_mib: Option<f64>,
}

impl Peak {
    pub(crate) fn now() -> Result<Self> {
        Ok(Self { rss_mib: super::peak_rss_mib()?, device_mib: device_mib(device()?)? })
    }
}

#[cfg(not(feature = "cuda"))]
fn device_mib(_: &Device) -> Result<Option<f64>> {
    Ok(None)
}

/// None on the CPU, and where a GPU has no pools.
#[cfg(feature = "cuda")]
#[allow(unsafe_code, reason = "the crate has no other interface")]
fn device_mib(device: &Device) -> Result<Option<f64>> {
    use candle_core::cuda_backend::cudarc::driver::{result, sys::CUmemPool_attribute};

    let Device::Cuda(device) = device else { return Ok(None) };
    let stream = device.cuda_stream();
    if !stream.context().has_async_alloc() {
        return Ok(None);
    }
    let mut bytes = 0u64;
    // SAFETY: the context of this GPU lives, its pool is the driver's own, and the attribute is a `cuuint64_t`.
    unsafe {
        let pool = result::device::get_mem_pool(stream.context().cu_device())?;
        let most = CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_HIGH;
        result::mem_pool::get_attribute(pool, most, (&raw mut bytes).cast())?;
    }
    Ok(Some(bytes as f64 / f64::from(1 << 20)))
}
