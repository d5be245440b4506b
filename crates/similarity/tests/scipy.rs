//! Every measure but COS and linear CKA (`numpy.rs`) against `fixtures/measures.py`: textbook forms in `NumPy` and `SciPy`.

mod fixture;

use layerwise_similarity::{
    Centring, ClassAccumulator, Distance, Estimator, Measure, MomentAccumulator, ProbeConfig, Representation,
    block_influence, block_relations, class_means, fit_probe, neural_collapse, pairwise, pairwise_between,
    pca, per_sample, quantiles, saturation, similarity,
};
use ndarray::{Array2, s};

use crate::fixture::{Fixture, Result, close};

const FIXTURE: Fixture = Fixture(include_bytes!("fixtures/measures.safetensors"));
const CENTRINGS: [(&str, Centring); 3] =
    [("samples", Centring::Samples), ("features", Centring::Features), ("none", Centring::None)];

/// Both sides work in f64 by different formulas. An offset of 1e3 costs 3 of 16 digits, the smallest canonical direction that is
/// kept (4e-6 of the variance) 6 more of its correlation.
const TOLERANCE: f64 = 1e-9;

/// A name of the fixture, and the measure of it.
fn measures() -> Vec<(String, Measure)> {
    let angular =
        CENTRINGS.map(|(name, centring)| (format!("angular/{name}"), Measure::AngularDistance(centring)));
    let estimators = [("biased", Estimator::Biased), ("debiased", Estimator::Debiased)];
    let rbf = estimators.iter().flat_map(|&(name, estimator)| {
        [0.2, 0.5, 1.0f64].map(move |bandwidth| {
            (format!("rbf_cka/{name}/{bandwidth:?}"), Measure::RbfCka { estimator, bandwidth })
        })
    });
    let distances = [
        ("correlation", Distance::Correlation),
        ("euclidean", Distance::Euclidean),
        ("cosine", Distance::Cosine),
    ];
    let rsa = distances.map(|(name, distance)| (format!("rsa/{name}"), Measure::Rsa(distance)));
    let others = [
        ("cca", Measure::Cca),
        ("svcca/0.99", Measure::Svcca { variance: 0.99 }),
        ("svcca/0.9", Measure::Svcca { variance: 0.9 }),
        ("pwcca", Measure::Pwcca),
        ("procrustes", Measure::Procrustes),
        ("procrustes_distance", Measure::ProcrustesDistance),
        ("pnka", Measure::Pnka),
        ("mutual_knn/1", Measure::MutualKnn { neighbours: 1 }),
        ("mutual_knn/3", Measure::MutualKnn { neighbours: 3 }),
    ];
    let others = others.map(|(name, measure)| (name.to_owned(), measure));
    angular.into_iter().chain(rbf).chain(rsa).chain(others).collect()
}

fn cases() -> Result<Vec<String>> {
    let names = FIXTURE.names()?.into_iter().filter_map(|name| name.strip_suffix("/y").map(Into::into));
    Ok(names.collect())
}

#[test]
fn every_measure_of_every_pair() -> Result {
    let mut checked = 0;
    for case in cases()? {
        let (x, y) = (FIXTURE.matrix(&format!("{case}/x"))?, FIXTURE.matrix(&format!("{case}/y"))?);
        for (name, measure) in measures() {
            let name = format!("{case}/{name}");
            if !FIXTURE.has(&name)? {
                continue;
            }
            let want = FIXTURE.vector(&name)?;
            check(&name, &x, &y, measure, &want.to_vec())?;
            checked += 1;
        }
        if FIXTURE.has(&format!("{case}/pwcca_swapped"))? {
            let want = FIXTURE.scalar(&format!("{case}/pwcca_swapped"))?;
            close(&case, &[similarity(&y, &x, Measure::Pwcca)?], &[want], TOLERANCE);
            let both = pairwise(&[&x, &y], Measure::Pwcca)?;
            let forth = FIXTURE.scalar(&format!("{case}/pwcca"))?;
            close(&case, both.slice(s![0..2, 0..2]), &[1., forth, want, 1.], TOLERANCE);
        }
    }
    assert!(checked > 15 * 15, "only {checked} results were in the file");
    Ok(())
}

