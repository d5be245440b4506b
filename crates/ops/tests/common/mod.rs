//! What the tests of several files need.

use candle_core::{DType, Result, Tensor, Var};
use layerwise_testkit::{assert_close, random};

/// What one operation in f32 may be off by.
pub(crate) const ONE_OPERATION: f64 = 5e-6;

/// The fast path in f32 and the plain one in f64, forward and backward of a random contraction.
pub(crate) fn agree(
    inputs: &[Tensor],
    tolerance: f64,
    fast: impl Fn(&[Tensor]) -> Result<Tensor>,
    plain: impl Fn(&[Tensor]) -> Result<Tensor>,
) -> Result<()> {
    let run = |dtype: DType, f: &dyn Fn(&[Tensor]) -> Result<Tensor>| -> Result<Vec<Tensor>> {
        let vars: Vec<Var> =
            inputs.iter().map(|x| Var::from_tensor(&x.to_dtype(dtype)?)).collect::<Result<_>>()?;
        let ys = f(&vars.iter().map(|v| v.as_tensor().clone()).collect::<Vec<_>>())?;
        let probe = random(99, ys.dims()).to_dtype(dtype)?;
        let grads = (&ys * probe)?.sum_all()?.backward()?;
        let mut out = vec![ys];
        for var in &vars {
            out.push(grads.get(var).expect("a gradient").clone());
        }
        Ok(out)
    };
    for (got, want) in run(DType::F32, &fast)?.iter().zip(&run(DType::F64, &plain)?) {
        assert_close(got, want, tolerance)?;
    }
    Ok(())
}
