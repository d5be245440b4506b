use candle_core::{CpuStorage, CustomOp2, DType, Layout, Result, Shape, Tensor, bail};

use crate::{
    backward::hand_over,
    half::in_f32,
    host::{has_kernel, slice, with_slices},
    simd,
};

/// Rows of `table` `(rows, d)` at `ids` (u32, any shape): `(.., d)`.
///
/// # Errors
///
/// When an id is out of range; the error names its position. Ids on a GPU are read back for that.
pub fn embedding(ids: &Tensor, table: &Tensor) -> Result<Tensor> {
    let (rows, _) = table.dims2()?;
    let ids = ids.to_dtype(DType::U32)?.contiguous()?;
    let values = ids.flatten_all()?.to_vec1::<u32>()?;
    if let Some(at) = values.iter().position(|&id| id as usize >= rows) {
        bail!("embedding: id {} at position {at} is out of range, the table has {rows} rows", values[at])
    }
    if has_kernel(table) && !values.is_empty() {
        return table.contiguous()?.apply_op2(&ids, Embedding { ids: values });
    }
    #[cfg(feature = "cuda")]
    if crate::host::has_gpu_kernel([table]) && !values.is_empty() {
        let dims: Vec<usize> = ids.dims().iter().copied().chain([table.dim(1)?]).collect();
        return crate::cuda::embedding(&table.contiguous()?, values, &ids)?.reshape(dims);
    }
    let look_up = |[table]: [&Tensor; 1]| crate::plain::embedding(&ids, table);
    // Rows are copied, but the gradients of a row that stands at many places are added up.
    if table.track_op() { in_f32([table], look_up) } else { look_up([table]) }
}

/// Samples `rows` (u32) of `xs` `(n, ..)`, in that order and on no graph: those that go on when others have left.
///
/// On a GPU nothing is read back, and a sample of floats that is not there is NaN.
///
/// # Errors
///
/// When a row is out of range, on the CPU.
pub fn select_rows(xs: &Tensor, rows: &Tensor) -> Result<Tensor> {
    let samples = xs.dim(0)?;
    let table = xs.detach().contiguous()?.reshape((samples, xs.elem_count() / samples.max(1)))?;
    let mut dims = xs.dims().to_vec();
    dims[0] = rows.elem_count();
    #[cfg(feature = "cuda")]
    if crate::host::has_gpu_kernel([&table]) && rows.elem_count() > 0 {
        return crate::cuda::select(&table, rows)?.reshape(dims);
    }
    if !xs.device().is_cpu() {
        return table.index_select(rows, 0)?.reshape(dims);
    }
    // Looked up in a table of one line a sample: our kernel does not zero what it is about to write.
    embedding(rows, &table)?.reshape(dims)
}

struct Embedding {
    ids: Vec<u32>,
}

impl CustomOp2 for Embedding {
    fn name(&self) -> &'static str {
        "embedding"
    }

    fn cpu_fwd(
        &self,
        table: &CpuStorage,
        table_layout: &Layout,
        _ids: &CpuStorage,
        ids_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let table = slice(table, table_layout)?;
        let d = table_layout.dims()[1];
        let mut y = Vec::with_capacity(self.ids.len() * d);
        for &id in &self.ids {
            y.extend_from_slice(&table[id as usize * d..][..d]);
        }
        let dims: Vec<usize> = ids_layout.dims().iter().copied().chain([d]).collect();
        Ok((CpuStorage::F32(y), dims.into()))
    }

    fn bwd(
        &self,
        table: &Tensor,
        _ids: &Tensor,
        result: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let d = table.dim(1)?;
        let gradient = gradient.contiguous()?;
        let mut sums = vec![0.; table.elem_count()];
        with_slices([&gradient], |[g]| {
            // In the order of the ids: the sums do not depend on threads.
            for (&id, g) in self.ids.iter().zip(g.chunks_exact(d)) {
                simd::add(&mut sums[id as usize * d..][..d], g);
            }
            Ok(())
        })?;
        Ok((hand_over(table, result, Tensor::from_vec(sums, table.shape(), table.device())?)?, None))
    }
}