/// A value per sample where the file has one; the mean of it, alone and as part of matrices.
fn check(name: &str, x: &Array2<f64>, y: &Array2<f64>, measure: Measure, want: &[f64]) -> Result {
    // The squares of rounding count in a distance that is 0.
    let tolerance = if measure == Measure::ProcrustesDistance { 1e-7 } else { TOLERANCE };
    if want.len() > 1 {
        close(name, &per_sample(x, y, measure)?, want, tolerance);
    }
    let mean = want.iter().sum::<f64>() / want.len() as f64;
    close(name, &[similarity(x, y, measure)?], &[mean], tolerance);
    close(name, &pairwise_between(&[x], &[y], measure)?, &[mean], tolerance);
    close(name, &[pairwise(&[x, y], measure)?[[0, 1]]], &[mean], tolerance);
    let (first, second) = (x.mapv(|x| x as f32), y.mapv(|y| y as f32));
    if first.mapv(f64::from) == *x && second.mapv(f64::from) == *y {
        close(name, &[similarity(&first, &second, measure)?], &[mean], tolerance);
    }
    Ok(())
}

#[test]
fn moments_give_the_same_measures() -> Result {
    let mut checked = 0;
    for case in cases()? {
        let (x, y) = (FIXTURE.matrix(&format!("{case}/x"))?, FIXTURE.matrix(&format!("{case}/y"))?);
        for name in ["cca", "svcca/0.99", "svcca/0.9", "pwcca", "procrustes", "procrustes_distance"] {
            let found = measures().into_iter().find(|(other, _)| other == name);
            let (_, measure) = found.ok_or(name)?;
            let name = format!("{case}/{name}");
            // Without samples to spare, moments see as many directions as there are samples less one, by rounding.
            let narrow = x.ncols().max(y.ncols()) < x.nrows();
            if !(FIXTURE.has(&name)? && narrow) {
                continue;
            }
            let want = FIXTURE.vector(&name)?;
            let mut moments = MomentAccumulator::between(&[x.ncols()], &[y.ncols()])?;
            for start in (0..x.nrows()).step_by(7) {
                let end = (start + 7).min(x.nrows());
                moments.push(&[x.slice(s![start..end, ..]), y.slice(s![start..end, ..])])?;
            }
            close(&name, &moments.pairwise(measure)?, &want, TOLERANCE);
            checked += 1;
        }
    }
    assert!(checked >= 20, "{checked} checked");
    Ok(())
}

#[test]
fn relations_of_a_stack() -> Result {
    let layers = FIXTURE.layers("stack/layers")?;
    for (name, centring) in CENTRINGS {
        let got = block_relations(&layers, centring)?;
        let want = |what: &str| FIXTURE.vector(&format!("stack/block_relations/{name}/{what}"));
        close(name, &got.adjacent_cos, &want("adjacent_cos")?, TOLERANCE);
        close(name, &got.norm_ratio, &want("norm_ratio")?, TOLERANCE);
        close(name, &got.branch_cos, &want("branch_cos")?, TOLERANCE);
    }
    close("influence", &block_influence(&layers)?, &FIXTURE.vector("stack/block_influence")?, TOLERANCE);
    Ok(())
}

#[test]
fn saturation_layers() -> Result {
    let predictions = FIXTURE.matrix("saturation/predictions")?.mapv(|class| class as usize);
    assert_eq!(saturation(predictions.view())?.to_vec(), FIXTURE.indices("saturation/first")?);
    Ok(())
}

