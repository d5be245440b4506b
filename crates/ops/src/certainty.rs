use candle_core::{D, DType, Result, Tensor};

/// How sure rows of logits `(rows, classes)` are: `(rows, 4)` in f32, the answer (of equal logits the first), its probability, that less the second largest, and the
/// entropy of the probabilities in nats. The last three are NaN where a logit is not finite.
///
/// On a GPU it is one kernel; nothing is read back, and there is no graph.
///
/// # Errors
///
/// When the logits are no matrix, or without classes.
///
/// # Example
///
/// ```
/// use candle_core::{Device::Cpu, Tensor};
///
/// let sure = layerwise_ops::certainty(&Tensor::new(&[[0f32, 0., f32::MIN]], &Cpu)?)?.to_vec2::<f32>()?;
/// assert_eq!(sure, [[0., 0.5, 0., 2f32.ln()]]);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn certainty(logits: &Tensor) -> Result<Tensor> {
    let logits = logits.detach();
    #[cfg(feature = "cuda")]
    if logits.rank() == 2 && crate::host::has_gpu_kernel([&logits]) {
        return crate::cuda::certainty(&logits);
    }
    plain(&logits.to_dtype(DType::F32)?)
}

fn plain(logits: &Tensor) -> Result<Tensor> {
    let (_, classes) = logits.dims2()?;
    let answer = logits.argmax_keepdim(D::Minus1)?;
    let shifted = logits.broadcast_sub(&logits.max_keepdim(D::Minus1)?)?;
    let e = shifted.exp()?;
    let sum = e.sum_keepdim(D::Minus1)?;
    let p = e.broadcast_div(&sum)?;
    let largest = p.max_keepdim(D::Minus1)?;
    // Without the first of the largest: another one as large is the second.
    let numbers = Tensor::arange(0, classes as u32, logits.device())?;
    let others = (&p * answer.broadcast_ne(&numbers)?.to_dtype(DType::F32)?)?;
    let margin = (&largest - others.max_keepdim(D::Minus1)?)?;
    // Below -1e4 a probability is 0, and so is its share; -inf times 0 would not be.
    let along = (e * shifted.maximum(-1e4)?)?.sum_keepdim(D::Minus1)?;
    let entropy = (sum.log()? - (along / sum)?)?;
    // 0 times what is not finite is NaN.
    let nothing = (logits * 0.)?.sum_keepdim(D::Minus1)?;
    let sure = Tensor::cat(&[largest, margin, entropy], 1)?.broadcast_add(&nothing)?;
    Tensor::cat(&[answer.to_dtype(DType::F32)?, sure], 1)
}
