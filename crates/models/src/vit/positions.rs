//! Learned positions of a grid of patches, for a grid of another size.

use candle_core::{Device, Tensor};

use crate::Result;

/// Positions `(1, leading + from * from, width)` as `(1, leading + to * to, width)`: those of leading tokens as they are, those of
/// patches resampled by a bicubic filter, without antialiasing: PyTorch's `interpolate(mode="bicubic",
/// align_corners=False)`, which Hugging Face's ViT calls.
pub(super) fn resampled(positions: &Tensor, leading: usize, from: usize, to: usize) -> Result<Tensor> {
    let width = positions.dim(2)?;
    let values = positions.flatten_all()?.to_vec1::<f32>()?;
    let (tokens, patches) = values.split_at(leading * width);
    let taps: Vec<_> = (0..to).map(|at| taps(at, from, to)).collect();
    let mut out = tokens.to_vec();
    for (rows, row_weights) in &taps {
        for (columns, column_weights) in &taps {
            for channel in 0..width {
                let mut sum = 0.;
                for (row, row_weight) in rows.iter().zip(row_weights) {
                    for (column, column_weight) in columns.iter().zip(column_weights) {
                        let value = patches[(row * from + column) * width + channel];
                        sum += row_weight * column_weight * f64::from(value);
                    }
                }
                out.push(sum as f32);
            }
        }
    }
    let resampled = Tensor::from_vec(out, (1, leading + to * to, width), &Device::Cpu)?;
    Ok(resampled.to_device(positions.device())?)
}

/// The four sources of target `at` along one side, those outside clamped to the edge, and their weights.
fn taps(at: usize, from: usize, to: usize) -> ([usize; 4], [f64; 4]) {
    let source = (at as f64 + 0.5) * from as f64 / to as f64 - 0.5;
    let (first, offset) = (source.floor(), source - source.floor());
    let clamped = |i: f64| (first + i).clamp(0., from as f64 - 1.) as usize;
    ([-1., 0., 1., 2.].map(clamped), [1. + offset, offset, 1. - offset, 2. - offset].map(cubic))
}

/// Keys' cubic convolution kernel, a = -0.75, at a distance.
fn cubic(x: f64) -> f64 {
    const A: f64 = -0.75;
    match x {
        x if x <= 1. => ((A + 2.) * x - (A + 3.)) * x * x + 1.,
        x if x < 2. => ((A * x - 5. * A) * x + 8. * A) * x - 4. * A,
        _ => 0.,
    }
}
