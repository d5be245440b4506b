//! Similarity of all pairs of layers, the embedding included.

use anyhow::Result;
use candle_core::Tensor;
use layerwise::similarity::{Centring, Error, Estimator, Measure, pairwise};

/// `(L + 1) x (L + 1)` each; NaN where a measure is undefined.
pub(crate) struct Matrices {
    pub(crate) cos: Vec<Vec<f64>>,
    pub(crate) cka_biased: Vec<Vec<f64>>,
    pub(crate) cka_debiased: Vec<Vec<f64>>,
}

impl Matrices {
    /// `features` are `(samples, width)` of layers `0..=L`.
    pub(crate) fn measure(features: &[Tensor]) -> Result<Self> {
        let mut cos = matrix(features, Measure::Cos(Centring::Samples))?;
        for layer in 0..features.len() {
            // No sample has a direction: a layer that is the same for all.
            if cos[layer][layer] == 0. {
                cos[layer].fill(f64::NAN);
                cos.iter_mut().for_each(|row| row[layer] = f64::NAN);
            }
        }
        Ok(Self {
            cos,
            cka_biased: matrix(features, Measure::Cka(Estimator::Biased))?,
            cka_debiased: matrix(features, Measure::Cka(Estimator::Debiased))?,
        })
    }
}

/// Layers without a CKA with themselves are left out: a `[CLS]` embedding is the same for every sample.
fn matrix(features: &[Tensor], measure: Measure) -> Result<Vec<Vec<f64>>> {
    let mut defined: Vec<usize> = (0..features.len()).collect();
    let mut out = vec![vec![f64::NAN; features.len()]; features.len()];
    while !defined.is_empty() {
        let stack: Vec<Tensor> = defined.iter().map(|&layer| features[layer].clone()).collect();
        match pairwise(&stack, measure) {
            Ok(matrix) => {
                for ((i, j), value) in matrix.indexed_iter() {
                    out[defined[i]][defined[j]] = *value;
                }
                break;
            }
            Err(Error::Layer { layer, source }) if matches!(*source, Error::Degenerate { .. }) => {
                defined.remove(layer);
            }
            Err(Error::Layer { source, .. }) if matches!(*source, Error::Samples { .. }) => break,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(out)
}
