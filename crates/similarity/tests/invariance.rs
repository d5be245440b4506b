//! What each measure does not notice, as its documentation declares, and that it notices everything else.

use std::f64::consts::TAU;

use layerwise_similarity::{
    Centring, ClassAccumulator, Collapse, Distance, Error, Estimator, Measure, block_influence,
    block_relations, cka, cos, neural_collapse, pca, per_sample, rsa, similarity,
};
use ndarray::{Array1, Array2, ArrayView1, Axis, array};
use proptest::{collection::vec, prelude::*};

/// Both sides of each comparison are equal in exact arithmetic. Sums of some hundred products of numbers near 1, differences in the
/// debiased estimator and matrices that are inverted (condition numbers below 1e3) cost at most 7 of 16 digits.
const TOLERANCE: f64 = 1e-9;

/// What is done to representations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    Rotation,
    CommonRotation,
    Scale,
    Shift,
    LinearMap,
    /// Another positive factor for each sample.
    SampleScale,
    /// Another number for each sample, added to all its features.
    SampleShift,
}
use Change::*;

/// The columns of [`TABLE`].
const CHANGES: [Change; 7] = [Rotation, CommonRotation, Scale, Shift, LinearMap, SampleScale, SampleShift];

/// `x`: unchanged, whichever side is changed. `y`: unchanged when the second is changed, not when the first is. `.`: changed.
#[rustfmt::skip]
const TABLE: [(Measure, &str); 20] = [
    //                                            turn  both  scale shift map  each scaled, shifted
    (Measure::Cos(Centring::Samples),               ".    x     x     x    .    .    ."),
    (Measure::Cos(Centring::Features),              ".    .     x     .    .    x    x"),
    (Measure::Cos(Centring::None),                  ".    x     x     .    .    x    ."),
    (Measure::AngularDistance(Centring::Samples),   ".    x     x     x    .    .    ."),
    (Measure::AngularDistance(Centring::Features),  ".    .     x     .    .    x    x"),
    (Measure::AngularDistance(Centring::None),      ".    x     x     .    .    x    ."),
    (Measure::Cka(Estimator::Biased),               "x    x     x     x    .    .    ."),
    (Measure::Cka(Estimator::Debiased),             "x    x     x     x    .    .    ."),
    (RBF_BIASED,                                    "x    x     x     x    .    .    ."),
    (RBF_DEBIASED,                                  "x    x     x     x    .    .    ."),
    (Measure::Cca,                                  "x    x     x     x    x    .    ."),
    (Measure::Svcca { variance: 0.8 },              "x    x     x     x    .    .    ."),
    (Measure::Pwcca,                                "y    .     x     x    y    .    ."),
    (Measure::Procrustes,                           "x    x     x     x    .    .    ."),
    (Measure::ProcrustesDistance,                   "x    x     x     x    .    .    ."),
    (Measure::Pnka,                                 "x    x     x     x    .    .    ."),
    (Measure::Rsa(Distance::Correlation),           ".    .     x     .    .    x    x"),
    (Measure::Rsa(Distance::Euclidean),             "x    x     x     x    .    .    ."),
    (Measure::Rsa(Distance::Cosine),                "x    x     x     .    .    x    ."),
    (Measure::MutualKnn { neighbours: 3 },          "x    x     x     .    .    x    ."),
];
const RBF_BIASED: Measure = Measure::RbfCka { estimator: Estimator::Biased, bandwidth: 0.8 };
const RBF_DEBIASED: Measure = Measure::RbfCka { estimator: Estimator::Debiased, bandwidth: 0.8 };

/// Each measure with each change and whether the measure ignores it on the first, on the second side.
fn table() -> impl Iterator<Item = (Measure, Change, [bool; 2])> {
    TABLE.iter().flat_map(|&(measure, row)| {
        CHANGES
            .iter()
            .zip(row.split_whitespace())
            .map(move |(&change, cell)| (measure, change, [cell == "x", cell == "x" || cell == "y"]))
    })
}

