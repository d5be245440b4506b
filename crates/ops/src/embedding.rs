use candle_core::{Result, Tensor};

/// Rows of `table` `(rows, d)` at `ids` (u32, any shape): `(.., d)`.
///
/// # Errors
///
/// When an id is out of range.
pub fn embedding(ids: &Tensor, table: &Tensor) -> Result<Tensor> {
    crate::plain::embedding(ids, table)
}
