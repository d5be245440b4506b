use candle_core::{Device, Result};

/// Lets a GPU keep the memory that tensors have left for the tensors that follow: once for a device, by a program that has it for itself.
///
/// Without this the driver takes that memory back each time the processor waits for the GPU, twice in a training step, and has to give it again. Nothing happens on other
/// devices.
///
/// # Errors
///
/// When the driver refuses.
pub fn keep_memory(device: &Device) -> Result<()> {
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(gpu) => crate::cuda::keep_memory(gpu),
        _ => Ok(()),
    }
}