impl Change {
    fn of(self, xs: &Array2<f64>, angle: f64) -> Array2<f64> {
        let (n, width) = xs.dim();
        let wave = |len, phase: f64| Array1::from_shape_fn(len, |i| (angle + phase + 2.3 * i as f64).sin());
        match self {
            Rotation | CommonRotation => xs.dot(&rotation(width, angle)),
            Scale => xs * (angle - 3.).exp(),
            Shift => xs + wave(width, 0.5) * 3.,
            LinearMap => {
                // Stretches from 1 to 4 between two rotations.
                let stretch = Array1::linspace(1., 4., width);
                (xs.dot(&rotation(width, angle)) * stretch).dot(&rotation(width, angle + 1.))
            }
            SampleScale => xs * wave(n, 1.5).mapv(f64::exp).insert_axis(Axis(1)),
            SampleShift => xs + wave(n, 2.5).insert_axis(Axis(1)),
        }
    }

    /// Both pairs that result from `x` and `y`: with the first, with the second changed.
    fn of_either(self, x: &Array2<f64>, y: &Array2<f64>, angle: f64) -> [[Array2<f64>; 2]; 2] {
        let (moved_x, moved_y) = (self.of(x, angle), self.of(y, angle));
        match self {
            CommonRotation => [[moved_x.clone(), moved_y.clone()], [moved_x, moved_y]],
            _ => [[moved_x, y.clone()], [x.clone(), moved_y]],
        }
    }
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

fn needs_equal_widths(measure: Measure) -> bool {
    matches!(measure, Measure::Cos(_) | Measure::AngularDistance(_))
}

fn matrix(n: usize, width: usize) -> impl Strategy<Value = Array2<f64>> {
    vec(-1f64..1., n * width).prop_map(move |values| {
        Array2::from_shape_vec((n, width), values).expect("as many values as the shape has")
    })
}

/// `(n, d)`, `(n, d)` and `(n, d')`: far more or far fewer samples than features, so that what is inverted is well conditioned.
///
/// RSA and mutual k-NN jump where distances overtake each other. In numbers drawn from an interval two of some thousand distances
/// differ by less than rounding once in a billion cases.
fn representations() -> impl Strategy<Value = [Array2<f64>; 3]> {
    let width = |n: usize| prop_oneof![3..n / 3, 2 * n..3 * n];
    (12usize..18).prop_flat_map(move |n| (Just(n), width(n), width(n))).prop_flat_map(|(n, d, other)| {
        (matrix(n, d), matrix(n, d), matrix(n, other)).prop_map(|(x, y, z)| [x, y, z])
    })
}

/// Two fixed representations of 12 samples, 4 features each, that have something in common.
fn fixed() -> [Array2<f64>; 2] {
    let x = Array2::from_shape_fn((12, 4), |(i, j)| ((i * i * (j + 1) + 3 * j) as f64 * 0.7).sin() + 0.2);
    let noise = Array2::from_shape_fn((12, 4), |(i, j)| ((5 * i + i * j * j) as f64 * 1.3).cos());
    let y = &x * array![1., 0.5, 2., 1.] + noise * 0.6 + 0.3;
    [x, y]
}

fn close(what: impl std::fmt::Debug, got: f64, want: f64) -> Result<(), TestCaseError> {
    let bound = TOLERANCE * want.abs().max(1.);
    prop_assert!((got - want).abs() < bound, "{what:?}: {got}, want {want}");
    Ok(())
}

fn all_close<'a>(
    what: &str,
    got: impl IntoIterator<Item = &'a f64>,
    want: impl IntoIterator<Item = &'a f64>,
) -> Result<(), TestCaseError> {
    got.into_iter().zip(want).try_for_each(|(got, want)| close(what, *got, *want))
}

