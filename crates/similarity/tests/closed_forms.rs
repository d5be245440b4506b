//! Cases worked out by hand.

mod samples;

use layerwise_similarity::{
    Centring, Distance, Error, Estimator, Measure, Result, angular_distance, block_relations, cka, cos,
    cos_per_sample, pairwise, pairwise_between, rbf_cka, rsa,
};
use ndarray::{Array2, array, concatenate};
use samples::noise;

/// A handful of operations on numbers near 1.
const TOLERANCE: f64 = 1e-14;

fn close(got: f64, want: f64) {
    assert!((got - want).abs() < TOLERANCE, "{got}, want {want}");
}

/// `factors` of the full two-level design of 8 samples: columns of +1 and -1 with sum 0, each orthogonal to all others.
fn design(factors: &[usize]) -> Array2<f64> {
    let sign = |sample: usize, factor: usize| (-1f64).powi((sample & factor).count_ones() as i32);
    Array2::from_shape_fn((8, factors.len()), |(i, j)| sign(i, factors[j]))
}

#[test]
fn cosines_without_centring() -> Result<()> {
    let (x, y) = (array![[3., 4.], [1., 0.], [2., 0.]], array![[4., 3.], [0., 5.], [-1., 0.]]);
    let got = cos_per_sample(&x, &y, Centring::None)?;
    for (got, want) in got.iter().zip([24. / 25., 0., -1.]) {
        close(*got, want);
    }
    close(cos(&x, &y, Centring::None)?, (24. / 25. - 1.) / 3.);
    Ok(())
}

#[test]
fn cosines_about_the_mean_of_the_samples() -> Result<()> {
    // Centred: (-1, 0), (1, 0) and (-1/2, -1/2), (1/2, 1/2): 45 degrees apart.
    let (x, y) = (array![[1., 1.], [3., 1.]], array![[0., 0.], [1., 1.]]);
    close(cos(&x, &y, Centring::Samples)?, 0.5f64.sqrt());
    Ok(())
}

#[test]
fn cosines_about_the_mean_of_the_features() -> Result<()> {
    // Centred: (-1, 0, 1) and (2, -1, -1) / 3: -1 / (sqrt 2 sqrt(2/3)) = -sqrt(3) / 2.
    let (x, y) = (array![[1., 2., 3.]], array![[1., 0., 0.]]);
    close(cos(&x, &y, Centring::Features)?, -0.75f64.sqrt());
    Ok(())
}

/// In floating point 0.1, 0.2, 0.3 are not evenly spaced and a mean of three 0.1 is not 0.1; what is left must not count as a
/// direction.
#[test]
fn a_sample_that_centring_takes_away_has_cosine_0() -> Result<()> {
    let x = array![[0.1], [0.2], [0.3]];
    assert_eq!(cos_per_sample(&x, &x, Centring::Samples)?, array![1., 0., 1.]);
    let x = array![[0.1, 0.1, 0.1], [0.7, 0.7, 0.7], [0., 0., 1.]];
    let got = cos_per_sample(&x, &x, Centring::Features)?;
    assert_eq!((got[0], got[1]), (0., 0.));
    close(got[2], 1.);
    assert_eq!(cos(&array![[0., 0.]], &array![[1., 2.]], Centring::None)?, 0.);
    Ok(())
}

/// One factor each: CKA is the squared correlation; that of ranks 1 2 3 4 and 1 3 2 4 is 0.8.
#[test]
fn cka_of_one_feature_is_the_squared_correlation() -> Result<()> {
    let (x, y) = (array![[1.], [2.], [3.], [4.]], array![[1.], [3.], [2.], [4.]]);
    close(cka(&x, &y, Estimator::Biased)?, 0.64);
    Ok(())
}

/// Two representations of `k` and `m` orthogonal factors of which `c` are common, `n` samples. With `K = sum a a'` over
/// the factors, `tr(K L) = n^2 c`, `K~ 1 = -k 1` and so on: `HSIC_1` is `n^2 (c - k m / (n - 1))`, biased HSIC `n^2 c`.
#[test]
fn cka_of_orthogonal_designs() -> Result<()> {
    let cases: [(&[usize], &[usize], f64); 6] = [
        (&[1], &[2], 0.),
        (&[1], &[1], 1.),
        (&[1], &[1, 2], 1.),
        (&[1, 2], &[2, 4, 7], 1.),
        (&[1, 2, 4], &[1, 2, 3, 4, 5], 3.),
        (&[3, 5, 6], &[1, 2, 4, 7], 0.),
    ];
    for (left, right, c) in cases {
        let (k, m) = (left.len() as f64, right.len() as f64);
        let (x, y) = (design(left), design(right));
        close(cka(&x, &y, Estimator::Biased)?, c / (k * m).sqrt());
        let debiased = (c - k * m / 7.) / ((k - k * k / 7.) * (m - m * m / 7.)).sqrt();
        close(cka(&x, &y, Estimator::Debiased)?, debiased);
    }
    Ok(())
}

