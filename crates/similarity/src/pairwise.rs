use ndarray::{Array1, Array2};

use crate::{
    Error, Measure, Representation, Result, cka,
    cos::{self, angle, cosine, mean_of_rows},
    frame::frames,
    in_memory::spectral_of,
    knn, pnka, rsa,
};

/// Any measure of two representations of the same samples.
///
/// # Errors
///
/// Those of the measure's own function.
///
/// # Example
///
/// ```
/// use layerwise_similarity::{Estimator, Measure, similarity};
/// use ndarray::array;
///
/// let x = array![[1., 2.], [0., 1.], [4., -1.], [2., 2.], [0., 3.]];
/// for measure in [Measure::Cka(Estimator::Debiased), Measure::Cca, Measure::Procrustes, Measure::Pnka] {
///     assert!((similarity(&x, &(&x * 2. - 7.), measure)? - 1.).abs() < 1e-9, "{}", measure.name());
/// }
/// # Ok::<(), layerwise_similarity::Error>(())
/// ```
pub fn similarity(x: &dyn Representation, y: &dyn Representation, measure: Measure) -> Result<f64> {
    let scores = scores(&[x, y], &[(0, 1)], measure).map_err(without_layer)?;
    Ok(scores[0])
}

/// Any measure that has a value for each sample: COS, angular distance, PNKA and mutual k-NN; `(n)`, in the order of the samples.
///
/// # Errors
///
/// Those of the measure's own function; [`Error::Unsupported`] for the others.
///
/// # Example
///
/// ```
/// use layerwise_similarity::{Centring, Measure, per_sample};
/// use ndarray::array;
///
/// let (x, y) = (array![[1., 0.], [0., 1.]], array![[2., 0.], [0., -1.]]);
/// assert_eq!(per_sample(&x, &y, Measure::Cos(Centring::None))?, array![1., -1.]);
/// # Ok::<(), layerwise_similarity::Error>(())
/// ```
pub fn per_sample(x: &dyn Representation, y: &dyn Representation, measure: Measure) -> Result<Array1<f64>> {
    let (layers, pairs) = ([x, y], [(0, 1)]);
    let mut found = match measure {
        Measure::Cos(centring) => return cos::per_sample_of(x, y, centring, cosine),
        Measure::AngularDistance(centring) => return cos::per_sample_of(x, y, centring, angle),
        Measure::Pnka => pnka::per_sample_of(&layers, &pairs).map_err(without_layer)?,
        Measure::MutualKnn { neighbours } => {
            knn::per_sample_of(&layers, &pairs, neighbours).map_err(without_layer)?
        }
        _ => return Err(Error::Unsupported { measure: measure.name(), what: "value per sample" }),
    };
    Ok(found.swap_remove(0))
}

/// Any measure of all pairs of layers of one stack, `(L, L)`.
///
/// What a layer needs is computed once, each pair once, and pairs in parallel; results do not depend on the number of threads.
///
/// # Errors
///
/// [`Error::TooFewLayers`] for an empty stack; [`Error::Layer`] naming the layer whose representation does not do; [`Error::Setting`]
/// as the measure's own function.
///
/// # Example
///
/// ```
/// use layerwise_similarity::{Centring, Measure, pairwise};
/// use ndarray::array;
///
/// let layers = [array![[1., 0.]], array![[0., 2.]], array![[-3., 0.]]];
/// let matrix = pairwise(&layers, Measure::Cos(Centring::None))?;
/// assert_eq!(matrix, array![[1., 0., -1.], [0., 1., 0.], [-1., 0., 1.]]);
/// # Ok::<(), layerwise_similarity::Error>(())
/// ```
pub fn pairwise<R: Representation>(layers: &[R], measure: Measure) -> Result<Array2<f64>> {
    let layers = dynamic(layers)?;
    let n = layers.len();
    let pairs = if measure.is_symmetric() { all_pairs(n) } else { ordered_pairs(n) };
    Ok(matrix((n, n), 0, &pairs, &scores(&layers, &pairs, measure)?))
}

/// Any measure of each layer of one stack with each of another, `(L, L')`; two models on the same samples.
///
/// # Errors
///
/// As [`pairwise`]; layers of the second stack count on from the first.
pub fn pairwise_between<R: Representation, S: Representation>(
    left: &[R],
    right: &[S],
    measure: Measure,
) -> Result<Array2<f64>> {
    let layers = [dynamic(left)?, dynamic(right)?].concat();
    let pairs = pairs_between(left.len(), right.len());
    let scores = scores(&layers, &pairs, measure)?;
    Ok(matrix((left.len(), right.len()), left.len(), &pairs, &scores))
}

/// The measure of each of `pairs` of `layers`.
fn scores(layers: &[&dyn Representation], pairs: &[(usize, usize)], measure: Measure) -> Result<Vec<f64>> {
    measure.check()?;
    match measure {
        Measure::Cos(centring) => mean_of_rows(&frames(layers, centring)?, pairs, cosine),
        Measure::AngularDistance(centring) => mean_of_rows(&frames(layers, centring)?, pairs, angle),
        Measure::Cka(estimator) => cka::linear(layers, pairs, estimator),
        Measure::RbfCka { estimator, bandwidth } => cka::rbf(layers, pairs, estimator, bandwidth),
        Measure::Cca
        | Measure::Svcca { .. }
        | Measure::Pwcca
        | Measure::Procrustes
        | Measure::ProcrustesDistance => spectral_of(layers, pairs, measure),
        Measure::Pnka => Ok(means(&pnka::per_sample_of(layers, pairs)?)),
        Measure::Rsa(distance) => rsa::scores(layers, pairs, distance),
        Measure::MutualKnn { neighbours } => Ok(means(&knn::per_sample_of(layers, pairs, neighbours)?)),
    }
}

/// `(i, j)` with `i <= j`.
pub(crate) fn all_pairs(n: usize) -> Vec<(usize, usize)> {
    (0..n).flat_map(|i| (i..n).map(move |j| (i, j))).collect()
}

/// `(i, j)` in both orders.
pub(crate) fn ordered_pairs(n: usize) -> Vec<(usize, usize)> {
    (0..n).flat_map(|i| (0..n).map(move |j| (i, j))).collect()
}

/// Layers of two stacks, the second counted on from the first.
pub(crate) fn pairs_between(left: usize, right: usize) -> Vec<(usize, usize)> {
    (0..left).flat_map(|i| (0..right).map(move |j| (i, left + j))).collect()
}

/// Scores of pairs as a matrix whose columns count from layer `first`; pairs of one stack fill both triangles.
pub(crate) fn matrix(
    shape: (usize, usize),
    first: usize,
    pairs: &[(usize, usize)],
    scores: &[f64],
) -> Array2<f64> {
    let mut matrix = Array2::zeros(shape);
    let halves = first == 0 && pairs.len() < shape.0 * shape.1;
    for (&(i, j), &score) in pairs.iter().zip(scores) {
        matrix[[i, j - first]] = score;
        if halves {
            matrix[[j, i]] = score;
        }
    }
    matrix
}

fn dynamic<R: Representation>(layers: &[R]) -> Result<Vec<&dyn Representation>> {
    if layers.is_empty() {
        return Err(Error::TooFewLayers { found: 0, needed: 1 });
    }
    Ok(layers.iter().map(|layer| layer as &dyn Representation).collect())
}

fn means(per_pair: &[Array1<f64>]) -> Vec<f64> {
    per_pair.iter().map(|values| values.sum() / values.len() as f64).collect()
}

pub(crate) fn without_layer(error: Error) -> Error {
    match error {
        Error::Layer { source, .. } => *source,
        other => other,
    }
}