fn differ(what: &str, got: ArrayView1<'_, f64>, want: ArrayView1<'_, f64>) {
    assert!((&got - &want).iter().all(|x| x.abs() > 1e-3), "{what}: {got} is too close to {want}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn each_measure_ignores_what_its_row_says([x, y, z] in representations(), angle in 0f64..TAU) {
        for (measure, change, ignores) in table().filter(|(.., ignores)| ignores[1]) {
            let other = if needs_equal_widths(measure) || change == CommonRotation { &y } else { &z };
            let want = similarity(&x, other, measure)?;
            for ([left, right], ignores) in change.of_either(&x, other, angle).iter().zip(ignores) {
                if ignores {
                    close((measure, change), similarity(left, right, measure)?, want)?;
                }
            }
        }
    }

    #[test]
    fn the_order_of_the_samples_is_kept([x, y, _] in representations(), by in 1usize..11) {
        let n = x.nrows();
        let order: Vec<usize> = (0..n).map(|i| (n + by - i) % n).collect();
        let (px, py) = (x.select(Axis(0), &order), y.select(Axis(0), &order));
        for (measure, _) in TABLE {
            close(measure, similarity(&px, &py, measure)?, similarity(&x, &y, measure)?)?;
            if let Ok(want) = per_sample(&x, &y, measure) {
                let got = per_sample(&px, &py, measure)?;
                all_close(measure.name(), &got, &want.select(Axis(0), &order))?;
            }
        }
    }

    #[test]
    fn cos_without_centring_ignores_a_scale_for_each_sample([x, y, _] in representations(), powers in vec(-30f64..30., 18)) {
        let scales = Array1::from_iter(powers.iter().take(x.nrows()).map(|power| 10f64.powf(*power)));
        let scaled = &x * &scales.insert_axis(Axis(1));
        close("cos", cos(&scaled, &y, Centring::None)?, cos(&x, &y, Centring::None)?)?;
    }

    #[test]
    fn collapse_ignores_rotation_scale_shift_and_order([x, ..] in representations(), angle in 0f64..TAU) {
        let labels = labels(x.nrows());
        let (want, weights) = (neural_collapse(&x, &labels, 3)?, x.slice(ndarray::s![..3, ..]));
        let want3 = nc3(&x, &weights.to_owned())?;
        for change in [Rotation, Scale, Shift] {
            let moved = change.of(&x, angle);
            all_close("collapse", &numbers(neural_collapse(&moved, &labels, 3)?), &numbers(want))?;
            let turned = if change == Rotation { change.of(&weights.to_owned(), angle) } else { weights.to_owned() };
            close(("nc3", change), nc3(&moved, &turned)?, want3)?;
        }
        close("scale of the weights", nc3(&x, &(&weights * 7.))?, want3)?;
        let order: Vec<usize> = (0..x.nrows()).rev().collect();
        let permuted: Vec<usize> = order.iter().map(|&i| labels[i]).collect();
        let got = neural_collapse(&x.select(Axis(0), &order), &permuted, 3)?;
        all_close("order", &numbers(got), &numbers(want))?;
    }

    /// Coordinates are those of the same points up to the sign of each direction. Two variances as near as 1e-6 of each other,
    /// where directions lose the digits that are allowed here, are as good as never drawn.
    #[test]
    fn principal_components_move_with_the_points([x, ..] in representations(), angle in 0f64..TAU) {
        let want = pca(&x, 2)?;
        let coordinates = want.project(&x)?.mapv(f64::abs);
        let order: Vec<usize> = (0..x.nrows()).rev().collect();
        let same = pca(&x.select(Axis(0), &order), 2)?;
        all_close("order", &same.variances, &want.variances)?;
        all_close("order", &same.mean, &want.mean)?;
        for change in [Rotation, Scale, Shift] {
            let (moved, stretch) = (change.of(&x, angle), if change == Scale { (angle - 3.).exp() } else { 1. });
            let got = pca(&moved, 2)?;
            all_close("shares", &got.variances, &want.variances)?;
            let mean = change.of(&want.mean.clone().insert_axis(Axis(0)), angle);
            all_close("mean", &got.mean, &mean)?;
            for (got, want) in got.project(&moved)?.iter().zip(&coordinates) {
                prop_assert!((got.abs() / stretch - want).abs() < 1e-6, "{change:?}: {got}, want {want}");
            }
        }
    }

    #[test]
    fn blocks_ignore_a_common_rotation_and_scale([x, y, _] in representations(), angle in 0f64..TAU) {
        let all = |change: Change| [change.of(&x, angle), change.of(&y, angle)];
        for centring in [Centring::Samples, Centring::Features, Centring::None] {
            let want = blocks(&[x.clone(), y.clone()], centring)?;
            let mut ignored = vec![all(Scale)];
            if centring != Centring::Features {
                ignored.push(all(Rotation));
            }
            if centring == Centring::Samples {
                ignored.extend([[Shift.of(&x, angle), y.clone()], [x.clone(), Shift.of(&y, angle)]]);
            }
            for layers in ignored {
                all_close("block relations", &blocks(&layers, centring)?, &want)?;
            }
        }
        let want = block_influence(&[&x, &y])?;
        for layers in [all(Rotation), [SampleScale.of(&x, angle), y.clone()], [x.clone(), SampleScale.of(&y, angle)]] {
            all_close("block influence", &block_influence(&layers)?, &want)?;
        }
    }
}

