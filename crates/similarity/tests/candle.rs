//! Tensors give the numbers of arrays, bit for bit.
#![cfg(feature = "candle")]

mod samples;

use std::error::Error;

use candle_core::{DType, Device::Cpu, Tensor};
use layerwise_similarity::{
    Estimator, Measure, MomentAccumulator, Representation, pairwise, pairwise_between, per_sample, similarity,
};
use ndarray::Array2;
use samples::MEASURES;

type Result<T = ()> = std::result::Result<T, Box<dyn Error>>;

/// Values that need all the digits of an f64.
fn array(n: usize, width: usize, phase: f64) -> Array2<f64> {
    Array2::from_shape_fn((n, width), |(i, j)| (phase + 1.7 * i as f64 + 0.9 * (j * j) as f64).sin())
}

fn tensor(xs: &Array2<f64>) -> Result<Tensor> {
    Ok(Tensor::from_iter(xs.iter().copied(), &Cpu)?.reshape(xs.dim())?)
}

fn agree<R: Representation>(x: &Tensor, y: &Tensor, ax: &R, ay: &R) -> Result {
    for measure in MEASURES {
        assert_eq!(similarity(x, y, measure)?, similarity(ax, ay, measure)?, "{measure:?}");
        assert_eq!(pairwise(&[x, y], measure)?, pairwise(&[ax, ay], measure)?, "{measure:?}");
        let mixed = pairwise_between(&[ax], &[x, y], measure)?;
        assert_eq!(mixed, pairwise_between(&[ax], &[ax, ay], measure)?, "{measure:?}");
        match (per_sample(x, y, measure), per_sample(ax, ay, measure)) {
            (Ok(got), Ok(want)) => assert_eq!(got, want, "{measure:?}"),
            (got, want) => assert_eq!(got, want, "{measure:?}"),
        }
    }
    Ok(())
}

#[test]
fn f64_and_f32() -> Result {
    let (ax, ay) = (array(9, 5, 0.), array(9, 5, 2.));
    let (x, y) = (tensor(&ax)?, tensor(&ay)?);
    agree(&x, &y, &ax, &ay)?;
    let (ax, ay) = (ax.mapv(|x| x as f32), ay.mapv(|y| y as f32));
    agree(&x.to_dtype(DType::F32)?, &y.to_dtype(DType::F32)?, &ax, &ay)
}

/// Multiples of 1/64 below 1 have an exact f16 and bf16.
#[test]
fn half_precision_is_widened_first() -> Result {
    let exact = |x: f64| (x * 64.).round() / 64.;
    let (ax, ay) = (array(9, 5, 0.).mapv(exact), array(9, 5, 2.).mapv(exact));
    for dtype in [DType::F16, DType::BF16] {
        let (x, y) = (tensor(&ax)?.to_dtype(dtype)?, tensor(&ay)?.to_dtype(dtype)?);
        agree(&x, &y, &ax, &ay)?;
    }
    Ok(())
}

#[test]
fn widths_may_differ() -> Result {
    let (ax, ay) = (array(9, 5, 0.), array(9, 20, 2.));
    for measure in
        MEASURES.into_iter().filter(|m| !matches!(m, Measure::Cos(_) | Measure::AngularDistance(_)))
    {
        let want = similarity(&ax, &ay, measure)?;
        assert_eq!(similarity(&tensor(&ax)?, &tensor(&ay)?, measure)?, want, "{measure:?}");
    }
    Ok(())
}

#[test]
fn tensors_that_are_not_contiguous() -> Result {
    let (ax, ay) = (array(9, 5, 0.), array(9, 5, 2.));
    let transposed = tensor(&ax.t().as_standard_layout().into_owned())?.t()?;
    let wider = Tensor::cat(&[tensor(&array(9, 3, 1.))?, tensor(&ay)?, tensor(&array(9, 2, 1.))?], 1)?;
    let narrowed = wider.narrow(1, 3, 5)?;
    assert!(!transposed.is_contiguous() && !narrowed.is_contiguous());
    agree(&transposed, &narrowed, &ax, &ay)
}

#[test]
fn accumulators_take_tensors() -> Result {
    let layers = [array(30, 5, 0.), array(30, 4, 2.)];
    let tensors = [tensor(&layers[0])?, tensor(&layers[1])?];
    let (mut on_arrays, mut on_tensors) =
        (MomentAccumulator::new(&[5, 4])?, MomentAccumulator::new(&[5, 4])?);
    on_arrays.push(&layers)?;
    on_tensors.push(&tensors)?;
    let measure = Measure::Cka(Estimator::Debiased);
    assert_eq!(on_tensors.pairwise(measure)?, on_arrays.pairwise(measure)?);
    Ok(())
}
