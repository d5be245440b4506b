use ndarray::{Array1, Array2, Axis, s};

use crate::{
    Centring, Error, Representation, Result,
    frame::Frame,
    linalg::{eigen, product},
    representation::{finite_rows, shape},
};

/// Principal components of a cloud of points, say of the class means of all layers: the plane in which to draw them.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Pca {
    /// Mean of the points, `(d)`.
    pub mean: Array1<f64>,
    /// Orthonormal directions, `(k, d)`, in the order of their variance; the entry of each with the largest absolute value is
    /// positive.
    pub components: Array2<f64>,
    /// Share of the variance along each component, `(k)`.
    pub variances: Array1<f64>,
}

/// The first `components` principal components of points `(n, d)`.
///
/// A rotation turns the components and a shift moves the mean; both leave the shares of the variance and, up to signs, the
/// coordinates of the points unchanged, a scaling scales them.
///
/// # Errors
///
/// [`Error::Setting`] for 0 components or more than there are directions with variance, [`Error::Samples`] below 2 points,
/// [`Error::NotFinite`] for a NaN, [`Error::Degenerate`] when all points coincide.
///
/// # Example
///
/// ```
/// use layerwise_similarity::pca;
/// use ndarray::array;
///
/// let points = array![[0., 0., 1.], [2., 2., 1.], [4., 4., 1.]];
/// let line = pca(&points, 1)?;
/// assert!((line.variances[0] - 1.).abs() < 1e-12);
/// let along = line.project(&points)?;
/// assert!((along[[2, 0]] - 8f64.sqrt()).abs() < 1e-12);
/// # Ok::<(), layerwise_similarity::Error>(())
/// ```
pub fn pca(points: &dyn Representation, components: usize) -> Result<Pca> {
    let (n, width) = shape(points)?;
    if n < 2 {
        return Err(Error::Samples { samples: n, needed: 2 });
    }
    let frame = Frame::new(points, Centring::Samples)?;
    let xs = frame.all()?;
    // The smaller of both: their spectra are the same.
    let (values, mut directions) = if width <= n {
        let (values, vectors) = eigen(&product(xs.t(), xs.view()))?;
        (values, vectors.reversed_axes())
    } else {
        let (values, vectors) = eigen(&product(xs.view(), xs.t()))?;
        (values, product(vectors.t(), xs.view()))
    };
    let total: f64 = values.iter().filter(|value| **value > 0.).sum();
    if total <= 0. {
        return Err(Error::Degenerate { spread: total.max(0.) });
    }
    let rank = values.iter().take_while(|&&value| value > crate::spectral::RANK * values[0]).count();
    if components == 0 || components > rank {
        let expected = "between 1 and the number of directions with variance";
        return Err(Error::Setting { name: "components", value: components as f64, expected });
    }
    directions.slice_collapse(s![..components, ..]);
    for mut row in directions.rows_mut() {
        let norm = row.dot(&row).sqrt();
        let largest = row.iter().fold(0f64, |largest, x| if x.abs() > largest.abs() { *x } else { largest });
        row /= norm.copysign(largest);
    }
    Ok(Pca {
        mean: frame.mean() / frame.scale(),
        components: directions.as_standard_layout().into_owned(),
        variances: values.slice(s![..components]).mapv(|value| value / total),
    })
}

impl Pca {
    /// Coordinates of points `(n, d)` in the components, `(n, k)`.
    ///
    /// # Errors
    ///
    /// [`Error::Widths`] for points of another width, [`Error::NotFinite`] for a NaN.
    pub fn project(&self, points: &dyn Representation) -> Result<Array2<f64>> {
        let (n, width) = shape(points)?;
        if width != self.mean.len() {
            return Err(Error::Widths { left: self.mean.len(), right: width });
        }
        let xs = finite_rows(points, 0..n)? - self.mean.view().insert_axis(Axis(0));
        Ok(product(xs.view(), self.components.t()))
    }
}
