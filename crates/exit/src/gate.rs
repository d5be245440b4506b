use candle_core::Tensor;
use layerwise_similarity::{ProbeConfig, fit_probe};
use ndarray::Array2;
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// A learned gate: the probability that an exit is right, one linear scalar shared by all layers (Xin et al. 2021, BERxiT's
/// learning-to-exit, with a logistic loss instead of a squared one).
///
/// ```text
/// g(h) = 1 / (1 + exp(-(w . z(h) + b))),   z(h) = (h - mean h) / sqrt(var h + 1e-12 mean h^2), over the row's features
/// ```
///
/// It reads features and needs no head.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gate {
    /// `(width)`.
    pub weights: Vec<f64>,
    /// Scalar.
    pub bias: f64,
}

impl Gate {
    /// Fits a gate to a trained model, after the fact.
    ///
    /// `features` are `(samples, width)`, one for each layer whose exit is to be judged, and `right` says of each layer and sample
    /// whether its answer is right: equal to the label or, without labels, to the full model's. Take samples that the model was not
    /// trained on. All features are held in f64 while it is fitted.
    ///
    /// # Errors
    ///
    /// [`Error::Empty`] without samples, [`Error::Rows`] where lengths differ, [`Error::OneSided`] when all exits are right or all
    /// wrong, [`Error::Fit`] for features that are not finite or of different widths.
    pub fn fit(features: &[Tensor], right: &[Vec<bool>]) -> Result<Self> {
        let width = features.first().ok_or(Error::Empty)?.dim(1)?;
        let (mut rows, mut labels) = (Vec::new(), Vec::new());
        if features.len() != right.len() {
            return Err(Error::Rows { rows: features.len(), labels: right.len() });
        }
        for (feature, right) in features.iter().zip(right) {
            let feature = feature.to_dtype(candle_core::DType::F32)?;
            let (samples, wide) = feature.dims2()?;
            if wide != width {
                return Err(Error::Fit(format!("features of width {wide} and of {width}")));
            }
            if samples != right.len() {
                return Err(Error::Rows { rows: samples, labels: right.len() });
            }
            for row in feature.to_vec2::<f32>()? {
                rows.extend(standardised(&row));
            }
            labels.extend(right.iter().map(|&right| usize::from(right)));
        }
        if labels.is_empty() {
            return Err(Error::Empty);
        }
        let positive = labels.iter().sum::<usize>();
        if positive == 0 || positive == labels.len() {
            return Err(Error::OneSided { right: positive, of: labels.len() });
        }
        let fault = |what: String| Error::Fit(what);
        let rows = Array2::from_shape_vec((labels.len(), width), rows).map_err(|e| fault(e.to_string()))?;
        let probe =
            fit_probe(&rows, &labels, 2, &ProbeConfig::default()).map_err(|e| fault(e.to_string()))?;
        let weights = (&probe.weights.row(1) - &probe.weights.row(0)).to_vec();
        Ok(Self { weights, bias: probe.bias[1] - probe.bias[0] })
    }

    /// Probability that the exit on this feature is right; NaN when the feature is not finite, or of another width.
    #[must_use]
    pub fn probability(&self, feature: &[f32]) -> f64 {
        if feature.len() != self.weights.len() {
            return f64::NAN;
        }
        let logit: f64 =
            standardised(feature).zip(&self.weights).map(|(x, w)| x * w).sum::<f64>() + self.bias;
        1. / (1. + (-logit).exp())
    }

    /// # Errors
    ///
    /// [`Error::Setting`] for weights that cannot be summed up.
    pub(crate) fn validate(&self) -> Result<()> {
        let mut all = self.weights.iter().chain([&self.bias]);
        match all.find(|weight| weight.is_nan() || weight.abs() > LARGEST) {
            None => Ok(()),
            Some(weight) => {
                let expected = "finite weights, no larger than 1e100";
                Err(Error::Setting { field: "gate", value: weight.to_string(), expected })
            }
        }
    }

    pub(crate) fn check_width(&self, width: usize) -> Result<()> {
        match self.weights.len() {
            gate if gate == width => Ok(()),
            gate => Err(Error::Width { gate, width }),
        }
    }
}

/// Largest weight that can be summed up with others.
const LARGEST: f64 = 1e100;

/// What a variance is at least, of the mean square: a row that does not vary is 0, whatever rounding has made of it.
pub(crate) const FLOOR: f64 = 1e-12;

/// Less the mean, over the deviation.
fn standardised(row: &[f32]) -> impl Iterator<Item = f64> {
    let n = row.len().max(1) as f64;
    let mean_of = |f: &dyn Fn(f64) -> f64| row.iter().map(|&x| f(f64::from(x))).sum::<f64>() / n;
    let mean = mean_of(&|x| x);
    let (variance, square) = (mean_of(&|x| (x - mean).powi(2)), mean_of(&|x| x * x));
    let deviation = (variance + FLOOR * square).sqrt();
    let by = if deviation == 0. { 1. } else { deviation };
    row.iter().map(move |&x| (f64::from(x) - mean) / by)
}
