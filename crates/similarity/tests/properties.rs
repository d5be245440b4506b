//! What theory promises of the measures, on random representations.

use layerwise_similarity::{
    Centring, Error, Estimator, Measure, cka, cos, cos_per_sample, pairwise, pairwise_between, similarity,
};
use ndarray::{Array1, Array2, Axis, array};
use proptest::{collection::vec, prelude::*};

/// Both sides of each comparison are equal in exact arithmetic; sums of some hundred products of numbers near 1 and the
/// differences in the debiased estimator cost at most 6 of 16 digits.
const TOLERANCE: f64 = 1e-9;
const CENTRINGS: [Centring; 3] = [Centring::Samples, Centring::Features, Centring::None];
const ESTIMATORS: [Estimator; 2] = [Estimator::Biased, Estimator::Debiased];
const MEASURES: [Measure; 5] = [
    Measure::Cos(Centring::Samples),
    Measure::Cos(Centring::Features),
    Measure::Cos(Centring::None),
    Measure::Cka(Estimator::Biased),
    Measure::Cka(Estimator::Debiased),
];

fn matrix(n: usize, width: usize) -> impl Strategy<Value = Array2<f64>> {
    vec(-1f64..1., n * width).prop_map(move |values| {
        Array2::from_shape_vec((n, width), values).expect("as many values as the shape has")
    })
}

/// `(n, d)` and `(n, d')`: fewer and more samples than features.
fn pair() -> impl Strategy<Value = (Array2<f64>, Array2<f64>)> {
    (6usize..14, 2usize..20, 2usize..20).prop_flat_map(|(n, dx, dy)| (matrix(n, dx), matrix(n, dy)))
}

/// Both `(n, d)`.
fn equal_widths() -> impl Strategy<Value = (Array2<f64>, Array2<f64>)> {
    (4usize..14, 2usize..20).prop_flat_map(|(n, d)| (matrix(n, d), matrix(n, d)))
}

fn stack() -> impl Strategy<Value = Vec<Array2<f64>>> {
    (4usize..10, 2usize..14).prop_flat_map(|(n, d)| vec(matrix(n, d), 3..6))
}

/// A rotation: a product of two Householder reflections, of directions that depend on `angle`.
fn rotation(width: usize, angle: f64) -> Array2<f64> {
    let reflection = |phase: f64| {
        let v = Array1::from_shape_fn(width, |i| (angle * (i + 1) as f64 + phase).sin() + 1.5);
        let column = v.view().insert_axis(Axis(1));
        Array2::eye(width) - column.dot(&column.t()) * (2. / v.dot(&v))
    };
    reflection(0.).dot(&reflection(1.))
}

