//! COS and CKA against `fixtures/similarity.py`: n x n Gram matrices, centring matrix and `HSIC_1` by their definitions, in
//! exact arithmetic.

mod fixture;

use layerwise_similarity::{
    Centring, Estimator, Measure, Representation, cka, cos, cos_per_sample, pairwise, pairwise_between,
};

use crate::fixture::{Fixture, Result, close};

const FIXTURE: Fixture = Fixture(include_bytes!("fixtures/similarity.safetensors"));
const CENTRINGS: [(&str, Centring); 3] =
    [("samples", Centring::Samples), ("features", Centring::Features), ("none", Centring::None)];
const ESTIMATORS: [(&str, Estimator); 2] = [("biased", Estimator::Biased), ("debiased", Estimator::Debiased)];

/// The oracle is exact, so this is our rounding: an offset of 1e3 leaves 13 digits after centring, sums of some thousand
/// products and the differences in `HSIC_1` (to a tenth of its terms) cost up to 3 more.
const TOLERANCE: f64 = 1e-9;

#[test]
fn f64_pairs_of_equal_width() -> Result {
    for case in ["narrow", "wide", "four_samples", "offset"] {
        let (x, y) = (FIXTURE.matrix(&format!("{case}/x"))?, FIXTURE.matrix(&format!("{case}/y"))?);
        check_cos(case, &x, &y)?;
        check_cka(case, &x, &y)?;
    }
    Ok(())
}

#[test]
fn f32_pairs_of_equal_width() -> Result {
    for case in ["f32", "f32_offset"] {
        let (x, y) = (FIXTURE.single(&format!("{case}/x"))?, FIXTURE.single(&format!("{case}/y"))?);
        check_cos(case, &x, &y)?;
        check_cka(case, &x, &y)?;
    }
    Ok(())
}

#[test]
fn widths_that_differ() -> Result {
    check_cka("one_is_wider", &FIXTURE.matrix("one_is_wider/x")?, &FIXTURE.matrix("one_is_wider/y")?)?;
    check_cka("other_is_wider", &FIXTURE.single("other_is_wider/x")?, &FIXTURE.single("other_is_wider/y")?)
}

#[test]
fn all_pairs_of_a_stack_and_of_two() -> Result {
    let (stack, other) = (FIXTURE.layers("stack/layers")?, FIXTURE.layers("between/layers")?);
    for (name, measure) in measures() {
        let (alone, between) = (pairwise(&stack, measure)?, pairwise_between(&stack, &other, measure)?);
        close(&name, &alone, &FIXTURE.matrix(&format!("stack/{name}"))?, TOLERANCE);
        close(&name, &between, &FIXTURE.matrix(&format!("between/{name}"))?, TOLERANCE);
    }
    Ok(())
}

fn check_cos(case: &str, x: &dyn Representation, y: &dyn Representation) -> Result {
    for (name, centring) in CENTRINGS {
        let want = FIXTURE.vector(&format!("{case}/cos/{name}"))?;
        close(case, &cos_per_sample(x, y, centring)?, &want, TOLERANCE);
        let mean = want.sum() / want.len() as f64;
        close(case, &[cos(x, y, centring)?], &[mean], TOLERANCE);
    }
    Ok(())
}

fn check_cka(case: &str, x: &dyn Representation, y: &dyn Representation) -> Result {
    for (name, estimator) in ESTIMATORS {
        let want = FIXTURE.vector(&format!("{case}/cka/{name}"))?;
        close(case, &[cka(x, y, estimator)?], &want, TOLERANCE);
    }
    Ok(())
}

fn measures() -> Vec<(String, Measure)> {
    let cosines = CENTRINGS.map(|(name, centring)| (format!("cos/{name}"), Measure::Cos(centring)));
    let ckas = ESTIMATORS.map(|(name, estimator)| (format!("cka/{name}"), Measure::Cka(estimator)));
    cosines.into_iter().chain(ckas).collect()
}