/// `x` and `x` with noise, of `n` samples.
fn noisy(n: usize, width: usize) -> [Array2<f64>; 2] {
    let x = noise(0, n, width);
    let y = &x + &noise(1, n, width);
    [x, y]
}

/// `|x_i - x_j|`, from differences.
fn distances(x: &Array2<f64>) -> Array2<f64> {
    let distance = |(i, j)| (&x.row(i) - &x.row(j)).mapv(|x| x * x).sum().sqrt();
    Array2::from_shape_fn((x.nrows(), x.nrows()), distance)
}

/// Those of pairs `i < j`.
fn upper(all: &Array2<f64>) -> Vec<f64> {
    all.indexed_iter().filter(|((i, j), _)| i < j).map(|(_, x)| *x).collect()
}

/// A Gaussian kernel with 0 on the diagonal.
fn kernel(x: &Array2<f64>, bandwidth: f64) -> Array2<f64> {
    let distances = distances(x);
    let mut sorted = upper(&distances);
    sorted.sort_by(f64::total_cmp);
    let median = 0.5 * (sorted[(sorted.len() - 1) / 2] + sorted[sorted.len() / 2]);
    let mut kernel = distances.mapv(|d| (-0.5 * (d / (bandwidth * median)).powi(2)).exp());
    kernel.diag_mut().fill(0.);
    kernel
}

/// `HSIC_1` of Song et al. (2012), but for a factor of `n`.
fn hsic_1(k: &Array2<f64>, l: &Array2<f64>) -> f64 {
    let (n, rows) = (k.nrows() as f64, k.sum_axis(ndarray::Axis(1)).dot(&l.sum_axis(ndarray::Axis(1))));
    (k * l).sum() + k.sum() * l.sum() / ((n - 1.) * (n - 2.)) - 2. / (n - 2.) * rows
}

fn debiased_rbf_cka(x: &Array2<f64>, y: &Array2<f64>, bandwidth: f64) -> f64 {
    let (k, l) = (kernel(x, bandwidth), kernel(y, bandwidth));
    hsic_1(&k, &l) / (hsic_1(&k, &k) * hsic_1(&l, &l)).sqrt()
}

/// In 512 dimensions all samples are about equally far apart: with a bandwidth of 0.2 the kernel is 4e-6 everywhere.
#[test]
fn debiased_cka_of_narrow_kernels() -> Result<()> {
    let [x, y] = noisy(60, 512);
    for bandwidth in [0.15, 0.2, 0.4, 0.8] {
        let want = debiased_rbf_cka(&x, &y, bandwidth);
        let got = rbf_cka(&x, &y, Estimator::Debiased, bandwidth)?;
        assert!((got - want).abs() < 1e-9, "bandwidth {bandwidth}: {got}, want {want}");
    }
    Ok(())
}

/// One sample a billion times as far away as the others are from each other: their distances keep their order.
#[test]
fn one_far_sample_hides_no_other() -> Result<()> {
    let [mut x, mut y] = noisy(50, 3);
    for x in [&mut x, &mut y] {
        let mut far = x.row_mut(7);
        far += 1e9;
    }
    let ranks = |x: &Array2<f64>| -> Vec<f64> {
        let all = upper(&distances(x));
        all.iter().map(|d| all.iter().filter(|other| *other < d).count() as f64).collect()
    };
    let (left, right) = (ranks(&x), ranks(&y));
    let middle = (left.len() - 1) as f64 / 2.;
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| (a - middle) * (b - middle)).sum::<f64>();
    let want = dot(&left, &right) / dot(&left, &left);
    let got = rsa(&x, &y, Distance::Euclidean)?;
    assert!((got - want).abs() < 1e-6, "RSA {got}, want {want}");
    for bandwidth in [0.5, 1.] {
        let want = debiased_rbf_cka(&x, &y, bandwidth);
        let got = rbf_cka(&x, &y, Estimator::Debiased, bandwidth)?;
        assert!((got - want).abs() < 1e-6, "RBF CKA {got}, want {want}");
    }
    Ok(())
}

/// A block that adds the same vector to all samples, or the same number to all features of each, adds nothing to what is centred.
#[test]
fn blocks_that_add_what_centring_takes_away() -> Result<()> {
    let [x, y] = noisy(40, 6);
    let shifted = &x + &(&y.row(0) * 3.);
    let lifted = &x + &(&y.column(1) * 3.).insert_axis(ndarray::Axis(1));
    for (layer, centring) in [(shifted, Centring::Samples), (lifted, Centring::Features)] {
        let relations = block_relations(&[x.view(), layer.view()], centring)?;
        assert_eq!((relations.norm_ratio[0], relations.branch_cos[0]), (f64::INFINITY, 0.), "{centring:?}");
    }
    Ok(())
}