/// Class of each sample: all of three classes, not equally often.
fn labels(n: usize) -> Vec<usize> {
    (0..n).map(|i| [0, 1, 2, 0][i % 4]).collect()
}

fn numbers(collapse: Collapse) -> Array1<f64> {
    array![collapse.nc1, collapse.nc2_norms, collapse.nc2_angles]
}

fn nc3(x: &Array2<f64>, weights: &Array2<f64>) -> Result<f64, Error> {
    let mut classes = ClassAccumulator::new(x.ncols(), 3)?;
    classes.push(x, &labels(x.nrows()))?;
    classes.nc3(weights.view())
}

fn blocks(layers: &[Array2<f64>; 2], centring: Centring) -> Result<Array1<f64>, Error> {
    let found = block_relations(layers, centring)?;
    Ok(array![found.adjacent_cos[0], found.norm_ratio[0], found.branch_cos[0]])
}

/// The other half of the table. Mutual k-NN moves in steps of `1 / (n k)`, 1/36 here.
#[test]
fn each_measure_notices_what_its_row_does_not_say() -> Result<(), Error> {
    let [x, y] = fixed();
    for (measure, change, ignores) in table() {
        let before = similarity(&x, &y, measure)?;
        for ([left, right], ignores) in change.of_either(&x, &y, 2.).iter().zip(ignores) {
            let moved = (similarity(left, right, measure)? - before).abs();
            assert!(ignores || moved > 1e-3, "{measure:?} moves by {moved} with {change:?}");
            assert!(!ignores || moved < TOLERANCE, "{measure:?} moves by {moved} with {change:?}");
        }
    }
    Ok(())
}

#[test]
fn each_measure_notices_that_samples_of_one_side_change_places() -> Result<(), Error> {
    let [x, y] = fixed();
    let order: Vec<usize> = (0..12).map(|i| (i + 1) % 12).collect();
    for (measure, _) in TABLE {
        let before = similarity(&x, &y, measure)?;
        for (left, right) in [(&x.select(Axis(0), &order), &y), (&x, &y.select(Axis(0), &order))] {
            let moved = (similarity(left, right, measure)? - before).abs();
            assert!(moved > 1e-3, "{measure:?} moves by {moved}");
        }
    }
    Ok(())
}

