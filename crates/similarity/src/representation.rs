use std::ops::Range;

use ndarray::{Array2, ArrayBase, Data, Ix2, s};

use crate::{Error, Result};

/// What a network makes of samples: one row a sample, one column a feature.
///
/// Matrices of `ndarray` (`f32` or `f64`, owned or views) are representations, and with the feature `candle` tensors of shape
/// `(n, d)`, of any float type and on any device; so are references to them. Implement it for what does not fit in memory: the
/// measures read rows in pieces, some of them more than once.
///
/// # Example
///
/// ```
/// use std::ops::Range;
/// use layerwise_similarity::{Centring, Representation, Result, cos};
/// use ndarray::{Array2, array};
///
/// /// Stored in 8 bits.
/// struct Quantised(Array2<i8>);
///
/// impl Representation for Quantised {
///     fn dims(&self) -> Result<(usize, usize)> {
///         Ok(self.0.dim())
///     }
///     fn read(&self, rows: Range<usize>) -> Result<Array2<f64>> {
///         Ok(self.0.slice(ndarray::s![rows, ..]).mapv(f64::from))
///     }
/// }
///
/// let x = array![[3., 4.], [1., 0.]];
/// assert_eq!(cos(&Quantised(array![[6, 8], [2, 0]]), &x, Centring::None)?, 1.);
/// # Ok::<(), layerwise_similarity::Error>(())
/// ```
pub trait Representation: Sync {
    /// `(samples, width)`.
    ///
    /// # Errors
    ///
    /// When it is no matrix.
    fn dims(&self) -> Result<(usize, usize)>;

    /// Samples `rows`, `(rows, width)`, widened to f64.
    ///
    /// # Errors
    ///
    /// When they cannot be read.
    fn read(&self, rows: Range<usize>) -> Result<Array2<f64>>;

    /// The tensor that it is, if it is one, so that accumulators can work where that lies.
    #[cfg(feature = "candle")]
    #[doc(hidden)]
    fn tensor(&self) -> Option<&candle_core::Tensor> {
        None
    }
}

/// A number type that matrices come in.
pub trait Real: Copy + Into<f64> + Send + Sync {}
impl Real for f32 {}
impl Real for f64 {}

impl<S: Data<Elem: Real> + Sync> Representation for ArrayBase<S, Ix2> {
    fn dims(&self) -> Result<(usize, usize)> {
        Ok(self.dim())
    }

    fn read(&self, rows: Range<usize>) -> Result<Array2<f64>> {
        Ok(self.slice(s![rows, ..]).mapv(Into::into))
    }
}

impl<R: Representation + ?Sized> Representation for &R {
    fn dims(&self) -> Result<(usize, usize)> {
        (**self).dims()
    }

    fn read(&self, rows: Range<usize>) -> Result<Array2<f64>> {
        (**self).read(rows)
    }

    #[cfg(feature = "candle")]
    fn tensor(&self) -> Option<&candle_core::Tensor> {
        (**self).tensor()
    }
}

/// The shape of a representation with at least one sample and one feature.
pub(crate) fn shape(xs: &dyn Representation) -> Result<(usize, usize)> {
    match xs.dims()? {
        (0, _) => Err(Error::Samples { samples: 0, needed: 1 }),
        (_, 0) => Err(Error::Width),
        shape => Ok(shape),
    }
}

/// Rows with finite numbers only; errors count rows from the first of the representation.
pub(crate) fn finite_rows(xs: &dyn Representation, rows: Range<usize>) -> Result<Array2<f64>> {
    let first = rows.start;
    let xs = xs.read(rows)?;
    if xs.iter().all(|x| x.is_finite()) {
        return Ok(xs);
    }
    match xs.indexed_iter().find(|(_, x): &(_, &f64)| !x.is_finite()) {
        Some(((row, column), _)) => Err(Error::NotFinite { row: first + row, column }),
        None => Ok(xs),
    }
}

/// Ranges of at most `size` rows that cover `n`.
pub(crate) fn chunks(n: usize, size: usize) -> impl Iterator<Item = Range<usize>> {
    (0..n).step_by(size).map(move |start| start..n.min(start + size))
}

pub(crate) fn same_rows(left: usize, right: usize) -> Result<()> {
    if left == right { Ok(()) } else { Err(Error::Rows { left, right }) }
}
