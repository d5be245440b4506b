use candle_core::{DType, Result, Tensor, Var, bail};
use layerwise_ops::init;

/// Compares autograd with central differences, in f64: for each input, the derivative along two random directions.
///
/// `f` maps the inputs to a tensor of any shape; it is contracted with fixed random values to a scalar first.
/// `tolerance` is relative to `max(1, |derivative|)`.
///
/// # Errors
///
/// When a gradient is missing or a derivative differs.
pub fn check_gradients(
    inputs: &[Tensor],
    tolerance: f64,
    f: impl Fn(&[Tensor]) -> Result<Tensor>,
) -> Result<()> {
    let mut rng = init::rng(7);
    let inputs: Vec<Tensor> = inputs.iter().map(|x| x.to_dtype(DType::F64)).collect::<Result<_>>()?;
    let vars: Vec<Var> = inputs.iter().map(Var::from_tensor).collect::<Result<_>>()?;
    let tracked: Vec<Tensor> = vars.iter().map(|v| v.as_tensor().clone()).collect();
    let ys = f(&tracked)?;
    let probe = init::normal(&mut rng, ys.shape(), 1., ys.device())?.to_dtype(DType::F64)?;
    let scalar = |ys: Tensor| (ys.to_dtype(DType::F64)? * &probe)?.sum_all();
    let grads = scalar(ys)?.backward()?;
    for (i, var) in vars.iter().enumerate() {
        let Some(grad) = grads.get(var) else { bail!("input {i} got no gradient") };
        for _ in 0..2 {
            let direction = init::normal(&mut rng, var.shape(), 1., var.device())?.to_dtype(DType::F64)?;
            let autograd = (grad * &direction)?.sum_all()?.to_scalar::<f64>()?;
            let step = 1e-5;
            let at = |sign: f64| -> Result<f64> {
                let mut moved = inputs.clone();
                moved[i] = (&inputs[i] + (&direction * (sign * step))?)?;
                scalar(f(&moved)?)?.to_scalar::<f64>()
            };
            let numeric = (at(1.)? - at(-1.)?) / (2. * step);
            if (autograd - numeric).abs() > tolerance * numeric.abs().max(1.) {
                bail!("input {i}: autograd {autograd}, finite differences {numeric}")
            }
        }
    }
    Ok(())
}
