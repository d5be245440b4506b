use candle_core::{DType, Result, Tensor, bail};

/// Largest absolute difference of two tensors of one shape, in f64; NaN anywhere gives NaN.
///
/// # Errors
///
/// When shapes differ.
pub fn max_abs_diff(got: &Tensor, want: &Tensor) -> Result<f64> {
    if got.dims() != want.dims() {
        bail!("shapes differ: got {:?}, want {:?}", got.dims(), want.dims())
    }
    let got = got.to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>()?;
    let want = want.to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>()?;
    Ok(got.iter().zip(&want).fold(0., |worst: f64, (a, b)| {
        let d = (a - b).abs();
        if d.is_nan() || worst.is_nan() { f64::NAN } else { worst.max(d) }
    }))
}

/// Fails unless `|got - want| <= tolerance * max(1, max|want|)` everywhere.
///
/// # Errors
///
/// When they differ by more, in shape, or by a NaN.
pub fn assert_close(got: &Tensor, want: &Tensor, tolerance: f64) -> Result<()> {
    let diff = max_abs_diff(got, want)?;
    let scale = max_abs_diff(want, &want.zeros_like()?)?.max(1.);
    if diff <= tolerance * scale {
        return Ok(());
    }
    bail!(
        "tensors of shape {:?} differ by {diff:e} at a scale of {scale:e}, allowed {tolerance:e}",
        got.dims()
    )
}
