//! What theory promises of the measures, on random representations. What each does not notice: `invariance.rs`.

mod samples;

use layerwise_similarity::{
    Centring, CosAccumulator, Distance, Error, Estimator, MeanAccumulator, Measure, MomentAccumulator,
    Representation, cka, cos, cos_per_sample, pairwise, pairwise_between, per_sample, procrustes_distance,
    similarity,
};
use ndarray::{Array2, Axis, array, s};
use proptest::{collection::vec, prelude::*};
use samples::{MEASURES, OF_MOMENTS};

/// Both sides of each comparison are equal in exact arithmetic; sums of some hundred products of numbers near 1 and the
/// differences in the debiased estimator cost at most 6 of 16 digits.
const TOLERANCE: f64 = 1e-9;
/// Angles and distances are square roots near 0: half of the 16 digits.
const ROOT_TOLERANCE: f64 = 1e-7;

/// Of layers of unequal widths, too.
fn of_any_widths() -> impl Iterator<Item = Measure> {
    MEASURES.into_iter().filter(|measure| !matches!(measure, Measure::Cos(_) | Measure::AngularDistance(_)))
}

/// Least and largest value, and the value with itself.
fn range(measure: Measure) -> (f64, f64, f64) {
    match measure {
        Measure::AngularDistance(_) => (0., 1., 0.),
        Measure::ProcrustesDistance => (0., 2f64.sqrt(), 0.),
        Measure::Cos(_) | Measure::Pnka | Measure::Rsa(_) => (-1., 1., 1.),
        // Székely and Rizzo (2014): an inner product of U-centred matrices, so that Cauchy and Schwarz bound it.
        Measure::Cka(Estimator::Debiased) | Measure::RbfCka { estimator: Estimator::Debiased, .. } => {
            (-1. - TOLERANCE, 1. + TOLERANCE, 1.)
        }
        _ => (0., 1., 1.),
    }
}

fn matrix(n: usize, width: usize) -> impl Strategy<Value = Array2<f64>> {
    vec(-1f64..1., n * width).prop_map(move |values| {
        Array2::from_shape_vec((n, width), values).expect("as many values as the shape has")
    })
}

/// `(n, d)` and `(n, d')`: fewer and more samples than features.
fn pair() -> impl Strategy<Value = (Array2<f64>, Array2<f64>)> {
    (6usize..14, 3usize..20, 3usize..20).prop_flat_map(|(n, dx, dy)| (matrix(n, dx), matrix(n, dy)))
}

/// Both `(n, d)`.
fn equal_widths() -> impl Strategy<Value = (Array2<f64>, Array2<f64>)> {
    (6usize..14, 3usize..20).prop_flat_map(|(n, d)| (matrix(n, d), matrix(n, d)))
}

fn stack() -> impl Strategy<Value = Vec<Array2<f64>>> {
    (6usize..10, 3usize..14).prop_flat_map(|(n, d)| vec(matrix(n, d), 3..6))
}

/// Each as wide as it likes.
fn mixed_stack() -> impl Strategy<Value = Vec<Array2<f64>>> {
    (6usize..10).prop_flat_map(|n| vec((3usize..14).prop_flat_map(move |d| matrix(n, d)), 3..5))
}

fn close(what: impl std::fmt::Debug, got: f64, want: f64) -> Result<(), TestCaseError> {
    prop_assert!((got - want).abs() < TOLERANCE, "{what:?}: {got}, want {want}");
    Ok(())
}

/// The value of a function of its own, where a measure has one that takes another way than [`similarity`].
fn alone(x: &Array2<f64>, y: &Array2<f64>, measure: Measure) -> Result<f64, Error> {
    match measure {
        Measure::Cos(centring) => Ok(cos_per_sample(x, y, centring)?.mean().expect("samples")),
        other => similarity(x, y, other),
    }
}

