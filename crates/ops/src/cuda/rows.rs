use candle_core::{Result, Tensor};

use super::{
    launch::{Fresh, Input, Number, by_type, launch, named, room, row_blocks, visit},
    record::{Backward, record},
};

/// Rows `picked` (u32, on the GPU) of `xs` `(count, width)`; NaN where it has none of that number. On no graph.
pub(crate) fn select(xs: &Tensor, picked: &Tensor) -> Result<Tensor> {
    by_type!(xs.dtype(), pick(&xs.contiguous()?, &picked.contiguous()?)).map(Fresh::tensor)
}

fn pick<T: Number>(xs: &Tensor, picked: &Tensor) -> Result<Fresh> {
    let ((count, width), rows) = (xs.dims2()?, picked.elem_count());
    let inputs = [Input::of(xs)?, Input::of(picked)?];
    let (device, values, picked) = (inputs[0].device()?, inputs[0].view::<T>()?, inputs[1].view::<u32>()?);
    let mut to = room::<T>(&device, rows * width)?;
    let (of_count, of_width) = (count as u64, width as u64);
    launch!(device, ROWS, named::<T>("pick"), row_blocks(rows, width)?, arguments =>
        arguments.arg(&values).arg(&picked).arg(&mut to).arg(&of_count).arg(&of_width));
    Ok(Fresh::new(to, &device, (rows, width)))
}

/// Rows `ids` of a table, all of which it has; `on_gpu` are the same ids.
pub(crate) fn embedding(table: &Tensor, ids: Vec<u32>, on_gpu: &Tensor) -> Result<Tensor> {
    if !table.track_op() {
        return select(table, on_gpu);
    }
    record(&[table], by_type!(table.dtype(), pick(table, on_gpu))?, LookedUp(ids))
}

struct LookedUp(Vec<u32>);

impl Backward for LookedUp {
    fn name(&self) -> &'static str {
        "embedding"
    }

    fn backward(&self, inputs: &[&Tensor], _: &Tensor, gradient: &Tensor) -> Result<Vec<Option<Tensor>>> {
        let to = Tensor::zeros(inputs[0].shape(), inputs[0].dtype(), inputs[0].device())?;
        let Places { rows, starts, order } = places(&self.0);
        let lists = [&rows, &starts, &order].map(|list| Tensor::new(list.as_slice(), gradient.device()));
        let [rows, starts, order] = lists;
        by_type!(gradient.dtype(), add_up(&to, gradient, [&rows?, &starts?, &order?]))?;
        Ok(vec![Some(to)])
    }
}

fn add_up<T: Number>(to: &Tensor, gradient: &Tensor, [rows, starts, order]: [&Tensor; 3]) -> Result<()> {
    let (count, width) = (rows.elem_count(), to.dim(1)?);
    let inputs = [Input::of(gradient)?, Input::of(rows)?, Input::of(starts)?, Input::of(order)?];
    let (device, g, of_width) = (inputs[0].device()?, inputs[0].view::<T>()?, width as u64);
    let (rows, starts, order) =
        (inputs[1].view::<u32>()?, inputs[2].view::<u32>()?, inputs[3].view::<u32>()?);
    visit(to, |storage| {
        let to = storage.as_cuda_slice_mut::<T>()?;
        launch!(device, ROWS, named::<T>("add_up"), row_blocks(count, width)?, arguments =>
            arguments.arg(&g).arg(&rows).arg(&starts).arg(&order).arg(&mut *to).arg(&of_width));
        Ok(())
    })
}

/// Where each id stands.
struct Places {
    /// Ids that stand anywhere, each once.
    rows: Vec<u32>,
    /// Where the places of each begin in `order`, and the end.
    starts: Vec<u32>,
    /// Places, by id.
    order: Vec<u32>,
}

fn places(ids: &[u32]) -> Places {
    let mut order: Vec<u32> = (0..ids.len() as u32).collect();
    // Stable, so that sums are always taken in the order of the places.
    order.sort_by_key(|&place| ids[place as usize]);
    let (mut rows, mut starts) = (Vec::new(), Vec::new());
    for (at, &place) in order.iter().enumerate() {
        let id = ids[place as usize];
        if rows.last() != Some(&id) {
            rows.push(id);
            starts.push(at as u32);
        }
    }
    starts.push(ids.len() as u32);
    Places { rows, starts, order }
}