#[test]
fn collapse_whole_and_in_parts() -> Result {
    for case in ["nc_unbalanced", "nc_balanced", "nc_many_classes", "nc_f32_offset"] {
        let x = FIXTURE.matrix(&format!("{case}/x"))?;
        let labels = FIXTURE.indices(&format!("{case}/labels"))?;
        let (means, weights) =
            (FIXTURE.matrix(&format!("{case}/means"))?, FIXTURE.matrix(&format!("{case}/weights"))?);
        let want = ["nc1", "nc2_norms", "nc2_angles"].map(|name| FIXTURE.scalar(&format!("{case}/{name}")));
        let want = want.into_iter().collect::<Result<Vec<_>>>()?;
        let classes = means.nrows();

        let whole = neural_collapse(&x, &labels, classes)?;
        close(case, &[whole.nc1, whole.nc2_norms, whole.nc2_angles], &want, TOLERANCE);
        close(case, &class_means(&x, &labels, classes)?, &means, TOLERANCE);

        // Parts in reverse, so that they have shifts of their own.
        let mut all = ClassAccumulator::new(x.ncols(), classes)?;
        for start in (0..x.nrows()).step_by(9).rev() {
            let end = (start + 9).min(x.nrows());
            let mut part = ClassAccumulator::new(x.ncols(), classes)?;
            part.push(&x.slice(s![start..end, ..]), &labels[start..end])?;
            all.merge(ClassAccumulator::from_bytes(&part.to_bytes())?)?;
        }
        let merged = all.collapse()?;
        close(case, &[merged.nc1, merged.nc2_norms, merged.nc2_angles], &want, TOLERANCE);
        close(case, &all.means()?, &means, TOLERANCE);
        let nc3 = FIXTURE.scalar(&format!("{case}/nc3"))?;
        close(case, &[all.nc3(weights.view())?], &[nc3], TOLERANCE);
    }
    Ok(())
}

#[test]
fn principal_components() -> Result {
    for case in ["pca/tall", "pca/wide"] {
        let x = FIXTURE.matrix(&format!("{case}/x"))?;
        let found = pca(&x, 2)?;
        close(case, &found.mean, &FIXTURE.vector(&format!("{case}/mean"))?, TOLERANCE);
        close(case, &found.components, &FIXTURE.matrix(&format!("{case}/components"))?, TOLERANCE);
        let variances = FIXTURE.vector(&format!("{case}/variances"))?;
        close(case, &found.variances, variances.slice(s![..2]), TOLERANCE);
        close(case, &found.project(&x)?, &FIXTURE.matrix(&format!("{case}/projected"))?, TOLERANCE);
    }
    Ok(())
}

/// The oracle is at a gradient below 1e-14; ours stops at 1e-9, which with the smallest curvature, `l2 = 0.02` over the variance
/// of a feature, is within 1e-6 of it.
#[test]
fn a_linear_probe() -> Result {
    let (x, labels) = (FIXTURE.matrix("probe/x")?, FIXTURE.indices("probe/labels")?);
    let config = ProbeConfig { l2: FIXTURE.scalar("probe/l2")?, tolerance: 1e-9, ..Default::default() };
    let probe = fit_probe(&x, &labels, 3, &config)?;
    assert!(
        probe.converged && (1..config.iterations).contains(&probe.iterations),
        "{} steps",
        probe.iterations
    );
    // Rounding ends the search before the gradient is as short as that: the steps are still those taken.
    let far = fit_probe(&x, &labels, 3, &ProbeConfig { tolerance: 1e-300, ..config.clone() })?;
    assert!(!far.converged && (1..config.iterations).contains(&far.iterations), "{} steps", far.iterations);
    close("weights", &probe.weights, &FIXTURE.matrix("probe/weights")?, 1e-6);
    close("bias", &probe.bias, &FIXTURE.vector("probe/bias")?, 1e-6);
    close("loss", &[probe.loss], &[FIXTURE.scalar("probe/loss")?], 1e-9);
    let predictions = FIXTURE.indices("probe/predictions")?;
    assert_eq!(probe.predict(&x)?, predictions);
    let right = predictions.iter().zip(&labels).filter(|(class, label)| class == label).count();
    assert_eq!(probe.accuracy(&x, &labels)?, right as f64 / labels.len() as f64);
    Ok(())
}

#[test]
fn quantiles_as_numpy_has_them() -> Result {
    let levels = FIXTURE.vector("quantiles/levels")?.to_vec();
    let got = quantiles(FIXTURE.vector("quantiles/values")?.view(), &levels)?;
    close("quantiles", &got, &FIXTURE.vector("quantiles/result")?, TOLERANCE);
    Ok(())
}

/// The trait object and the trait bound take the same things.
#[test]
fn representations_may_be_mixed() -> Result {
    let (x, y) = (FIXTURE.matrix("narrow/x")?, FIXTURE.matrix("narrow/y")?);
    let single = y.mapv(|y| y as f32);
    let stack: [&dyn Representation; 2] = [&x, &single];
    let got = pairwise(&stack, Measure::Procrustes)?[[0, 1]];
    close("mixed", &[got], &[FIXTURE.scalar("narrow/procrustes")?], 1e-6);
    Ok(())
}
