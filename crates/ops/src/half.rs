//! 16-bit floats are for keeping numbers, not for adding them up.

use candle_core::{DType, Result, Tensor};

/// Calls `f` with 16-bit floats widened to f32, and narrows what it gives; other types pass as they are.
///
/// candle's sums on the CPU run in the type of the tensor: in bf16 they stop growing at 256 ones. PyTorch computes these
/// operations in f32, too. Gradients go the same way back and arrive in the type of the inputs.
pub(crate) fn in_f32<const N: usize>(
    inputs: [&Tensor; N],
    f: impl FnOnce([&Tensor; N]) -> Result<Tensor>,
) -> Result<Tensor> {
    for dtype in [DType::BF16, DType::F16] {
        if inputs.iter().all(|xs| xs.dtype() == dtype) {
            let wide = inputs.iter().map(|xs| xs.to_dtype(DType::F32)).collect::<Result<Vec<_>>>()?;
            return f(std::array::from_fn(|i| &wide[i]))?.to_dtype(dtype);
        }
    }
    f(inputs)
}

pub(crate) fn is_half(xs: &Tensor) -> bool {
    [DType::BF16, DType::F16].contains(&xs.dtype())
}
