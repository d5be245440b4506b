//! candle tensors as representations.

use std::ops::Range;

use candle_core::{DType, Tensor};
use ndarray::Array2;

use crate::{Error, Representation, Result};

/// Rows are read back to the host and widened there: a device need not know f64.
impl Representation for Tensor {
    fn dims(&self) -> Result<(usize, usize)> {
        match *self.dims() {
            [n, width] if self.dtype().is_float() => Ok((n, width)),
            _ => Err(Error::Tensor { shape: self.dims().to_vec(), dtype: self.dtype().as_str().into() }),
        }
    }

    fn read(&self, rows: Range<usize>) -> Result<Array2<f64>> {
        let (_, width) = Representation::dims(self)?;
        let read = || {
            let rows = self.narrow(0, rows.start, rows.len())?;
            let rows = match self.device().is_cpu() {
                true => rows.flatten_all()?,
                // Of a view, candle reads all back that it is a view of.
                false => there(&rows)?.force_contiguous()?.flatten_all()?,
            };
            match rows.dtype() {
                DType::F64 => rows.to_vec1(),
                _ => {
                    let values = rows.to_dtype(DType::F32)?.to_vec1::<f32>()?;
                    Ok(values.into_iter().map(f64::from).collect())
                }
            }
        };
        let values = read().map_err(|e| Error::Candle(e.to_string()))?;
        Array2::from_shape_vec((rows.len(), width), values).map_err(|e| Error::Candle(e.to_string()))
    }

    fn tensor(&self) -> Option<&Tensor> {
        Some(self)
    }
}

/// The same, when it is there: on a GPU every thread has a stream of its own, and rows are read on several threads.
fn there(xs: &Tensor) -> candle_core::Result<&Tensor> {
    #[cfg(feature = "cuda")]
    if let candle_core::Device::Cuda(device) = xs.device() {
        device.cuda_stream().context().synchronize().map_err(candle_core::Error::wrap)?;
    }
    Ok(xs)
}