fn check_pairwise(layers: &[Array2<f64>], measure: Measure) -> Result<(), TestCaseError> {
    let all = pairwise(layers, measure)?;
    prop_assert_eq!(all.dim(), (layers.len(), layers.len()));
    if measure.is_symmetric() {
        prop_assert_eq!(&all, &all.t());
    }
    for ((i, j), &value) in all.indexed_iter() {
        // The root of what rounding leaves of 0.
        if measure != Measure::ProcrustesDistance || i != j {
            close((measure, i, j), value, alone(&layers[i], &layers[j], measure)?)?;
        }
    }
    let (left, right) = layers.split_at(1);
    for (left, right, part) in [(left, right, s![..1, 1..]), (right, left, s![1.., ..1])] {
        let between = pairwise_between(left, right, measure)?;
        prop_assert_eq!(between.dim(), (left.len(), right.len()));
        for (&value, &want) in between.iter().zip(&all.slice(part)) {
            close((measure, "between"), value, want)?;
        }
    }
    prop_assert_eq!(pairwise_between(layers, layers, measure)?.dim(), all.dim());
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn all_but_pwcca_are_symmetric((x, y) in equal_widths(), (v, w) in pair()) {
        for measure in MEASURES.into_iter().filter(|measure| measure.is_symmetric()) {
            close(measure, similarity(&x, &y, measure)?, similarity(&y, &x, measure)?)?;
        }
        for measure in of_any_widths().filter(|measure| measure.is_symmetric()) {
            close(measure, similarity(&v, &w, measure)?, similarity(&w, &v, measure)?)?;
        }
    }

    /// With its negative, too: the other end of the range for COS.
    #[test]
    fn values_are_in_range((x, y) in equal_widths(), (v, w) in pair()) {
        for measure in MEASURES {
            let (low, high, _) = range(measure);
            let mut pairs = vec![(&x, &y), (&x, &x)];
            let negative = -&x;
            pairs.push((&x, &negative));
            if of_any_widths().any(|other| other == measure) {
                pairs.push((&v, &w));
            }
            for (x, y) in pairs {
                let value = similarity(x, y, measure)?;
                prop_assert!((low..=high).contains(&value), "{measure:?}: {value}");
                if let Ok(values) = per_sample(x, y, measure) {
                    prop_assert!(values.iter().all(|value| (low..=high).contains(value)), "{measure:?}: {values}");
                }
            }
        }
    }

    #[test]
    fn a_representation_is_like_itself((x, _) in pair()) {
        for measure in MEASURES {
            let ((low, high, itself), got) = (range(measure), similarity(&x, &x, measure)?);
            prop_assert!((got - itself).abs() < ROOT_TOLERANCE, "{measure:?}: {got}");
            if let Measure::Cos(_) | Measure::AngularDistance(_) = measure {
                let got = similarity(&x, &(-&x), measure)?;
                let opposite = low + high - itself;
                prop_assert!((got - opposite).abs() < ROOT_TOLERANCE, "{measure:?}: {got} of the opposite");
            }
        }
    }

    #[test]
    fn the_mean_over_samples_is_the_measure((x, y) in equal_widths()) {
        for measure in MEASURES {
            match per_sample(&x, &y, measure) {
                Ok(values) => {
                    prop_assert_eq!(values.len(), x.nrows());
                    close(measure, values.mean().expect("samples"), similarity(&x, &y, measure)?)?;
                }
                Err(error) => prop_assert_eq!(error, Error::Unsupported { measure: measure.name(), what: "value per sample" }),
            }
        }
    }

    /// All that a part of the features holds is in the whole: as many correlations of 1 as the part has directions.
    #[test]
    fn cca_of_a_part_of_the_features_is_1((x, y) in equal_widths(), width in 1usize..3) {
        let part = x.slice(s![.., ..width]);
        let whole = ndarray::concatenate![Axis(1), x, y];
        for measure in [Measure::Cca, Measure::Svcca { variance: 1. }, Measure::Pwcca] {
            close(measure, similarity(&part, &x, measure)?, 1.)?;
            close(measure, similarity(&part, &whole, measure)?, 1.)?;
        }
        close("CCA", similarity(&x, &part, Measure::Cca)?, 1.)?;
    }

    /// The detour over a third representation that lies between the two is hardly longer: the squared distance would fail.
    #[test]
    fn procrustes_distance_is_a_metric((x, y) in equal_widths(), (share, width) in (0.2f64..0.8, 3usize..9)) {
        let between = &x * share + &y * (1. - share);
        let narrow = x.slice(s![.., ..width.min(x.ncols())]);
        let all: [&dyn Representation; 4] = [&x, &y, &between, &narrow];
        for a in all {
            for b in all {
                for c in all {
                    let (ab, bc, ac) =
                        (procrustes_distance(a, b)?, procrustes_distance(b, c)?, procrustes_distance(a, c)?);
                    prop_assert!(ac <= ab + bc + ROOT_TOLERANCE, "{ac} > {ab} + {bc}");
                }
            }
        }
        prop_assert!(procrustes_distance(&x, &y)? > ROOT_TOLERANCE);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(6))]

    #[test]
    fn pairwise_is_each_pair_alone(layers in stack(), mixed in mixed_stack()) {
        for measure in MEASURES {
            check_pairwise(&layers, measure)?;
        }
        for measure in of_any_widths() {
            check_pairwise(&mixed, measure)?;
        }
    }

    /// 100 samples, 100 features each, independent: biased `|K L| / (|K| |L|)` is about `d n / (d n + n^2) = 1/2`, debiased
    /// is 0 with a deviation of about `1/n`, of which 10 are allowed.
    #[test]
    fn only_the_debiased_cka_of_independent_representations_is_0((x, y) in (matrix(100, 100), matrix(100, 100))) {
        prop_assert!(cka(&x, &y, Estimator::Debiased)?.abs() < 0.1);
        prop_assert!((cka(&x, &y, Estimator::Biased)? - 0.5).abs() < 0.1);
    }
}

