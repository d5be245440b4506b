//! Tensors on a GPU give the numbers that they give on the CPU. Skipped where there is no GPU, with its reason.
#![cfg(feature = "cuda")]

mod samples;

use std::{
    error::Error,
    io::{self, Write},
};

use candle_core::{DType, Device, Tensor};
use layerwise_similarity::{
    Centring, CosAccumulator, MeanAccumulator, Measure, MomentAccumulator, pairwise, similarity,
};
use ndarray::Array2;
use samples::{MEASURES, OF_MOMENTS, noise};

type Result<T = ()> = std::result::Result<T, Box<dyn Error>>;

/// Of sums of some thousand products, in two orders.
const TOLERANCE: f64 = 1e-10;

const TYPES: [DType; 4] = [DType::F64, DType::F32, DType::F16, DType::BF16];

fn gpu() -> Option<Device> {
    match Device::new_cuda(0) {
        Ok(device) => Some(device),
        Err(error) => {
            let test = std::thread::current().name().unwrap_or("a test").to_owned();
            let why = error.to_string();
            let _ = writeln!(io::stderr(), "skipped: {test} ({})", why.lines().next().unwrap_or("no GPU"));
            None
        }
    }
}

/// Layers that resemble each other, away from 0.
fn stack(n: usize, widths: &[usize], dtype: DType) -> Result<Vec<Tensor>> {
    let base = noise(1, n, 6);
    let layer = |(l, &width): (u64, &usize)| -> Result<Tensor> {
        let xs = 3. * l as f64 + base.dot(&noise(l + 2, 6, width)) + 0.5 * noise(l + 20, n, width);
        Ok(Tensor::from_iter(xs.iter().copied(), &Device::Cpu)?.reshape((n, width))?.to_dtype(dtype)?)
    };
    (0..).zip(widths).map(layer).collect()
}

fn to(device: &Device, layers: &[Tensor]) -> Result<Vec<Tensor>> {
    layers.iter().map(|xs| Ok(xs.to_device(device)?)).collect()
}

fn batches(layers: &[Tensor], size: usize) -> Result<Vec<Vec<Tensor>>> {
    let n = layers[0].dim(0)?;
    let batch = |start| layers.iter().map(|xs| Ok(xs.narrow(0, start, size.min(n - start))?)).collect();
    (0..n).step_by(size).map(batch).collect()
}

fn close(what: &str, got: &Array2<f64>, want: &Array2<f64>) {
    assert_eq!(got.dim(), want.dim(), "{what}");
    for ((at, got), want) in got.indexed_iter().zip(want) {
        assert!((got - want).abs() <= TOLERANCE, "{what} {at:?}: {got}, want {want}");
    }
}

#[test]
fn moments_in_batches() -> Result {
    let Some(gpu) = gpu() else { return Ok(()) };
    let widths = [6, 9, 200, 4];
    for dtype in TYPES {
        let here = stack(2500, &widths, dtype)?;
        let mut want = MomentAccumulator::new(&widths)?;
        want.push(&here)?;
        let there = batches(&to(&gpu, &here)?, 300)?;
        let (mut got, mut half) = (MomentAccumulator::new(&widths)?, MomentAccumulator::new(&widths)?);
        for (i, batch) in there.iter().enumerate() {
            if i % 2 == 0 { got.push(batch)? } else { half.push(batch)? }
        }
        got.merge(MomentAccumulator::from_bytes(&half.to_bytes()?)?)?;
        // And without merging, with a batch of the host between.
        let mut turns = MomentAccumulator::new(&widths)?;
        for (i, (there, here)) in there.iter().zip(batches(&here, 300)?).enumerate() {
            if i == 5 { turns.push(&here)? } else { turns.push(there)? }
        }
        for measure in OF_MOMENTS {
            // A square root makes 1e-8 of what rounding leaves.
            if measure != Measure::ProcrustesDistance {
                let want = want.pairwise(measure)?;
                close(&format!("{dtype:?}, {measure:?}"), &got.pairwise(measure)?, &want);
                close(&format!("{dtype:?}, {measure:?}, in turns"), &turns.pairwise(measure)?, &want);
            }
        }
    }
    Ok(())
}

#[test]
fn cosines_in_batches() -> Result {
    let Some(gpu) = gpu() else { return Ok(()) };
    for dtype in TYPES {
        let here = stack(2500, &[33; 5], dtype)?;
        let there = batches(&to(&gpu, &here)?, 1100)?;
        let (mut means, mut got_means) = (MeanAccumulator::new(&[33; 5])?, MeanAccumulator::new(&[33; 5])?);
        means.push(&here)?;
        for batch in &there {
            got_means.push(batch)?;
        }
        for (got, want) in got_means.means().iter().zip(means.means()) {
            assert!((got - want).iter().all(|off| off.abs() <= TOLERANCE));
        }
        for centring in [Centring::Samples, Centring::Features, Centring::None] {
            let new = |means: MeanAccumulator| match centring {
                Centring::Samples => CosAccumulator::centred(means),
                other => CosAccumulator::uncentred(5, 33, other),
            };
            let (mut want, mut got) = (new(means.clone())?, new(got_means.clone())?);
            want.push(&here)?;
            for batch in &there {
                got.push(batch)?;
            }
            assert_eq!(got.samples(), 2500);
            close(&format!("{dtype:?}, {centring:?}"), &got.pairwise()?, &want.pairwise()?);
        }
    }
    Ok(())
}

/// All at once; those that take no products of a GPU read its tensors.
#[test]
fn every_measure() -> Result {
    let Some(gpu) = gpu() else { return Ok(()) };
    let here = stack(40, &[6; 3], DType::F32)?;
    let there = to(&gpu, &here)?;
    for measure in MEASURES {
        if measure != Measure::ProcrustesDistance {
            close(&format!("{measure:?}"), &pairwise(&there, measure)?, &pairwise(&here, measure)?);
            let off = similarity(&there[0], &there[1], measure)? - similarity(&here[0], &here[1], measure)?;
            assert!(off.abs() <= TOLERANCE, "{measure:?}: off by {off}");
        }
    }
    Ok(())
}

/// The same error, and no trace.
#[test]
fn bad_numbers_are_named() -> Result {
    let Some(gpu) = gpu() else { return Ok(()) };
    let good = stack(1500, &[4; 2], DType::F32)?;
    for bad in [f32::NAN, f32::INFINITY] {
        let mut here = good.clone();
        let value = Tensor::full(bad, (1, 4), &Device::Cpu)?;
        here[1] = Tensor::cat(&[good[1].narrow(0, 0, 1400)?, value, good[1].narrow(0, 0, 99)?], 0)?;
        let there = to(&gpu, &here)?;
        let mut means = MeanAccumulator::new(&[4; 2])?;
        means.push(&to(&gpu, &good)?)?;
        let (before, want) = (means.clone(), means.push(&here));
        assert!(want.is_err());
        assert_eq!((means.push(&there), &means), (want.clone(), &before));
        let mut cosines = CosAccumulator::centred(means)?;
        let before = cosines.clone();
        assert_eq!((cosines.push(&there), &cosines), (want.clone(), &before));
        let mut moments = MomentAccumulator::new(&[4; 2])?;
        assert_eq!(moments.push(&there), want);
        assert_eq!(moments.samples(), 0);
    }
    Ok(())
}
