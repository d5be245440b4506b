use candle_core::{Result, Tensor, bail};

use super::{
    activation::add_bias,
    blas::{plain, product, transposed},
    columns::column_sums,
    launch::Fresh,
    record::{Backward, record},
};
use crate::host::share_memory;

/// `x W^T + b`: products by cuBLAS; the bias's gradient is a sum in f32. One node of candle's graph: for each, candle adds a gradient of its size to zeros.
pub(crate) fn linear(xs: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let (outputs, inputs) = weight.dims2()?;
    let mut dims = xs.dims().to_vec();
    if let Some(last) = dims.last_mut() {
        *last = outputs;
    }
    let (xs, weight) = (xs.contiguous()?, weight.contiguous()?);
    let ys = product(plain(&rows(&xs, inputs)?), transposed(&weight), 1.)?;
    let Some(bias) = bias else {
        return record(&[&xs, &weight], Fresh { shape: dims.into(), ..ys }, Map);
    };
    // Two views of one memory would be locked twice.
    let shared = share_memory(&[&xs, &weight, bias]);
    let bias = if shared { bias.copy()? } else { bias.contiguous()? };
    let ys = add_bias(&ys.tensor(), &bias)?;
    record(&[&xs, &weight, &bias], Fresh { shape: dims.into(), ..ys }, Map)
}

/// `(rows, width)`, on no graph.
fn rows(xs: &Tensor, width: usize) -> Result<Tensor> {
    xs.detach().reshape(((), width))
}

struct Map;

impl Backward for Map {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn backward(&self, inputs: &[&Tensor], _: &Tensor, gradient: &Tensor) -> Result<Vec<Option<Tensor>>> {
        let &[xs, weight, ref bias @ ..] = inputs else { bail!("linear: {} inputs", inputs.len()) };
        let (outputs, width) = weight.dims2()?;
        let (x, g) = (rows(xs, width)?, rows(gradient, outputs)?);
        let dx = || product(plain(&g), plain(weight), 1.)?.tensor().reshape(xs.shape());
        let dw = || product(transposed(&g), plain(&x), 1.).map(Fresh::tensor);
        let db = || column_sums(&g, outputs)?.to_dtype(g.dtype());
        let mut all = vec![xs.track_op().then(dx).transpose()?, weight.track_op().then(dw).transpose()?];
        for bias in bias {
            all.push(bias.track_op().then(db).transpose()?);
        }
        Ok(all)
    }
}
