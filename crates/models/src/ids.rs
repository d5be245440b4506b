//! Ids that models of text are fed.

use candle_core::{DType, Tensor};

use crate::{Batch, Error, Result};

/// Numbers of rows and tokens of a batch of ids `(rows, 1 to longest tokens)`, u32, all below `vocabulary`, whose mask fits them.
pub(crate) fn checked(batch: &Batch, longest: usize, vocabulary: usize) -> Result<(usize, usize)> {
    let ids = &batch.inputs;
    let (rows, tokens) = match *ids.dims() {
        [rows, tokens] if ids.dtype() == DType::U32 && (1..=longest).contains(&tokens) => (rows, tokens),
        _ => return Err(unexpected(ids, format!("U32 (rows, 1 to {longest} tokens)"))),
    };
    within("inputs", ids, vocabulary)?;
    batch.mask.as_ref().map(|mask| fits(mask, DType::U8, (rows, tokens))).transpose()?;
    Ok((rows, tokens))
}

pub(crate) fn fits(xs: &Tensor, dtype: DType, (rows, tokens): (usize, usize)) -> Result<()> {
    match xs.dims() == [rows, tokens] && xs.dtype() == dtype {
        true => Ok(()),
        false => Err(unexpected(xs, format!("{dtype:?} ({rows}, {tokens})"))),
    }
}

fn unexpected(found: &Tensor, expected: String) -> Error {
    Error::Inputs { found: format!("{:?} {:?}", found.dtype(), found.dims()), expected }
}

/// Whether every id is below `limit`; one from another tokenizer may not be.
pub(crate) fn within(field: &'static str, ids: &Tensor, limit: usize) -> Result<()> {
    let largest = ids.flatten_all()?.max(0)?.to_scalar::<u32>()? as usize;
    if largest < limit { Ok(()) } else { Err(Error::Id { field, id: largest, limit }) }
}