/// The arc cosine would have nothing but rounding left of an angle of 1e-9.
#[test]
fn small_angles() -> Result<()> {
    let angle = 1e-9 * std::f64::consts::PI;
    let turned = array![[angle.cos(), angle.sin()]];
    let got = angular_distance(&array![[2., 0.]], &turned, Centring::None)?;
    assert!((got / 1e-9 - 1.).abs() < 1e-6, "{got}");
    assert!(angular_distance(&turned, &(&turned * 3.), Centring::None)? <= 1e-16);
    Ok(())
}

/// A second, orthogonal factor of twice the size outweighs the common one: `1 / sqrt(1 + 2^4)`.
#[test]
fn cka_weighs_directions_by_their_variance() -> Result<()> {
    let y = concatenate![ndarray::Axis(1), design(&[1]), design(&[2]) * 2.];
    close(cka(&design(&[1]), &y, Estimator::Biased)?, 1. / 17f64.sqrt());
    Ok(())
}

#[test]
fn one_hot_classes_and_signs_are_the_same_representation() -> Result<()> {
    let classes = array![[1., 0.], [1., 0.], [0., 1.], [0., 1.], [0., 1.]];
    let signs = array![[1.], [1.], [-1.], [-1.], [-1.]];
    for estimator in [Estimator::Biased, Estimator::Debiased] {
        close(cka(&classes, &signs, estimator)?, 1.);
    }
    Ok(())
}

/// All samples equally far apart: the unbiased estimate of a representation's dependence on itself is 0, not rounding.
#[test]
fn equidistant_samples_have_no_debiased_cka() -> Result<()> {
    for x in [design(&[1, 2, 3, 4, 5, 6, 7]), Array2::eye(5), Array2::eye(9) * 0.1 + 0.3] {
        let result = cka(&x, &x, Estimator::Debiased);
        assert!(matches!(result, Err(Error::Degenerate { .. })), "{result:?}");
        close(cka(&x, &x, Estimator::Biased)?, 1.);
    }
    Ok(())
}

#[test]
fn matrices_of_layers() -> Result<()> {
    let (a, b, both) = (design(&[1]), design(&[2]), design(&[1, 2]));
    let half = 0.5f64.sqrt();
    let got = pairwise(&[&a, &b, &both], Measure::Cka(Estimator::Biased))?;
    let want = array![[1., 0., half], [0., 1., half], [half, half, 1.]];
    assert!((got - want).iter().all(|difference| difference.abs() < TOLERANCE));

    let flipped = -&a;
    let got = pairwise_between(&[&a], &[&a, &b, &flipped], Measure::Cos(Centring::None))?;
    // The signs of `a` and `b` agree for half of the samples.
    assert_eq!(got, array![[1., 0., -1.]]);
    Ok(())
}

/// Neither squares nor sums overflow or vanish: both measures do not depend on scale.
#[test]
fn scales_at_the_ends_of_f64() -> Result<()> {
    let (x, y) = (array![[1.], [2.], [3.], [4.]], array![[1.], [3.], [2.], [4.]]);
    let spread = array![[1., -1.], [-1., 1.], [1., 1.], [0.5, -1.]];
    let cosine = |scale: f64, centring| {
        cos(&(&spread * scale), &array![[1., 0.], [0., 1.], [1., 0.], [1., 1.]], centring)
    };
    for scale in [1e-300, 1e300, f64::MAX / 4.] {
        close(cka(&(&x * scale), &y, Estimator::Biased)?, 0.64);
        close(cka(&(&x * scale), &(&y * scale), Estimator::Biased)?, 0.64);
        let debiased = cka(&x, &y, Estimator::Debiased)?;
        close(cka(&(&x * scale), &(&y * scale), Estimator::Debiased)?, debiased);
        for centring in [Centring::Samples, Centring::Features, Centring::None] {
            close(cosine(scale, centring)?, cosine(1., centring)?);
        }
    }
    // The two largest numbers of opposite sign, whose difference is infinite.
    let ends = array![[f64::MAX, f64::MIN], [f64::MIN, f64::MAX]];
    for centring in [Centring::Samples, Centring::Features, Centring::None] {
        close(cos(&ends, &ends, centring)?, 1.);
    }
    close(cka(&ends, &ends, Estimator::Biased)?, 1.);
    Ok(())
}

/// Eighths at an offset of 2^40 are exact, and so are their differences: centring must not lose them.
#[test]
fn an_offset_costs_no_digits() -> Result<()> {
    let x = Array2::from_shape_fn((8, 3), |(i, j)| ((i * i * (j + 2) + 5 * j) % 17) as f64 / 8.);
    let y = Array2::from_shape_fn((8, 3), |(i, j)| ((i * (j + 3) + j * j) % 13) as f64 / 8.);
    let far = &x + 2f64.powi(40);
    for centring in [Centring::Samples, Centring::Features] {
        let want = cos_per_sample(&x, &y, centring)?;
        assert_eq!(cos_per_sample(&far, &y, centring)?, want);
    }
    for estimator in [Estimator::Biased, Estimator::Debiased] {
        assert_eq!(cka(&far, &y, estimator)?, cka(&x, &y, estimator)?);
    }
    Ok(())
}
