//! What cannot be measured is a typed error with one clear line, never a panic and never a NaN.

use layerwise_similarity::{
    Centring, Error, Estimator, Measure, Result, cka, cos, cos_per_sample, pairwise, pairwise_between,
};
use ndarray::{Array2, ArrayView2};

const CENTRINGS: [Centring; 3] = [Centring::Samples, Centring::Features, Centring::None];
const ESTIMATORS: [Estimator; 2] = [Estimator::Biased, Estimator::Debiased];

/// Different for each sample.
fn good(n: usize, width: usize) -> Array2<f64> {
    Array2::from_shape_fn((n, width), |(i, j)| ((i * 3 + j * 5) as f64).sin())
}

/// The error of every measure of a pair.
fn errors(x: &Array2<f64>, y: &Array2<f64>) -> Vec<Error> {
    let cosines = CENTRINGS.iter().map(|&centring| cos(&x, &y, centring));
    let ckas = ESTIMATORS.iter().map(|&estimator| cka(&x, &y, estimator));
    cosines.chain(ckas).map(|result| result.expect_err("no error")).collect()
}

fn all_are(want: &Error, x: &Array2<f64>, y: &Array2<f64>) {
    for error in errors(x, y) {
        assert_eq!(&error, want);
        assert_eq!(error.to_string().lines().count(), 1);
    }
}

#[test]
fn numbers_of_rows_that_differ() {
    let want = Error::Rows { left: 6, right: 5 };
    all_are(&want, &good(6, 3), &good(5, 3));
    let text = "representations have 6 and 5 rows; they must describe the same samples";
    assert_eq!(want.to_string(), text);
}

#[test]
fn widths_that_differ_have_no_cosine() {
    for centring in CENTRINGS {
        let error = cos_per_sample(&good(6, 3), &good(6, 4), centring).unwrap_err();
        assert_eq!(error, Error::Widths { left: 3, right: 4 });
        assert_eq!(error.to_string(), "representations are 3 and 4 wide; this measure needs equal widths");
    }
}

#[test]
fn too_few_samples() -> Result<()> {
    for (n, estimator, needed) in [
        (0, Estimator::Biased, 2),
        (1, Estimator::Biased, 2),
        (0, Estimator::Debiased, 4),
        (3, Estimator::Debiased, 4),
    ] {
        let error = cka(&good(n, 2), &good(n, 2), estimator).unwrap_err();
        assert_eq!(error, Error::Samples { samples: n, needed });
    }
    let error = cos(&good(0, 2), &good(0, 2), Centring::None).unwrap_err();
    assert_eq!(error.to_string(), "0 samples; this measure needs at least 1");
    // The least that will do.
    assert!((cka(&good(2, 2), &good(2, 2), Estimator::Biased)? - 1.).abs() < 1e-14);
    assert!((cka(&good(4, 2), &good(4, 2), Estimator::Debiased)? - 1.).abs() < 1e-14);
    assert!((cos(&good(1, 2), &good(1, 2), Centring::None)? - 1.).abs() < 1e-14);
    Ok(())
}

#[test]
fn a_width_of_0() {
    all_are(&Error::Width, &good(5, 0), &good(5, 0));
}

#[test]
fn the_place_of_a_value_that_is_not_finite() {
    for value in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        let mut x = good(6, 3);
        x[[4, 1]] = value;
        let want = Error::NotFinite { row: 4, column: 1 };
        all_are(&want, &x, &good(6, 3));
        all_are(&want, &good(6, 3), &x);
        assert_eq!(want.to_string(), "row 4, column 1 is not finite");
    }
}

/// 0.1 has no exact sum: a constant must be noticed although its mean is rounded.
#[test]
fn a_constant_representation() -> Result<()> {
    for value in [0., 0.1, 1e5 / 3., -1e300] {
        let constant = Array2::from_elem((7, 3), value);
        for estimator in ESTIMATORS {
            for (x, y) in [(&constant, &good(7, 3)), (&good(7, 3), &constant), (&constant, &constant)] {
                let error = cka(x, y, estimator).unwrap_err();
                assert_eq!(error, Error::Degenerate { spread: 0. });
                assert!(error.to_string().contains("does not tell samples apart"), "{error}");
            }
        }
        assert_eq!(cos(&constant, &good(7, 3), Centring::Samples)?, 0.);
    }
    Ok(())
}

#[test]
fn a_stack_without_layers() {
    let (none, one) = ([] as [ArrayView2<'_, f64>; 0], good(5, 2));
    for measure in [Measure::Cos(Centring::None), Measure::Cka(Estimator::Biased)] {
        let want = Err(Error::TooFewLayers { found: 0, needed: 1 });
        assert_eq!(pairwise(&none, measure), want);
        assert_eq!(pairwise_between(&none, &[&one], measure), want);
        assert_eq!(pairwise_between(&[&one], &none, measure), want);
    }
}

#[test]
fn the_first_bad_layer_of_a_stack_is_named() {
    let (fine, wide, short, mut broken) = (good(6, 3), good(6, 4), good(5, 3), good(6, 3));
    broken[[2, 0]] = f64::NAN;
    let constant = Array2::ones((6, 3));
    let (cos, cka) = (Measure::Cos(Centring::Samples), Measure::Cka(Estimator::Debiased));
    let cases = [
        (cos, &broken, Error::NotFinite { row: 2, column: 0 }),
        (cka, &broken, Error::NotFinite { row: 2, column: 0 }),
        (cos, &short, Error::Rows { left: 6, right: 5 }),
        (cka, &short, Error::Rows { left: 6, right: 5 }),
        (cos, &wide, Error::Widths { left: 3, right: 4 }),
        (cka, &constant, Error::Degenerate { spread: 0. }),
    ];
    for (measure, bad, source) in cases {
        let want = Error::Layer { layer: 2, source: Box::new(source.clone()) };
        assert_eq!(want.to_string(), format!("layer 2: {source}"));
        let stack = [&fine, &fine, bad, bad];
        assert_eq!(pairwise(&stack, measure), Err(want.clone()));
        assert_eq!(pairwise_between(&stack[..2], &stack[2..], measure), Err(want));
    }
}

#[cfg(feature = "candle")]
#[test]
fn tensors_that_are_no_float_matrices() -> std::result::Result<(), Box<dyn std::error::Error>> {
    use candle_core::{DType, Device::Cpu, Tensor};

    let fine = Tensor::ones((5, 2), DType::F32, &Cpu)?;
    let integers = Tensor::ones((5, 2), DType::U32, &Cpu)?;
    let cube = Tensor::ones((5, 2, 3), DType::F32, &Cpu)?;
    let error = cos(&fine, &integers, Centring::None).unwrap_err();
    let text = "tensor of shape [5, 2] and type u32; expected a float matrix (samples, width)";
    assert_eq!(error.to_string(), text);
    let error = cka(&cube, &fine, Estimator::Biased).unwrap_err();
    let text = "tensor of shape [5, 2, 3] and type f32; expected a float matrix (samples, width)";
    assert_eq!(error.to_string(), text);

    let measure = Measure::Cos(Centring::None);
    let stack = [fine.clone(), fine, cube];
    assert_eq!(pairwise(&stack, measure).unwrap_err().to_string(), format!("layer 2: {text}"));
    let between = pairwise_between(&stack[..2], &stack[2..], measure).unwrap_err();
    assert_eq!(between.to_string(), format!("layer 2: {text}"));
    assert_eq!(pairwise::<Tensor>(&[], measure), Err(Error::TooFewLayers { found: 0, needed: 1 }));
    Ok(())
}