fn close(got: f64, want: f64) -> Result<(), TestCaseError> {
    prop_assert!((got - want).abs() < TOLERANCE, "{got}, want {want}");
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn cka_ignores_rotation_shift_and_scale_of_either((x, y) in pair(), angle in 0f64..6., shift in -5f64..5., scale in 0.1f64..10.) {
        let moved = x.dot(&rotation(x.ncols(), angle)) * scale + shift;
        for estimator in ESTIMATORS {
            let want = cka(&x, &y, estimator)?;
            close(cka(&moved, &y, estimator)?, want)?;
            close(cka(&y, &moved, estimator)?, want)?;
            close(cka(&x, &moved, estimator)?, 1.)?;
        }
    }

    #[test]
    fn cka_is_symmetric_and_1_with_itself((x, y) in pair()) {
        for estimator in ESTIMATORS {
            close(cka(&x, &y, estimator)?, cka(&y, &x, estimator)?)?;
            close(cka(&x, &x, estimator)?, 1.)?;
        }
    }

    #[test]
    fn biased_cka_is_between_0_and_1((x, y) in pair()) {
        for (x, y) in [(&x, &y), (&x, &x)] {
            let value = cka(&x, &y, Estimator::Biased)?;
            prop_assert!((0. ..=1.).contains(&value), "{value}");
        }
    }

    #[test]
    fn cos_ignores_a_common_rotation_and_any_scale((x, y) in equal_widths(), angle in 0f64..6., scale in 0.1f64..10.) {
        let turn = rotation(x.ncols(), angle);
        let (rx, ry) = (x.dot(&turn), y.dot(&turn));
        // A mean over features is not kept by a rotation.
        for centring in [Centring::Samples, Centring::None] {
            close(cos(&rx, &ry, centring)?, cos(&x, &y, centring)?)?;
        }
        for centring in CENTRINGS {
            let want = cos(&x, &y, centring)?;
            close(cos(&(&x * scale), &y, centring)?, want)?;
            close(cos(&x, &(&y * scale), centring)?, want)?;
        }
    }

    #[test]
    fn cos_without_centring_ignores_a_scale_for_each_sample((x, y) in equal_widths(), scales in vec(-30f64..30., 14)) {
        let scales = Array1::from_iter(scales.iter().take(x.nrows()).map(|power| 10f64.powf(*power)));
        let scaled = &x * &scales.insert_axis(Axis(1));
        close(cos(&scaled, &y, Centring::None)?, cos(&x, &y, Centring::None)?)?;
    }

    #[test]
    fn each_cosine_is_between_minus_1_and_1((x, y) in equal_widths()) {
        for centring in CENTRINGS {
            for y in [&y, &x, &-&x] {
                let values = cos_per_sample(&x, &y, centring)?;
                prop_assert!(values.iter().all(|value| (-1. ..=1.).contains(value)), "{values}");
            }
            close(cos(&x, &x, centring)?, 1.)?;
            close(cos(&x, &(-&x), centring)?, -1.)?;
        }
    }

    #[test]
    fn the_order_of_the_samples_is_kept((x, y) in equal_widths(), by in 1usize..4) {
        let n = x.nrows();
        let order: Vec<usize> = (0..n).map(|i| (i + by) % n).collect();
        let (px, py) = (x.select(Axis(0), &order), y.select(Axis(0), &order));
        for centring in CENTRINGS {
            let want = cos_per_sample(&x, &y, centring)?;
            let got = cos_per_sample(&px, &py, centring)?;
            for (&i, &value) in order.iter().zip(&got) {
                close(value, want[i])?;
            }
        }
        for estimator in ESTIMATORS {
            let want = cka(&x, &y, estimator)?;
            close(cka(&px, &py, estimator)?, want)?;
        }
    }

    #[test]
    fn pairwise_is_each_pair_alone(layers in stack()) {
        let (left, right) = layers.split_at(1);
        for measure in MEASURES {
            let all = pairwise(&layers, measure)?;
            prop_assert_eq!(&all, &all.t());
            for ((i, j), &value) in all.indexed_iter() {
                let alone = match measure {
                    Measure::Cos(centring) => cos(&layers[i], &layers[j], centring)?,
                    Measure::Cka(estimator) => cka(&layers[i], &layers[j], estimator)?,
                    other => similarity(&layers[i], &layers[j], other)?,
                };
                close(value, alone)?;
            }
            let between = pairwise_between(left, right, measure)?;
            for (&value, &want) in between.iter().zip(&all.slice(ndarray::s![..1, 1..])) {
                close(value, want)?;
            }
            prop_assert_eq!(pairwise_between(&layers, &layers, measure)?.dim(), all.dim());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4))]

    /// 100 samples, 100 features each, independent: biased `|K L| / (|K| |L|)` is about `d n / (d n + n^2) = 1/2`, debiased
    /// is 0 with a deviation of about `1/n`, of which 10 are allowed.
    #[test]
    fn only_the_debiased_cka_of_independent_representations_is_0((x, y) in (matrix(100, 100), matrix(100, 100))) {
        prop_assert!(cka(&x, &y, Estimator::Debiased)?.abs() < 0.1);
        prop_assert!((cka(&x, &y, Estimator::Biased)? - 0.5).abs() < 0.1);
    }
}

#[test]
fn cos_notices_a_rotation_of_one_side_and_cka_does_not() -> Result<(), Error> {
    let x = array![[1., 0.], [-1., 0.], [0., 1.], [0., -1.]];
    let quarter_turn = x.dot(&array![[0., 1.], [-1., 0.]]);
    for centring in [Centring::Samples, Centring::None] {
        assert_eq!(cos(&x, &quarter_turn, centring)?, 0.);
    }
    assert!((cka(&x, &quarter_turn, Estimator::Biased)? - 1.).abs() < TOLERANCE);
    Ok(())
}
