use candle_core::{Result, Tensor};

use super::launch::{Fresh, Input, Number, by_type, grid, launch, named, room};

/// Parts that rows are cut into for sums over them: always as many, whatever the GPU.
const PARTS: usize = 128;

/// As many parts as rows are worth.
pub(super) fn parts(rows: usize) -> usize {
    PARTS.min(rows.div_ceil(8)).max(1)
}

/// Sums over rows: contiguous `(.., width)` to `(width)`, in f32.
pub(super) fn column_sums(xs: &Tensor, width: usize) -> Result<Tensor> {
    by_type!(xs.dtype(), sums(xs, width))
}

fn sums<T: Number>(xs: &Tensor, width: usize) -> Result<Tensor> {
    let (input, rows) = (Input::of(xs)?, xs.elem_count() / width);
    let (device, values, parts) = (input.device()?, input.view::<T>()?, parts(rows));
    let (of_rows, of_width) = (rows as u64, width as i32);
    let mut sums = room::<f32>(&device, parts * width)?;
    let columns = grid((width.div_ceil(32), parts), (32, 8))?;
    launch!(device, COLUMNS, named::<T>("column_sums"), columns, arguments =>
        arguments.arg(&values).arg(&mut sums).arg(&of_rows).arg(&of_width));
    let sums = Fresh::new(sums, &device, (parts, width)).tensor();
    if parts == 1 { sums.squeeze(0) } else { sums.sum(0) }
}
