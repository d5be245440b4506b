//! The functions on tensors give the numbers of those on arrays, bit for bit.
#![cfg(feature = "candle")]

use std::error::Error;

use candle_core::{DType, Device::Cpu, Tensor};
use layerwise_similarity::{Centring, Estimator, Measure, Real, tensor};
use ndarray::{Array2, ArrayView2};

type Result<T = ()> = std::result::Result<T, Box<dyn Error>>;

const CENTRINGS: [Centring; 3] = [Centring::Samples, Centring::Features, Centring::None];
const ESTIMATORS: [Estimator; 2] = [Estimator::Biased, Estimator::Debiased];

/// Values that need all the digits of an f64.
fn array(n: usize, width: usize, phase: f64) -> Array2<f64> {
    Array2::from_shape_fn((n, width), |(i, j)| (phase + 1.7 * i as f64 + 0.9 * (j * j) as f64).sin())
}

fn tensor(xs: &Array2<f64>) -> Result<Tensor> {
    Ok(Tensor::from_iter(xs.iter().copied(), &Cpu)?.reshape(xs.dim())?)
}

fn agree<T: Real>(x: &Tensor, y: &Tensor, ax: ArrayView2<'_, T>, ay: ArrayView2<'_, T>) -> Result {
    use layerwise_similarity as on_arrays;
    for centring in CENTRINGS {
        assert_eq!(tensor::cos(x, y, centring)?, on_arrays::cos(ax, ay, centring)?);
        assert_eq!(tensor::cos_per_sample(x, y, centring)?, on_arrays::cos_per_sample(ax, ay, centring)?);
    }
    let ckas = ESTIMATORS.map(Measure::Cka);
    for measure in CENTRINGS.map(Measure::Cos).into_iter().chain(ckas) {
        let (stack, arrays) = ([x.clone(), y.clone()], [ax, ay]);
        assert_eq!(tensor::pairwise(&stack, measure)?, on_arrays::pairwise(&arrays, measure)?);
        assert_eq!(
            tensor::pairwise_between(&stack[..1], &stack, measure)?,
            on_arrays::pairwise_between(&arrays[..1], &arrays, measure)?
        );
    }
    for estimator in ESTIMATORS {
        assert_eq!(tensor::cka(x, y, estimator)?, on_arrays::cka(ax, ay, estimator)?);
    }
    Ok(())
}

#[test]
fn f64_and_f32() -> Result {
    let (ax, ay) = (array(9, 5, 0.), array(9, 5, 2.));
    let (x, y) = (tensor(&ax)?, tensor(&ay)?);
    agree(&x, &y, ax.view(), ay.view())?;
    let (ax, ay) = (ax.mapv(|x| x as f32), ay.mapv(|y| y as f32));
    agree(&x.to_dtype(DType::F32)?, &y.to_dtype(DType::F32)?, ax.view(), ay.view())
}

/// Multiples of 1/64 below 1 have an exact f16 and bf16.
#[test]
fn half_precision_is_widened_first() -> Result {
    let exact = |x: f64| (x * 64.).round() / 64.;
    let (ax, ay) = (array(9, 5, 0.).mapv(exact), array(9, 5, 2.).mapv(exact));
    for dtype in [DType::F16, DType::BF16] {
        let (x, y) = (tensor(&ax)?.to_dtype(dtype)?, tensor(&ay)?.to_dtype(dtype)?);
        agree(&x, &y, ax.view(), ay.view())?;
    }
    Ok(())
}

#[test]
fn widths_may_differ_for_cka() -> Result {
    let (ax, ay) = (array(9, 5, 0.), array(9, 20, 2.));
    for estimator in ESTIMATORS {
        let want = layerwise_similarity::cka(ax.view(), ay.view(), estimator)?;
        assert_eq!(tensor::cka(&tensor(&ax)?, &tensor(&ay)?, estimator)?, want);
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
    agree(&transposed, &narrowed, ax.view(), ay.view())
}
