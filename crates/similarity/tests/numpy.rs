//! COS and CKA against `fixtures/similarity.py`: n x n Gram matrices, centring matrix and `HSIC_1` by their definitions, in
//! exact arithmetic.

use std::error::Error;

use layerwise_similarity::{
    Centring, Estimator, Measure, Representation, cka, cos, cos_per_sample, pairwise, pairwise_between,
};
use ndarray::Array2;
use safetensors::{Dtype, SafeTensors};

type Result<T = ()> = std::result::Result<T, Box<dyn Error>>;

const FIXTURE: &[u8] = include_bytes!("fixtures/similarity.safetensors");
const CENTRINGS: [(&str, Centring); 3] =
    [("samples", Centring::Samples), ("features", Centring::Features), ("none", Centring::None)];
const ESTIMATORS: [(&str, Estimator); 2] = [("biased", Estimator::Biased), ("debiased", Estimator::Debiased)];

/// The oracle is exact, so this is our rounding: an offset of 1e3 leaves 13 digits after centring, sums of some thousand
/// products and the differences in `HSIC_1` (to a tenth of its terms) cost up to 3 more.
const TOLERANCE: f64 = 1e-9;

#[test]
fn f64_pairs_of_equal_width() -> Result {
    for case in ["narrow", "wide", "four_samples", "offset"] {
        let (x, y) = (matrix(&format!("{case}/x"))?, matrix(&format!("{case}/y"))?);
        check_cos(case, &x, &y)?;
        check_cka(case, &x, &y)?;
    }
    Ok(())
}

#[test]
fn f32_pairs_of_equal_width() -> Result {
    for case in ["f32", "f32_offset"] {
        let (x, y) = (single(&format!("{case}/x"))?, single(&format!("{case}/y"))?);
        check_cos(case, &x, &y)?;
        check_cka(case, &x, &y)?;
    }
    Ok(())
}

#[test]
fn widths_that_differ() -> Result {
    check_cka("one_is_wider", &matrix("one_is_wider/x")?, &matrix("one_is_wider/y")?)?;
    check_cka("other_is_wider", &single("other_is_wider/x")?, &single("other_is_wider/y")?)
}

#[test]
fn all_pairs_of_a_stack_and_of_two() -> Result {
    let (stack, other) = (layers("stack/layers")?, layers("between/layers")?);
    for (name, measure) in measures() {
        close(&name, pairwise(&stack, measure)?.iter(), &format!("stack/{name}"))?;
        close(&name, pairwise_between(&stack, &other, measure)?.iter(), &format!("between/{name}"))?;
    }
    Ok(())
}

fn check_cos(case: &str, x: &dyn Representation, y: &dyn Representation) -> Result {
    for (name, centring) in CENTRINGS {
        let want = format!("{case}/cos/{name}");
        close(case, cos_per_sample(x, y, centring)?.iter(), &want)?;
        let (_, _, values) = read(&want)?;
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        let got = cos(x, y, centring)?;
        assert!((got - mean).abs() < TOLERANCE, "{want}: mean {got}, want {mean}");
    }
    Ok(())
}

fn check_cka(case: &str, x: &dyn Representation, y: &dyn Representation) -> Result {
    for (name, estimator) in ESTIMATORS {
        close(case, [cka(x, y, estimator)?].iter(), &format!("{case}/cka/{name}"))?;
    }
    Ok(())
}

fn close<'a>(case: &str, got: impl ExactSizeIterator<Item = &'a f64>, name: &str) -> Result {
    let (_, _, want) = read(name)?;
    assert_eq!(got.len(), want.len(), "{name}");
    for (i, (got, want)) in got.zip(&want).enumerate() {
        assert!((got - want).abs() < TOLERANCE, "{case}, {name}[{i}]: {got}, want {want}");
    }
    Ok(())
}

fn measures() -> Vec<(String, Measure)> {
    let cosines = CENTRINGS.map(|(name, centring)| (format!("cos/{name}"), Measure::Cos(centring)));
    let ckas = ESTIMATORS.map(|(name, estimator)| (format!("cka/{name}"), Measure::Cka(estimator)));
    cosines.into_iter().chain(ckas).collect()
}

fn layers(name: &str) -> Result<Vec<Array2<f64>>> {
    let (_, shape, values) = read(name)?;
    let layers = values.chunks_exact(shape[1] * shape[2]);
    layers.map(|values| Ok(Array2::from_shape_vec((shape[1], shape[2]), values.to_vec())?)).collect()
}

fn matrix(name: &str) -> Result<Array2<f64>> {
    let (dtype, shape, values) = read(name)?;
    assert_eq!(dtype, Dtype::F64);
    Ok(Array2::from_shape_vec((shape[0], shape[1]), values)?)
}

fn single(name: &str) -> Result<Array2<f32>> {
    let (dtype, shape, values) = read(name)?;
    assert_eq!(dtype, Dtype::F32);
    Ok(Array2::from_shape_vec((shape[0], shape[1]), values)?.mapv(|x| x as f32))
}

fn read(name: &str) -> Result<(Dtype, Vec<usize>, Vec<f64>)> {
    let file = SafeTensors::deserialize(FIXTURE)?;
    let tensor = file.tensor(name)?;
    let values = match tensor.dtype() {
        Dtype::F32 => {
            let words = tensor.data().as_chunks().0.iter();
            words.map(|&word| f64::from(f32::from_le_bytes(word))).collect()
        }
        Dtype::F64 => tensor.data().as_chunks().0.iter().map(|&word| f64::from_le_bytes(word)).collect(),
        other => return Err(format!("{name} is {other:?}").into()),
    };
    Ok((tensor.dtype(), tensor.shape().to_vec(), values))
}
