//! What came of an objective over several seeds.

use layerwise_example_common::curves::mean_curve;

/// An objective and what came of it.
pub(crate) struct Outcome {
    pub(crate) name: String,
    /// Accuracy of layers `1..=L`, a curve for each seed.
    pub(crate) curves: Vec<Vec<f64>>,
}

impl Outcome {
    pub(crate) fn mean(&self) -> Vec<f64> {
        mean_curve(&self.curves)
    }

    /// Mean over seeds of the last layer's accuracy, and its standard deviation.
    pub(crate) fn last(&self) -> (f64, f64) {
        let last: Vec<f64> = self.curves.iter().filter_map(|curve| curve.last().copied()).collect();
        let n = last.len() as f64;
        let mean = last.iter().sum::<f64>() / n;
        (mean, (last.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / (n - 1.)).sqrt())
    }

    /// Accuracy halfway, layer L/2.
    pub(crate) fn half(&self) -> f64 {
        let mean = self.mean();
        mean[(mean.len() / 2).max(1) - 1]
    }

    /// Area under the layer-accuracy curve: the mean accuracy of all layers.
    pub(crate) fn area(&self) -> f64 {
        let mean = self.mean();
        mean.iter().sum::<f64>() / mean.len() as f64
    }
}
