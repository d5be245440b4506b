use candle_core::{DType, Result, Tensor};

/// Numbers of a tensor on their way to the processor; see [`read_back`].
#[must_use = "to be waited for"]
pub struct ReadBack(Way);

enum Way {
    There(Vec<f32>),
    #[cfg(feature = "cuda")]
    From(crate::cuda::OnTheWay),
}

impl std::fmt::Debug for ReadBack {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ReadBack")
    }
}

/// Sends the numbers of a tensor, as f32 and in their order, to the processor. A GPU goes on meanwhile with what it is given after this, where candle's own
/// `to_vec1` would wait for all that it was given before.
///
/// # Errors
///
/// When candle fails.
///
/// # Example
///
/// ```
/// use candle_core::{Device::Cpu, Tensor};
///
/// let sure = Tensor::new(&[0.9f32, 0.4], &Cpu)?;
/// let on_the_way = layerwise_ops::read_back(&sure)?;
/// // .. the next block ..
/// assert_eq!(on_the_way.wait()?, [0.9, 0.4]);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn read_back(xs: &Tensor) -> Result<ReadBack> {
    let xs = xs.detach().to_dtype(DType::F32)?.contiguous()?;
    #[cfg(feature = "cuda")]
    if crate::host::has_gpu_kernel([&xs]) {
        return Ok(ReadBack(Way::From(crate::cuda::read_back(&xs)?)));
    }
    Ok(ReadBack(Way::There(xs.flatten_all()?.to_vec1()?)))
}

impl ReadBack {
    /// Waits until they are there.
    ///
    /// # Errors
    ///
    /// When the GPU has failed.
    pub fn wait(self) -> Result<Vec<f32>> {
        match self.0 {
            Way::There(numbers) => Ok(numbers),
            #[cfg(feature = "cuda")]
            Way::From(on_the_way) => on_the_way.wait(),
        }
    }
}