#[test]
fn collapse_notices_all_else() -> Result<(), Error> {
    let [x, y] = fixed();
    let labels = labels(12);
    let want = numbers(neural_collapse(&x, &labels, 3)?);
    for change in [LinearMap, SampleScale, SampleShift] {
        let got = numbers(neural_collapse(&change.of(&x, 2.), &labels, 3)?);
        differ(&format!("{change:?}"), got.view(), want.view());
    }
    let weights = y.slice(ndarray::s![..3, ..]).to_owned();
    let want = array![nc3(&x, &weights)?];
    for change in [Rotation, LinearMap, SampleScale, SampleShift] {
        differ(&format!("NC3, {change:?}"), array![nc3(&change.of(&x, 2.), &weights)?].view(), want.view());
    }
    for change in [Rotation, Shift, LinearMap] {
        let weights = change.of(&weights, 2.);
        differ(&format!("weights, {change:?}"), array![nc3(&x, &weights)?].view(), want.view());
    }
    Ok(())
}

#[test]
fn principal_components_notice_a_linear_map() -> Result<(), Error> {
    let [x, _] = fixed();
    let want = pca(&x, 4)?.variances;
    for change in [LinearMap, SampleScale, SampleShift] {
        differ("shares", pca(&change.of(&x, 2.), 4)?.variances.view(), want.view());
    }
    Ok(())
}

#[test]
fn blocks_notice_all_else() -> Result<(), Error> {
    let [x, y] = fixed();
    for centring in [Centring::Samples, Centring::Features, Centring::None] {
        let want = blocks(&[x.clone(), y.clone()], centring)?;
        let mut noticed = vec![(Rotation, [Rotation.of(&x, 2.), y.clone()])];
        if centring == Centring::Features {
            noticed.push((CommonRotation, [Rotation.of(&x, 2.), Rotation.of(&y, 2.)]));
        }
        if centring != Centring::Samples {
            noticed.push((Shift, [Shift.of(&x, 2.), y.clone()]));
        }
        for (change, layers) in noticed {
            let got = blocks(&layers, centring)?;
            differ(&format!("{centring:?}, {change:?}"), got.view(), want.view());
        }
        // A branch is a difference: the scale of one layer matters to it, and not to the angle of the two.
        let got = blocks(&[&x * 3., y.clone()], centring)?;
        assert!((got[0] - want[0]).abs() < TOLERANCE);
        differ(&format!("{centring:?}, scale"), got.slice(ndarray::s![1..]), want.slice(ndarray::s![1..]));
    }
    let want = block_influence(&[&x, &y])?;
    for change in [Rotation, Shift, LinearMap, SampleShift] {
        let got = block_influence(&[&change.of(&x, 2.), &y])?;
        differ(&format!("influence, {change:?}"), got.view(), want.view());
    }
    Ok(())
}

/// Samples in the same direction: each as far from all others as the other one, whatever its length. In floating point the two
/// distances differ in their last digits, which is no reason to rank one before the other.
#[test]
fn rsa_shares_ranks_of_distances_that_are_equal_but_for_rounding() -> Result<(), Error> {
    let rays =
        [[1., 2., 4.], [3., 1., 1.], [1., 2., 4.], [5., 1., 2.], [1., 2., 4.], [3., 1., 1.], [0., 1., 7.]];
    let (x, y) = (ndarray::arr2(&rays), fixed()[1].slice(ndarray::s![..7, ..]).to_owned());
    for (distance, change) in [
        (Distance::Correlation, SampleScale),
        (Distance::Correlation, SampleShift),
        (Distance::Cosine, SampleScale),
    ] {
        let (got, want) = (rsa(&change.of(&x, 2.), &y, distance)?, rsa(&x, &y, distance)?);
        assert!((got - want).abs() < TOLERANCE, "{distance:?}, {change:?}: {got}, want {want}");
    }
    Ok(())
}

/// A right angle has cosine 0, to the last bit.
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
