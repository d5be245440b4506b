use candle_core::{Result, Tensor, bail, cuda_backend::cudarc::driver::LaunchConfig};

use super::{
    columns::parts,
    launch::{Fresh, Input, Number, by_type, grid, launch, named, room},
    record::{Backward, record},
};
use crate::host::share_memory;

/// Four rows a block, each of a warp.
fn warps(rows: usize) -> Result<LaunchConfig> {
    grid((rows.div_ceil(4), 1), (128, 1))
}

pub(crate) fn layer_norm(xs: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    // Two views of one memory would be locked twice.
    let bias = if share_memory(&[weight, bias]) { bias.copy()? } else { bias.contiguous()? };
    let inputs = [&xs.contiguous()?, &weight.contiguous()?, &bias];
    let eps = eps as f32;
    record(&inputs, by_type!(xs.dtype(), forward(inputs, eps))?, LayerNorm { eps })
}

fn forward<T: Number>(inputs: [&Tensor; 3], eps: f32) -> Result<Fresh> {
    let [xs, weight, _] = inputs;
    let (width, count) = (weight.elem_count(), xs.elem_count());
    let rows = count / width;
    let (of_rows, of_width) = (rows as u64, width as i32);
    let [x, w, b] = [Input::of(inputs[0])?, Input::of(inputs[1])?, Input::of(inputs[2])?];
    let device = x.device()?;
    let [x, w, b] = [x.view::<T>()?, w.view::<T>()?, b.view::<T>()?];
    let mut y = room::<T>(&device, count)?;
    launch!(device, LAYER_NORM, named::<T>("layer_norm"), warps(rows)?, arguments => {
        arguments.arg(&x).arg(&w).arg(&b).arg(&mut y);
        arguments.arg(&of_rows).arg(&of_width).arg(&eps)
    });
    Ok(Fresh::new(y, &device, xs.shape()))
}

struct LayerNorm {
    eps: f32,
}

impl Backward for LayerNorm {
    fn name(&self) -> &'static str {
        "layer-norm"
    }

    fn backward(&self, inputs: &[&Tensor], _: &Tensor, gradient: &Tensor) -> Result<Vec<Option<Tensor>>> {
        let &[xs, weight, _] = inputs else { bail!("layer-norm: {} inputs", inputs.len()) };
        by_type!(xs.dtype(), backward([xs, weight, gradient], self.eps))
    }
}

fn backward<T: Number>(inputs: [&Tensor; 3], eps: f32) -> Result<Vec<Option<Tensor>>> {
    let [xs, weight, _] = inputs;
    let (width, count) = (weight.elem_count(), xs.elem_count());
    let rows = count / width;
    let (of_rows, of_width) = (rows as u64, width as i32);
    let [x, w, g] = [Input::of(inputs[0])?, Input::of(inputs[1])?, Input::of(inputs[2])?];
    let device = x.device()?;
    let [x, w, g] = [x.view::<T>()?, w.view::<T>()?, g.view::<T>()?];
    let (mut dx, mut stats) = (room::<T>(&device, count)?, room::<f32>(&device, 2 * rows)?);
    launch!(device, LAYER_NORM, named::<T>("layer_norm_dx"), warps(rows)?, arguments => {
        arguments.arg(&x).arg(&w).arg(&g).arg(&mut dx).arg(&mut stats);
        arguments.arg(&of_rows).arg(&of_width).arg(&eps)
    });
    let parts = parts(rows);
    let columns = grid((width.div_ceil(32), parts), (32, 8))?;
    let mut sums = room::<f32>(&device, parts * 2 * width)?;
    launch!(device, LAYER_NORM, named::<T>("layer_norm_sums"), columns, arguments => {
        arguments.arg(&x).arg(&g).arg(&stats).arg(&mut sums);
        arguments.arg(&of_rows).arg(&of_width)
    });
    let sums = Fresh::new(sums, &device, (parts, 2, width)).tensor().sum(0)?.to_dtype(T::DTYPE)?;
    let dx = Fresh::new(dx, &device, xs.shape()).tensor();
    Ok(vec![Some(dx), Some(sums.get(0)?), Some(sums.get(1)?)])
}
