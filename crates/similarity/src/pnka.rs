use ndarray::{Array1, Array2, Axis};
use rayon::prelude::*;

use crate::{
    Centring, Error, Measure, Representation, Result,
    error::in_layer,
    frame::{Frame, check_samples, frames, unit_rows},
    linalg::product,
    pairwise::similarity,
};

/// Pointwise normalised kernel alignment (Kolling et al. 2023), averaged over samples.
///
/// ```text
/// PNKA(X, Y) = 1/n sum_i <k_i, l_i> / (|k_i| |l_i|),  K = X X^T,  L = Y Y^T
/// ```
///
/// `x` is `(n, d)`, `y` is `(n, d')`, both centred over the samples; `k_i` and `l_i` are the rows of their Gram matrices. In `[-1, 1]`:
/// does sample `i` stand to all others as it does in the other representation? A sample at the mean has 0 with everything.
///
/// Unchanged by a rotation, a shift or a scaling of either; not by a general linear map.
///
/// # Errors
///
/// [`Error::Rows`] when `n` differs, [`Error::Samples`] below 2 samples, [`Error::NotFinite`] for a NaN, [`Error::Degenerate`] when a
/// representation is the same for all samples.
///
/// # Example
///
/// ```
/// use layerwise_similarity::pnka;
/// use ndarray::array;
///
/// let x = array![[1., 2.], [0., 1.], [4., -1.], [2., 2.]];
/// let turned = x.dot(&array![[0., 1.], [-1., 0.]]) * 3. + 1.;
/// assert!((pnka(&x, &turned)? - 1.).abs() < 1e-12);
/// # Ok::<(), layerwise_similarity::Error>(())
/// ```
pub fn pnka(x: &dyn Representation, y: &dyn Representation) -> Result<f64> {
    similarity(x, y, Measure::Pnka)
}

/// [`pnka`] of each sample, `(n)`.
///
/// # Errors
///
/// As [`pnka`].
pub fn pnka_per_sample(x: &dyn Representation, y: &dyn Representation) -> Result<Array1<f64>> {
    crate::per_sample(x, y, Measure::Pnka)
}

/// PNKA of each sample for each of `pairs` of layers.
pub(crate) fn per_sample_of(
    layers: &[&dyn Representation],
    pairs: &[(usize, usize)],
) -> Result<Vec<Array1<f64>>> {
    check_samples(layers, 2)?;
    let frames = frames(layers, Centring::Samples)?;
    let layers: Vec<_> = frames.par_iter().map(Rows::new).collect();
    let layers = layers.into_iter().enumerate().map(|(layer, rows)| in_layer(layer, rows));
    let layers = layers.collect::<Result<Vec<_>>>()?;
    Ok(pairs.par_iter().map(|&(i, j)| layers[i].cosines(&layers[j])).collect())
}

/// The rows of a Gram matrix, scaled to length 1.
struct Rows {
    /// The smaller of the features `X`, `(n, d)`, and their Gram matrix.
    held: Held,
}

enum Held {
    /// `X`, and `x_i / |k_i|` beside it.
    Features { xs: Array2<f64>, scaled: Array2<f64> },
    /// `k_i / |k_i|`.
    Gram(Array2<f64>),
}

impl Rows {
    fn new(frame: &Frame<'_>) -> Result<Self> {
        let mut xs = frame.all()?;
        let size = crate::frame::largest(xs.view());
        if size == 0. {
            return Err(Error::Degenerate { spread: 0. });
        }
        xs /= size;
        let held = if frame.width <= frame.samples {
            // |k_i|^2 = x_i^T (X^T X) x_i
            let lengths = row_products(&product(xs.view(), product(xs.t(), xs.view()).view()), &xs);
            let inverse = lengths.mapv(|square| if square > 0. { square.sqrt().recip() } else { 0. });
            Held::Features { scaled: &xs * &inverse.insert_axis(Axis(1)), xs }
        } else {
            let mut gram = product(xs.view(), xs.t());
            unit_rows(&mut gram);
            Held::Gram(gram)
        };
        Ok(Self { held })
    }

    /// `<k_i, l_i> / (|k_i| |l_i|)` for each sample.
    fn cosines(&self, other: &Self) -> Array1<f64> {
        let cosines = match (&self.held, &other.held) {
            // <k_i, l_i> = x_i^T (X^T Y) y_i
            (Held::Features { xs, scaled }, Held::Features { xs: ys, scaled: scaled_ys }) => {
                row_products(&product(scaled.view(), product(xs.t(), ys.view()).view()), scaled_ys)
            }
            (Held::Gram(k), Held::Gram(l)) => row_products(k, l),
            (Held::Gram(k), Held::Features { xs, scaled })
            | (Held::Features { xs, scaled }, Held::Gram(k)) => {
                row_products(&product(k.view(), xs.view()), scaled)
            }
        };
        cosines.mapv(|cosine| cosine.clamp(-1., 1.))
    }
}

fn row_products(x: &Array2<f64>, y: &Array2<f64>) -> Array1<f64> {
    x.rows().into_iter().zip(y.rows()).map(|(x, y)| x.dot(&y)).collect()
}
