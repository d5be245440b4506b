use ndarray::{Array1, ArrayView2};

use crate::{Error, Result};

/// The saturation layer of each sample, `(n)`: index of the first layer from which its prediction no longer changes.
///
/// `predictions` are the top-1 classes after each layer, `(L, n)`, in order. 0 means that the first layer already said what the
/// last one says, `L - 1` that only the last one did.
///
/// # Errors
///
/// [`Error::TooFewLayers`] without layers.
///
/// # Example
///
/// ```
/// use layerwise_similarity::saturation;
/// use ndarray::array;
///
/// let predictions = array![[7, 1], [7, 3], [7, 1]]; // 3 layers, 2 samples
/// assert_eq!(saturation(predictions.view())?, array![0, 2]);
/// # Ok::<(), layerwise_similarity::Error>(())
/// ```
pub fn saturation(predictions: ArrayView2<'_, usize>) -> Result<Array1<usize>> {
    if predictions.nrows() == 0 {
        return Err(Error::TooFewLayers { found: 0, needed: 1 });
    }
    let layer = |sample: ndarray::ArrayView1<'_, usize>| {
        let last = sample[sample.len() - 1];
        sample.iter().rposition(|&class| class != last).map_or(0, |layer| layer + 1)
    };
    Ok(predictions.columns().into_iter().map(layer).collect())
}
