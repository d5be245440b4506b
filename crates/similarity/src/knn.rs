use std::cmp::Ordering;

use ndarray::{Array1, Array2, s};
use rayon::prelude::*;

use crate::{
    Centring, Error, Measure, Representation, Result,
    error::in_layer,
    frame::{check_samples, frames, largest, unit_rows},
    linalg::add_product,
    mean::rounding,
    pairwise::similarity,
    representation::chunks,
};

/// Mutual k-nearest-neighbour alignment (Huh et al. 2024): the share of its neighbours that a sample keeps, averaged over samples.
///
/// ```text
/// m(X, Y) = 1/n sum_i |N_k(x_i) and N_k(y_i)| / k
/// ```
///
/// `x` is `(n, d)`, `y` is `(n, d')`. Neighbours are the `k` other samples of the largest cosine, not centred; of equally near ones
/// those that come first. In `[0, 1]`; of unrelated representations about `k / (n - 1)`. The authors take `k = 10`.
///
/// Unchanged by a rotation of either and by a scale of each sample; not by a shift.
///
/// # Errors
///
/// [`Error::Rows`] when `n` differs, [`Error::Setting`] for 0 neighbours, [`Error::Samples`] when there are not more than `k` samples,
/// [`Error::NotFinite`] for a NaN, [`Error::Degenerate`] when all samples have the same direction.
///
/// # Example
///
/// ```
/// use layerwise_similarity::mutual_knn;
/// use ndarray::array;
///
/// let x = array![[1., 0.], [1., 0.1], [0., 1.], [0.1, 1.]];
/// let crossed = array![[1., 0.], [0., 1.], [1., 0.1], [0.1, 1.]];
/// assert_eq!(mutual_knn(&x, &(&x * 5.), 1)?, 1.);
/// assert_eq!(mutual_knn(&x, &crossed, 1)?, 0.);
/// # Ok::<(), layerwise_similarity::Error>(())
/// ```
pub fn mutual_knn(x: &dyn Representation, y: &dyn Representation, neighbours: usize) -> Result<f64> {
    similarity(x, y, Measure::MutualKnn { neighbours })
}

/// The share of common neighbours of each sample, for each of `pairs` of layers.
pub(crate) fn per_sample_of(
    layers: &[&dyn Representation],
    pairs: &[(usize, usize)],
    neighbours: usize,
) -> Result<Vec<Array1<f64>>> {
    if neighbours == 0 {
        return Err(Error::Setting { name: "neighbours", value: 0., expected: "at least 1" });
    }
    check_samples(layers, neighbours.saturating_add(1))?;
    let frames = frames(layers, Centring::None)?;
    let near = frames.iter().enumerate().map(|(layer, frame)| {
        let mut xs = in_layer(layer, frame.all())?;
        unit_rows(&mut xs);
        let spread = xs.rows().into_iter().map(|row| largest((&row - &xs.row(0)).view())).fold(0., f64::max);
        if spread <= rounding(1.) {
            return in_layer(layer, Err(Error::Degenerate { spread }));
        }
        Ok(nearest(&xs, neighbours))
    });
    let near = near.collect::<Result<Vec<_>>>()?;
    let common = |x: &Vec<usize>, y: &Vec<usize>| x.iter().filter(|i| y.binary_search(i).is_ok()).count();
    let share = |x, y| common(x, y) as f64 / neighbours as f64;
    Ok(pairs
        .par_iter()
        .map(|&(i, j)| near[i].iter().zip(&near[j]).map(|(x, y)| share(x, y)).collect())
        .collect())
}

/// The `k` nearest other rows of each row of length 1, in the order of their indices.
fn nearest(xs: &Array2<f64>, k: usize) -> Vec<Vec<usize>> {
    /// Rows whose cosines with all others are held at a time.
    const ROWS: usize = 32;
    let n = xs.nrows();
    let bands: Vec<_> = chunks(n, ROWS).collect();
    let near = bands.into_par_iter().flat_map_iter(|rows| {
        let mut cosines = Array2::zeros((rows.len(), n));
        add_product(cosines.view_mut(), xs.slice(s![rows.clone(), ..]), xs.t());
        let near = rows.zip(cosines.outer_iter().map(|row| row.to_vec()).collect::<Vec<_>>());
        near.map(|(i, cosines)| {
            let mut others: Vec<usize> = (0..n).filter(|&j| j != i).collect();
            let nearer =
                |&a: &usize, &b: &usize| -> Ordering { cosines[b].total_cmp(&cosines[a]).then(a.cmp(&b)) };
            others.select_nth_unstable_by(k - 1, nearer);
            others.truncate(k);
            others.sort_unstable();
            others
        })
    });
    near.collect()
}
