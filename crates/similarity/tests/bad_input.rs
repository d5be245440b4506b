//! What cannot be measured is a typed error with one clear line, never a panic and never a NaN.

mod samples;

use std::fmt::Debug;

use layerwise_similarity::{
    Centring, ClassAccumulator, Collapse, CosAccumulator, Distance, Error, Estimator, MeanAccumulator,
    Measure, MomentAccumulator, ProbeConfig, Result, block_influence, block_relations, cka, class_means, cos,
    cos_per_sample, fit_probe, neural_collapse, pairwise, pairwise_between, pca, per_sample, quantiles,
    saturation, similarity,
};
use ndarray::{Array2, ArrayView2, array, s};
use samples::{MEASURES, OF_MOMENTS, good};

const CENTRINGS: [Centring; 3] = [Centring::Samples, Centring::Features, Centring::None];
const ESTIMATORS: [Estimator; 2] = [Estimator::Biased, Estimator::Debiased];

fn all_are(want: &Error, x: &Array2<f64>, y: &Array2<f64>) {
    for measure in MEASURES {
        let error = similarity(x, y, measure).expect_err(measure.name());
        assert_eq!(&error, want, "{measure:?}");
        assert_eq!(error.to_string().lines().count(), 1);
        let each = per_sample(x, y, measure).expect_err(measure.name());
        assert!(&each == want || matches!(each, Error::Unsupported { .. }), "{measure:?}: {each}");
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
fn only_cosines_need_equal_widths() {
    for measure in MEASURES {
        let result = similarity(&good(6, 3), &good(6, 4), measure);
        if let Measure::Cos(centring) | Measure::AngularDistance(centring) = measure {
            let want = Error::Widths { left: 3, right: 4 };
            assert_eq!(result, Err(want.clone()));
            assert_eq!(cos_per_sample(&good(6, 3), &good(6, 4), centring), Err(want.clone()));
            let text = "representations are 3 and 4 wide; this measure needs equal widths";
            assert_eq!(want.to_string(), text);
        } else {
            assert!(result.is_ok_and(f64::is_finite), "{measure:?}");
        }
    }
}

#[test]
fn too_few_samples() -> Result<()> {
    for measure in MEASURES {
        let needed = match measure {
            Measure::Cos(_) | Measure::AngularDistance(_) => 1,
            Measure::Cka(Estimator::Debiased) | Measure::RbfCka { estimator: Estimator::Debiased, .. } => 4,
            Measure::Rsa(_) => 3,
            Measure::MutualKnn { neighbours } => neighbours + 1,
            _ => 2,
        };
        for samples in 0..needed {
            let error = similarity(&good(samples, 3), &good(samples, 3), measure).unwrap_err();
            assert_eq!(error, Error::Samples { samples, needed }, "{measure:?}");
        }
        // The least that will do.
        assert!(similarity(&good(needed, 3), &good(needed, 3), measure)?.is_finite(), "{measure:?}");
    }
    let error = cos(&good(0, 2), &good(0, 2), Centring::None).unwrap_err();
    assert_eq!(error.to_string(), "0 samples; this measure needs at least 1");
    for estimator in ESTIMATORS {
        assert!((cka(&good(4, 2), &good(4, 2), estimator)? - 1.).abs() < 1e-14);
    }
    Ok(())
}

#[test]
fn a_width_of_0() {
    all_are(&Error::Width, &good(5, 0), &good(5, 0));
    all_are(&Error::Width, &good(5, 2), &good(5, 0));
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
        let labels = [0, 0, 1, 1, 0, 1];
        assert_eq!(neural_collapse(&x, &labels, 2), Err(want.clone()));
        assert_eq!(class_means(&x, &labels, 2), Err(want.clone()));
        assert_eq!(fit_probe(&x, &labels, 2, &ProbeConfig::default()).unwrap_err(), want);
        assert_eq!(pca(&x, 1), Err(want.clone()));
        let layer = Error::Layer { layer: 1, source: Box::new(want) };
        assert_eq!(block_influence(&[good(6, 3), x]).unwrap_err(), layer);
    }
    // Rows are read in pieces; they are counted from the first.
    let mut long = good(3000, 2);
    long[[2900, 1]] = f64::NAN;
    let want = Error::NotFinite { row: 2900, column: 1 };
    for measure in [Measure::Cos(Centring::None), Measure::Cka(Estimator::Biased), Measure::Cca] {
        assert_eq!(similarity(&long, &good(3000, 2), measure), Err(want.clone()));
    }
    let labels: Vec<usize> = (0..3000).map(|i| i % 2).collect();
    assert_eq!(neural_collapse(&long, &labels, 2), Err(want.clone()));
    assert_eq!(class_means(&long, &labels, 2), Err(want));
}

/// 0.1 has no exact sum: a constant must be noticed although its mean is rounded.
#[test]
fn a_constant_representation() -> Result<()> {
    for value in [0., 0.1, 1e5 / 3., -1e300] {
        let (constant, good) = (Array2::from_elem((7, 3), value), good(7, 3));
        for measure in MEASURES {
            for (x, y) in [(&constant, &good), (&good, &constant), (&constant, &constant)] {
                let result = similarity(x, y, measure);
                match measure {
                    // No direction is left: at a right angle to everything.
                    Measure::Cos(Centring::Samples | Centring::Features) => assert_eq!(result?, 0.),
                    Measure::AngularDistance(Centring::Samples | Centring::Features) => {
                        assert_eq!(result?, 0.5)
                    }
                    // One direction for all samples.
                    Measure::Cos(Centring::None) | Measure::AngularDistance(Centring::None) => {
                        assert!(result?.is_finite())
                    }
                    _ => {
                        let error = result.unwrap_err();
                        assert_eq!(error, Error::Degenerate { spread: 0. }, "{measure:?}");
                        assert!(error.to_string().contains("does not tell samples apart"), "{error}");
                    }
                }
            }
        }
        assert_eq!(pca(&constant, 1), Err(Error::Degenerate { spread: 0. }));
        let collapse = neural_collapse(&constant, &[0, 1, 0, 1, 0, 1, 0], 2);
        assert!(matches!(collapse, Err(Error::Degenerate { .. })), "{collapse:?}");
    }
    Ok(())
}

/// Of one side: the other one is fine. Each representation is finite; whatever comes of it is in range or a typed error.
#[test]
fn nasty_representations_give_no_nan() {
    let mut failures = Vec::new();
    for (name, x) in nasty() {
        let (n, width) = x.dim();
        let fine = good(n, width);
        for measure in MEASURES {
            let low = match measure {
                Measure::Cos(_) | Measure::Pnka | Measure::Rsa(_) => -1.,
                Measure::Cka(Estimator::Debiased)
                | Measure::RbfCka { estimator: Estimator::Debiased, .. } => -1. - 1e-9,
                _ => 0.,
            };
            for (x, y) in [(&x, &fine), (&fine, &x), (&x, &x)] {
                if let Ok(value) = similarity(x, y, measure)
                    && !(low..=1.5).contains(&value)
                {
                    failures.push(format!("{name}, {measure:?}: {value}"));
                }
                if let Ok(values) = per_sample(x, y, measure)
                    && !values.iter().all(|value| (low..=1.).contains(value))
                {
                    failures.push(format!("{name}, {measure:?}: {values}"));
                }
            }
        }
        match nasty_elsewhere(&x, &fine) {
            Ok(found) => failures.extend(found.into_iter().map(|what| format!("{name}, {what}"))),
            Err(error) => failures.push(format!("{name}: {error}")),
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// The same for what is no measure of a pair: what is not finite.
fn nasty_elsewhere(x: &Array2<f64>, fine: &Array2<f64>) -> Result<Vec<String>> {
    let mut failures = Vec::new();
    let mut finite = |what: String, values: Vec<f64>| {
        if !values.iter().all(|x| x.is_finite()) {
            failures.push(format!("{what}: {values:?}"));
        }
    };
    let labels: Vec<usize> = (0..x.nrows()).map(|i| i % 2).collect();
    if let Ok(found) = neural_collapse(x, &labels, 2) {
        finite("collapse".into(), vec![found.nc1, found.nc2_norms, found.nc2_angles]);
    }
    if let Ok(means) = class_means(x, &labels, 2) {
        finite("class means".into(), means.into_iter().collect());
    }
    for components in 1..=2 {
        if let Ok(found) = pca(x, components) {
            let numbers = found.mean.iter().chain(&found.components).chain(&found.variances);
            finite("pca".into(), numbers.copied().collect());
            // A length of up to sqrt(width) times that may have no f64.
            if x.iter().all(|x| x.abs() < 1e307) {
                finite("projection".into(), found.project(x)?.into_iter().collect());
            }
        }
    }
    for centring in CENTRINGS {
        for layers in [[x, fine], [fine, x], [x, x]] {
            let found = block_relations(&layers, centring)?;
            finite(format!("blocks, {centring:?}"), vec![found.adjacent_cos[0], found.branch_cos[0]]);
            // Infinite where a block changes nothing.
            let ratio = found.norm_ratio[0];
            finite(format!("norm ratio, {centring:?}"), if ratio >= 0. { vec![] } else { vec![ratio] });
        }
    }
    let mut moments = MomentAccumulator::new(&[x.ncols(), x.ncols()])?;
    if moments.push(&[x, fine]).is_ok() {
        for measure in OF_MOMENTS {
            if let Ok(found) = moments.pairwise(measure) {
                finite(format!("accumulated {measure:?}"), found.into_iter().collect());
            }
        }
    }
    Ok(failures)
}

#[test]
fn nasty_batches_give_no_nan() -> Result<()> {
    let mut failures = Vec::new();
    for (name, x) in nasty() {
        let (n, width) = x.dim();
        let layers = [&x, &good(n, width)];
        let mut finite = |what: &str, values: Vec<f64>| {
            if !values.iter().all(|x| x.is_finite()) {
                failures.push(format!("{name}, {what}: {values:?}"));
            }
        };
        let mut means = MeanAccumulator::new(&[width, width])?;
        let mut cosines = vec![
            CosAccumulator::uncentred(2, width, Centring::Features)?,
            CosAccumulator::uncentred(2, width, Centring::None)?,
        ];
        if means.push(&layers).is_ok() {
            finite("means", means.means().into_iter().flatten().collect());
            cosines.push(CosAccumulator::centred(means)?);
        }
        for mut cosines in cosines {
            if cosines.push(&layers).is_ok() {
                finite("accumulated cosines", cosines.pairwise()?.into_iter().collect());
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    Ok(())
}

/// Finite, and as unpleasant as that allows.
fn nasty() -> Vec<(String, Array2<f64>)> {
    fn of(n: usize, width: usize, value: impl Fn(usize, usize) -> f64) -> Array2<f64> {
        Array2::from_shape_fn((n, width), |(i, j)| value(i, j))
    }
    let wave = |i: usize, j: usize| ((i * 3 + j * 5) as f64).sin();
    let ends = |i, j| if (i + j) % 2 == 0 { f64::MAX } else { f64::MIN };
    let named = [
        ("zero", Array2::zeros((8, 3))),
        ("negative zeros", of(8, 3, |i, j| if (i + j) % 2 == 0 { 0. } else { -0. })),
        ("constant", Array2::from_elem((8, 3), 0.1)),
        ("constant, wide", Array2::from_elem((5, 40), 0.3)),
        ("equal rows", of(8, 3, |_, j| j as f64 + 0.1)),
        ("equal columns", of(8, 3, |i, _| (i as f64).sin())),
        ("one constant column", of(8, 3, |i, j| if j == 1 { 0.1 } else { wave(i, j) })),
        ("pairs of rows", of(8, 3, |i, j| wave(i / 2, j))),
        ("pairs of rows, wide", of(6, 40, |i, j| wave(i / 2, j))),
        ("half of the rows equal", of(8, 3, |i, j| wave(i.saturating_sub(4), j))),
        ("one row differs", of(8, 3, |i, j| f64::from(i == 5 && j == 1))),
        ("one hot", Array2::eye(8)),
        ("rank one", of(8, 3, |i, j| ((i + 1) * (j + 1)) as f64 / 7.)),
        ("rank one, far", of(8, 3, |i, j| ((i + 1) * (j + 1)) as f64 / 7. + 1e12)),
        ("width 1", good(8, 1)),
        ("width 1, two values", of(8, 1, |i, _| (i % 2) as f64)),
        ("wide", good(5, 40)),
        ("rounding of 1", of(8, 3, |i, j| 1. + f64::EPSILON * ((i * i + j) % 3) as f64)),
        ("ends of f64", of(8, 3, ends)),
        ("one row at the end of f64", of(8, 3, |i, j| if i == 3 { f64::MAX } else { wave(i, j) })),
        ("subnormal to huge", of(8, 3, |i, j| 10f64.powi(80 * i as i32 - 310 + j as i32))),
        ("the smallest numbers", of(8, 3, |i, j| f64::from_bits(((i * 3 + j * j) % 5) as u64))),
    ];
    let mut all = named.map(|(name, x)| (name.to_owned(), x)).to_vec();
    for scale in [1e-320, 1e-300, 1e-170, 1e-120, 1e-80, 1e-60, 1e60, 1e80, 1e120, 1e170, 1e300, f64::MAX] {
        all.push((format!("scaled by {scale:e}"), good(8, 3) * scale));
        let column = |i, j| wave(i, j) * if j == 1 { scale } else { 1. };
        all.push((format!("a column scaled by {scale:e}"), of(8, 3, column)));
    }
    for n in 1..6 {
        all.push((format!("{n} samples"), good(n, 3)));
        all.push((format!("{n} samples of width 1"), good(n, 1)));
        all.push((format!("{n} equal samples"), Array2::from_elem((n, 3), 0.7)));
    }
    all
}

/// No measure depends on the scale of a representation: neither end of f64 may change a value.
#[test]
fn scales_at_the_ends_of_f64_change_nothing() -> Result<()> {
    let (x, y) = (good(8, 3), good(8, 3).mapv(|x| x * x + x / 3.));
    for measure in MEASURES {
        let want = similarity(&x, &y, measure)?;
        for scale in [1e-300, 1e-200, 1e-100, 1e100, 1e200, 1e308] {
            for (x, y) in [(&x * scale, y.clone()), (x.clone(), &y * scale), (&x * scale, &y / scale)] {
                let got = similarity(&x, &y, measure)?;
                assert!((got - want).abs() < 1e-9, "{measure:?} at {scale:e}: {got}, want {want}");
            }
        }
    }
    let labels = [0, 1, 0, 1, 1, 0, 1, 0];
    let config = ProbeConfig::default();
    let want = fit_probe(&x, &labels, 2, &config)?.predict(&x)?;
    for scale in [1e65, 1e100, 1e150] {
        let x = &(&x + 10.) * scale;
        let probe = fit_probe(&x, &labels, 2, &ProbeConfig { l2: 1e-4 * scale * scale, ..config.clone() })?;
        assert_eq!(probe.predict(&x)?, want, "probe at {scale:e}");
    }
    let want = pca(&x, 2)?;
    for scale in [1e-300, 1e-100, 1e100, 1e300] {
        let got = pca(&(&x * scale), 2)?;
        assert!((got.mean / scale - &want.mean).iter().all(|x| x.abs() < 1e-12), "mean at {scale:e}");
        assert!((got.variances - &want.variances).iter().all(|x| x.abs() < 1e-12), "shares at {scale:e}");
    }
    Ok(())
}

/// Sums that are kept as they come have no scale of their own: they say so, or they are right.
#[test]
fn moments_of_tiny_numbers_are_right_or_refused() -> Result<()> {
    let layers = [good(9, 3), good(9, 3).mapv(|x| x * x + x / 3.)];
    let mut failures = Vec::new();
    for power in (-300..60).step_by(4) {
        let mut moments = MomentAccumulator::new(&[3, 3])?;
        moments.push(&layers.each_ref().map(|layer| layer * 10f64.powi(power)))?;
        for measure in OF_MOMENTS {
            let want = similarity(&layers[0], &layers[1], measure)?;
            match moments.pairwise(measure).map(|found| found[[0, 1]]) {
                Err(error) if power > -60 => failures.push(format!("{measure:?} at 1e{power}: {error}")),
                Ok(got) if got.is_nan() || (got - want).abs() > 1e-6 => {
                    failures.push(format!("{measure:?} at 1e{power}: {got}, want {want}"));
                }
                _ => {}
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    Ok(())
}

#[test]
fn collapse_of_tiny_numbers_is_right_or_refused() -> Result<()> {
    let labels = [0, 1, 2, 0, 1, 2, 0, 1, 2];
    let collapse = |scale: f64| -> Result<[Result<f64>; 4]> {
        let mut classes = ClassAccumulator::new(3, 3)?;
        classes.push(&(good(9, 3) * scale), &labels)?;
        let found = classes.collapse();
        let number = |of: fn(Collapse) -> f64| found.clone().map(of);
        let nc3 = classes.nc3(good(3, 3).view());
        Ok([number(|all| all.nc1), number(|all| all.nc2_norms), number(|all| all.nc2_angles), nc3])
    };
    let want = collapse(1.)?;
    let mut failures = Vec::new();
    for power in (-300..60).step_by(4) {
        for (which, (got, want)) in collapse(10f64.powi(power))?.into_iter().zip(&want).enumerate() {
            let want = want.clone()?;
            match got {
                Err(error) if power > -60 => failures.push(format!("number {which} at 1e{power}: {error}")),
                Ok(got) if got.is_nan() || (got - want).abs() > 1e-6 * want.max(1.) => {
                    failures.push(format!("number {which} at 1e{power}: {got}, want {want}"));
                }
                _ => {}
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    Ok(())
}

/// Each in a thread of its own: a search for a step that never ends is a failure, not a test that never ends.
#[test]
fn a_probe_of_nasty_features_ends() {
    for (name, x) in nasty().into_iter().filter(|(_, x)| x.nrows() > 1) {
        let (send, result) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let labels: Vec<usize> = (0..x.nrows()).map(|i| i % 2).collect();
            let config = ProbeConfig { iterations: 20, ..Default::default() };
            let probe = fit_probe(&x, &labels, 2, &config);
            send.send(probe.map(|probe| [probe.weights.sum(), probe.bias.sum(), probe.loss]))
        });
        match result.recv_timeout(std::time::Duration::from_secs(10)) {
            Ok(Ok(numbers)) => assert!(numbers.iter().all(|x| x.is_finite()), "{name}: {numbers:?}"),
            Ok(Err(_)) => {}
            Err(_) => panic!("{name}: no result"),
        }
    }
}

fn setting<T: Debug>(result: Result<T>, want: &str) {
    match result {
        Err(Error::Setting { name, .. }) if name == want => {}
        other => panic!("{want}: {other:?}"),
    }
}

#[test]
fn settings_out_of_range() {
    let (x, y) = (good(8, 3), good(8, 4));
    for estimator in ESTIMATORS {
        for bandwidth in [0., -1., f64::NAN, f64::INFINITY, -0., 1e-200, 9e-7, 1.1e6, 1e150] {
            let measure = Measure::RbfCka { estimator, bandwidth };
            setting(similarity(&x, &y, measure), "bandwidth");
            setting(pairwise(&[&x, &y], measure), "bandwidth");
        }
        let widest = similarity(&x, &y, Measure::RbfCka { estimator, bandwidth: 1e6 });
        let linear = similarity(&x, &y, Measure::Cka(estimator));
        assert!((widest.expect("a number") - linear.expect("a number")).abs() < 1e-6, "{estimator:?}");
    }
    // No two samples are near each other.
    let narrowest = |estimator| similarity(&x, &y, Measure::RbfCka { estimator, bandwidth: 1e-6 });
    assert!(narrowest(Estimator::Biased).is_ok_and(|found| (found - 1.).abs() < 1e-12));
    assert!(matches!(narrowest(Estimator::Debiased), Err(Error::Degenerate { .. })));
    for variance in [0., -0.5, 1.5, f64::NAN, f64::INFINITY] {
        setting(similarity(&x, &y, Measure::Svcca { variance }), "variance");
        setting(pairwise(&[&x, &y], Measure::Svcca { variance }), "variance");
        let moments = MomentAccumulator::new(&[3, 4]).and_then(|mut moments| {
            moments.push(&[&x, &y])?;
            moments.pairwise(Measure::Svcca { variance })
        });
        setting(moments, "variance");
    }
    assert!(similarity(&x, &y, Measure::Svcca { variance: 1. }).is_ok());
    setting(similarity(&x, &y, Measure::MutualKnn { neighbours: 0 }), "neighbours");
    setting(per_sample(&x, &y, Measure::MutualKnn { neighbours: 0 }), "neighbours");
    for neighbours in [8, usize::MAX - 1] {
        let result = similarity(&x, &y, Measure::MutualKnn { neighbours });
        assert_eq!(result, Err(Error::Samples { samples: 8, needed: neighbours + 1 }));
    }
    let error = similarity(&x, &y, Measure::Svcca { variance: 1.5 }).unwrap_err();
    assert_eq!(error.to_string(), "variance is 1.5; expected a share in (0, 1]");

    let labels = [0, 1, 0, 1, 0, 1, 0, 1];
    let probe = |config: ProbeConfig| fit_probe(&x, &labels, 2, &config);
    for value in [0., -1., f64::NAN, f64::INFINITY] {
        setting(probe(ProbeConfig { l2: value, ..Default::default() }), "l2");
        setting(probe(ProbeConfig { tolerance: value, ..Default::default() }), "tolerance");
    }
    setting(probe(ProbeConfig { iterations: 0, ..Default::default() }), "iterations");

    let line = Array2::from_shape_fn((8, 3), |(i, j)| (i * (j + 1)) as f64);
    for (points, components) in [(&x, 0), (&x, 4), (&x, usize::MAX), (&line, 2), (&good(2, 3), 2)] {
        setting(pca(points, components), "components");
    }
    assert_eq!(pca(&good(1, 3), 1), Err(Error::Samples { samples: 1, needed: 2 }));
    let error = pca(&x, 1).and_then(|pca| pca.project(&y)).unwrap_err();
    assert_eq!(error, Error::Widths { left: 3, right: 4 });

    let values = array![1., 2.];
    for level in [2., -0.1, f64::NAN] {
        setting(quantiles(values.view(), &[0.5, level]), "level");
    }
    assert_eq!(quantiles(values.slice(s![..0]), &[0.5]), Err(Error::Samples { samples: 0, needed: 1 }));
    let error = quantiles(array![1., f64::NAN].view(), &[0.5]).unwrap_err();
    assert_eq!(error, Error::NotFinite { row: 1, column: 0 });
}

#[test]
fn quantiles_between_the_ends_of_f64() -> Result<()> {
    assert_eq!(quantiles(array![f64::MIN, f64::MAX].view(), &[0., 0.5, 1.])?, [f64::MIN, 0., f64::MAX]);
    Ok(())
}

/// More neighbours and classes than there can be samples: no sum overflows, and no room is made for them.
#[test]
fn settings_as_large_as_they_get() {
    let (x, labels) = (good(6, 3), [0, 1, 0, 1, 0, 1]);
    assert!(similarity(&x, &x, Measure::MutualKnn { neighbours: usize::MAX }).is_err());
    assert!(neural_collapse(&x, &labels, usize::MAX).is_err());
    assert!(class_means(&x, &labels, usize::MAX).is_err());
    for classes in [usize::MAX, 1 << 30] {
        setting(fit_probe(&x, &labels, classes, &ProbeConfig::default()), "classes");
    }
}

/// Refused before anything is read.
#[test]
fn more_pairs_of_samples_than_can_be_ranked() {
    let many = Array2::from_elem((92_682, 1), f64::NAN);
    setting(similarity(&many, &many, Measure::Rsa(Distance::Euclidean)), "samples");
}

#[test]
fn labels_that_do_not_fit() -> Result<()> {
    let x = good(6, 3);
    let all = |labels: &[usize], classes: usize| -> Vec<Error> {
        let mut accumulator = ClassAccumulator::new(3, classes);
        let pushed = accumulator.as_mut().map_err(|e| e.clone()).and_then(|classes| {
            classes.push(&x, labels)?;
            classes.collapse().map(|_| ())
        });
        vec![
            neural_collapse(&x, labels, classes).map(|_| ()).unwrap_err(),
            class_means(&x, labels, classes).map(|_| ()).unwrap_err(),
            pushed.unwrap_err(),
        ]
    };
    let probe =
        |labels: &[usize], classes| fit_probe(&x, labels, classes, &ProbeConfig::default()).map(|_| ());
    for (labels, classes, want) in [
        (&[0, 1, 0, 1, 0][..], 2, Error::Labels { labels: 5, samples: 6 }),
        (&[0, 1, 0, 1, 0, 1, 0], 2, Error::Labels { labels: 7, samples: 6 }),
        (&[], 2, Error::Labels { labels: 0, samples: 6 }),
        (&[0, 1, 0, 2, 0, 1], 2, Error::Label { row: 3, label: 2, classes: 2 }),
        (&[0, 1, 0, 1, 0, usize::MAX], 2, Error::Label { row: 5, label: usize::MAX, classes: 2 }),
        (&[0, 0, 0, 0, 0, 0], 1, Error::Classes { found: 1, expected: 2 }),
        (&[0, 0, 0, 0, 0, 0], 0, Error::Classes { found: 0, expected: 2 }),
    ] {
        for error in all(labels, classes) {
            assert_eq!(error, want);
        }
        assert_eq!(probe(labels, classes), Err(want));
    }
    // A class without samples has no mean; a probe does without.
    for (labels, found) in [([0, 0, 2, 2, 0, 2], 2), ([1; 6], 1)] {
        for error in all(&labels, 3) {
            assert_eq!(error, Error::Classes { found, expected: 3 });
        }
    }
    assert!(probe(&[0, 0, 2, 2, 0, 2], 3).is_ok());
    let found = fit_probe(&x, &[0, 1, 0, 1, 0, 1], 2, &ProbeConfig::default())?;
    assert_eq!(found.accuracy(&x, &[0; 5]), Err(Error::Labels { labels: 5, samples: 6 }));
    assert_eq!(found.accuracy(&x, &[2; 6]), Err(Error::Label { row: 0, label: 2, classes: 2 }));
    assert_eq!(found.predict(&good(6, 4)), Err(Error::Widths { left: 3, right: 4 }));

    // The row of a label is counted from the first, although samples are added in pieces.
    let (long, mut labels) = (good(3000, 2), [0, 1].repeat(1500));
    labels[2500] = 2;
    let want = Error::Label { row: 2500, label: 2, classes: 2 };
    assert_eq!(neural_collapse(&long, &labels, 2), Err(want.clone()));
    assert_eq!(class_means(&long, &labels, 2), Err(want));
    Ok(())
}

#[test]
fn classifiers_that_do_not_fit() -> Result<()> {
    let mut classes = ClassAccumulator::new(3, 2)?;
    classes.push(&good(6, 3), &[0, 1, 0, 1, 0, 1])?;
    let mut broken = good(2, 3);
    broken[[1, 2]] = f64::INFINITY;
    for (weights, want) in [
        (good(3, 3), Error::Rows { left: 2, right: 3 }),
        (good(2, 4), Error::Widths { left: 3, right: 4 }),
        (broken, Error::NotFinite { row: 1, column: 2 }),
        (Array2::zeros((2, 3)), Error::Degenerate { spread: 0. }),
    ] {
        assert_eq!(classes.nc3(weights.view()), Err(want));
    }
    Ok(())
}

#[test]
fn a_stack_without_layers() {
    let (none, one) = ([] as [ArrayView2<'_, f64>; 0], good(5, 2));
    let want = || Error::TooFewLayers { found: 0, needed: 1 };
    for measure in MEASURES {
        assert_eq!(pairwise(&none, measure), Err(want()));
        assert_eq!(pairwise_between(&none, &[&one], measure), Err(want()));
        assert_eq!(pairwise_between(&[&one], &none, measure), Err(want()));
    }
    assert_eq!(saturation(Array2::zeros((0, 4)).view()), Err(want()));
    assert_eq!(saturation(Array2::zeros((3, 0)).view()).map(|layers| layers.len()), Ok(0));
    assert_eq!(MomentAccumulator::new(&[]).unwrap_err(), want());
    assert_eq!(MomentAccumulator::between(&[], &[2]).unwrap_err(), want());
    assert_eq!(MomentAccumulator::between(&[2], &[]).unwrap_err(), want());
    assert_eq!(MeanAccumulator::new(&[]).unwrap_err(), want());
    assert_eq!(CosAccumulator::with_means(vec![]).unwrap_err(), want());
    assert_eq!(CosAccumulator::uncentred(0, 3, Centring::None).unwrap_err(), want());
    for (found, layers) in [(0, &[][..]), (1, std::slice::from_ref(&one))] {
        let want = Error::TooFewLayers { found, needed: 2 };
        assert_eq!(block_relations(layers, Centring::Samples).unwrap_err(), want);
        assert_eq!(block_influence(layers).unwrap_err(), want);
    }
}

#[test]
fn the_first_bad_layer_of_a_stack_is_named() {
    let (fine, wide, short, mut broken) = (good(6, 3), good(6, 4), good(5, 3), good(6, 3));
    broken[[2, 0]] = f64::NAN;
    let constant = Array2::ones((6, 3));
    let not_finite = Error::NotFinite { row: 2, column: 0 };
    for measure in MEASURES {
        let mut cases = vec![(&broken, not_finite.clone()), (&short, Error::Rows { left: 6, right: 5 })];
        match measure {
            Measure::Cos(_) | Measure::AngularDistance(_) => {
                cases.push((&wide, Error::Widths { left: 3, right: 4 }))
            }
            _ => cases.push((&constant, Error::Degenerate { spread: 0. })),
        }
        for (bad, source) in cases {
            let want = Error::Layer { layer: 2, source: Box::new(source.clone()) };
            assert_eq!(want.to_string(), format!("layer 2: {source}"));
            let stack = [&fine, &fine, bad, bad];
            assert_eq!(pairwise(&stack, measure), Err(want.clone()), "{measure:?}");
            assert_eq!(pairwise_between(&stack[..2], &stack[2..], measure), Err(want), "{measure:?}");
        }
        // The second of the left stack.
        let want = Error::Layer { layer: 1, source: Box::new(Error::Rows { left: 6, right: 5 }) };
        assert_eq!(pairwise_between(&[&fine, &short], &[&fine], measure), Err(want), "{measure:?}");
    }
    for (bad, source) in [
        (&broken, not_finite),
        (&short, Error::Rows { left: 6, right: 5 }),
        (&wide, Error::Widths { left: 3, right: 4 }),
        (&good(0, 3), Error::Samples { samples: 0, needed: 1 }),
        (&good(6, 0), Error::Width),
    ] {
        let want = Error::Layer { layer: 2, source: Box::new(source) };
        for centring in CENTRINGS {
            assert_eq!(block_relations(&[&fine, &fine, bad], centring).unwrap_err(), want);
        }
        assert_eq!(block_influence(&[&fine, &fine, bad]).unwrap_err(), want);
    }
}

#[cfg(feature = "candle")]
#[test]
fn tensors_that_are_no_float_matrices() -> std::result::Result<(), Box<dyn std::error::Error>> {
    use candle_core::{DType, Device::Cpu, Tensor};

    let fine = Tensor::ones((5, 2), DType::F32, &Cpu)?;
    let integers = Tensor::ones((5, 2), DType::U32, &Cpu)?;
    let cube = Tensor::ones((5, 2, 3), DType::F32, &Cpu)?;
    for measure in MEASURES {
        let error = similarity(&fine, &integers, measure).unwrap_err();
        let text = "tensor of shape [5, 2] and type u32; expected a float matrix (samples, width)";
        assert_eq!(error.to_string(), text);
    }
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