/// With orthogonal `a`, `b` and `c` the only canonical correlation that is not 0 is that of `a`, 3/4 of `x` and 1/4 of `y`.
#[test]
fn pwcca_is_not_symmetric() -> Result<(), Error> {
    let x = array![[3., 1.], [3., -1.], [-3., 1.], [-3., -1.]]; // 3 a, b
    let y = array![[1., 3.], [1., -3.], [-1., -3.], [-1., 3.]]; // a, 3 c
    let all = pairwise(&[&x, &y], Measure::Pwcca)?;
    assert!((&all - array![[1., 0.75], [0.25, 1.]]).iter().all(|x| x.abs() < TOLERANCE), "{all}");
    for measure in MEASURES {
        assert_eq!(measure.is_symmetric(), measure != Measure::Pwcca);
    }
    Ok(())
}

/// 40 samples, 5 features of single precision around 1e4, which are multiples of 2^-10 there; and the same less 1e4, in f64 and
/// so exact.
fn far_and_near() -> [[Array2<f64>; 2]; 2] {
    let mut state = 1u32;
    let mut random = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        f64::from(state >> 8) / f64::from(1 << 24) * 3. - 1.5
    };
    let x = Array2::from_shape_simple_fn((40, 5), &mut random);
    let y = &x * 0.5 + Array2::from_shape_simple_fn((40, 5), &mut random);
    let far = [x, y].map(|xs| xs.mapv(|x| f64::from((x + 1e4) as f32)));
    let near = far.each_ref().map(|xs| xs - 1e4);
    [far, near]
}

/// Differences of such numbers are exact, so that centring loses nothing. Sums of squares about 0 would cost 8 digits of f64, of
/// fourth powers all 16, and in f32 all 7 would go at once.
const OFFSET_TOLERANCE: f64 = 1e-13;

/// Every measure that ignores a shift: the same number added to all features.
#[test]
fn an_offset_of_1e4_in_f32_costs_no_digits() -> Result<(), Error> {
    let [far, near] = far_and_near();
    let single = far.each_ref().map(|xs| xs.mapv(|x| x as f32));
    let shifts = |measure: &Measure| {
        !matches!(
            measure,
            Measure::Cos(Centring::None)
                | Measure::AngularDistance(Centring::None)
                | Measure::Rsa(Distance::Cosine)
                | Measure::MutualKnn { .. }
        )
    };
    for measure in MEASURES.into_iter().filter(shifts) {
        let want = similarity(&near[0], &near[1], measure)?;
        let got = similarity(&single[0], &single[1], measure)?;
        assert!((got - want).abs() < OFFSET_TOLERANCE, "{measure:?}: {got}, want {want}");
    }
    Ok(())
}

#[test]
fn accumulators_of_an_offset_of_1e4_in_f32_lose_no_digits() -> Result<(), Error> {
    let [far, near] = far_and_near();
    let single = far.each_ref().map(|xs| xs.mapv(|x| x as f32));
    let batches = || (0..40).step_by(8).map(|i| single.each_ref().map(|xs| xs.slice(s![i..i + 8, ..])));
    let widths = [5, 5];

    // One for all, and one for each batch, merged: each has its own point about which it sums.
    let mut moments = MomentAccumulator::new(&widths)?;
    let (mut merged, mut means) = (MomentAccumulator::new(&widths)?, MeanAccumulator::new(&widths)?);
    let mut merged_means = MeanAccumulator::new(&widths)?;
    for batch in batches() {
        moments.push(&batch)?;
        let mut part = MomentAccumulator::new(&widths)?;
        part.push(&batch)?;
        merged.merge(MomentAccumulator::from_bytes(&part.to_bytes()?)?)?;
        means.push(&batch)?;
        let mut part = MeanAccumulator::new(&widths)?;
        part.push(&batch)?;
        merged_means.merge(MeanAccumulator::from_bytes(&part.to_bytes())?)?;
    }
    for measure in OF_MOMENTS {
        let want = pairwise(&near, measure)?[[0, 1]];
        for found in [moments.pairwise(measure)?, merged.pairwise(measure)?] {
            assert!((found[[0, 1]] - want).abs() < OFFSET_TOLERANCE, "{measure:?}: {found}, want {want}");
        }
    }

    for means in [&means, &merged_means] {
        for (found, near) in means.means().iter().zip(&near) {
            let want = near.mean_axis(Axis(0)).expect("samples") + 1e4;
            // 12 digits.
            assert!((found - want).iter().all(|x| x.abs() < 1e-8));
        }
    }
    let mut cosines = CosAccumulator::centred(means)?;
    let mut by_features = CosAccumulator::uncentred(2, 5, Centring::Features)?;
    for batch in batches() {
        cosines.push(&batch)?;
        by_features.push(&batch)?;
    }
    for (accumulator, centring) in [(&cosines, Centring::Samples), (&by_features, Centring::Features)] {
        let (got, want) = (accumulator.pairwise()?[[0, 1]], cos(&near[0], &near[1], centring)?);
        assert!((got - want).abs() < OFFSET_TOLERANCE, "{centring:?}: {got}, want {want}");
    }
    Ok(())
}
