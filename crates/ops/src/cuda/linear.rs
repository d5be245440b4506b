use candle_core::{DType, Result, Tensor, bail};

use super::{
    activation::add,
    blas::{plain, product, transposed},
    launch::Fresh,
    record::{Backward, record},
};

/// `x W^T + b`: products by cuBLAS; the bias's gradient is a sum in f32.
pub(crate) fn linear(xs: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let (outputs, inputs) = weight.dims2()?;
    let mut dims = xs.dims().to_vec();
    if let Some(last) = dims.last_mut() {
        *last = outputs;
    }
    let (xs, weight) = (xs.contiguous()?.reshape(((), inputs))?, weight.contiguous()?);
    let ys = record(&[&xs, &weight], product(plain(&xs), transposed(&weight), 1.)?, Map)?;
    match bias {
        Some(bias) => add(&ys, bias)?.reshape(dims),
        None => ys.reshape(dims),
    }
}

struct Map;

impl Backward for Map {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn backward(&self, inputs: &[&Tensor], _: &Tensor, gradient: &Tensor) -> Result<Vec<Option<Tensor>>> {
        let &[xs, weight] = inputs else { bail!("linear: {} inputs", inputs.len()) };
        let dx = xs.track_op().then(|| product(plain(gradient), plain(weight), 1.)).transpose()?;
        let dw = weight.track_op().then(|| product(transposed(gradient), plain(xs), 1.)).transpose()?;
        Ok(vec![dx.map(Fresh::tensor), dw.map(Fresh::tensor)])
    }
}

/// Sums over rows: `(rows, width)` to `(width)`, in f32.
pub(super) fn column_sums(xs: &Tensor, width: usize) -> Result<Tensor> {
    xs.reshape(((), width))?.to_dtype(DType::F32)?.sum(0)
}
