//! Sums that come batch by batch give what all samples together give, whatever the batches and the order of merging.

mod samples;

use layerwise_similarity::{
    Centring, ClassAccumulator, CosAccumulator, Error, Estimator, MeanAccumulator, Measure,
    MomentAccumulator, Result, cka, pairwise, pairwise_between,
};
use ndarray::{Array2, Axis, s};
use samples::{OF_MOMENTS, noise};

/// What an accumulator and a definition on all samples may differ by, of numbers up to 1. Sums of some thousand products cost 4
/// of 16 digits.
const TOLERANCE: f64 = 1e-9;

const ESTIMATORS: [Estimator; 2] = [Estimator::Biased, Estimator::Debiased];

/// Independent standard normal numbers (Box and Muller).
fn gaussian(seed: u64, n: usize, width: usize) -> Array2<f64> {
    let (radius, angle) = (noise(2 * seed + 1, n, width), noise(2 * seed + 2, n, width));
    let mut xs = radius.mapv(|u| (-2. * ((u + 1.) / 2.).max(1e-300).ln()).sqrt());
    xs.zip_mut_with(&angle, |r, v| *r *= (std::f64::consts::PI * v).cos());
    xs
}

/// Layers that resemble each other, far from 0 and, sorted, with a mean that drifts: the shift of the first samples is not that of
/// the last.
fn stack(n: usize) -> Vec<Array2<f64>> {
    let drift = |i: usize| 20. * i as f64 / n as f64;
    let base = noise(1, n, 6);
    let mut layers = vec![base.clone()];
    for (seed, width) in [(2, 6), (3, 9), (4, 4)] {
        layers.push(base.dot(&noise(seed, 6, width)) + 0.5 * noise(seed + 10, n, width));
    }
    for (l, layer) in layers.iter_mut().enumerate() {
        for (i, mut row) in layer.rows_mut().into_iter().enumerate() {
            row += 1e3 * l as f64 + drift(i);
        }
    }
    layers
}

fn widths(layers: &[Array2<f64>]) -> Vec<usize> {
    layers.iter().map(|layer| layer.ncols()).collect()
}

fn pushed(layers: &[Array2<f64>], rows: std::ops::Range<usize>, batch: usize) -> Result<MomentAccumulator> {
    let mut moments = MomentAccumulator::new(&widths(layers))?;
    for start in rows.clone().step_by(batch) {
        let end = rows.end.min(start + batch);
        moments.push(&layers.iter().map(|layer| layer.slice(s![start..end, ..])).collect::<Vec<_>>())?;
    }
    Ok(moments)
}

fn close(what: &str, got: &Array2<f64>, want: &Array2<f64>, tolerance: f64) {
    assert_eq!(got.dim(), want.dim(), "{what}");
    for ((at, got), want) in got.indexed_iter().zip(want) {
        assert!((got - want).abs() <= tolerance, "{what} {at:?}: {got}, want {want}");
    }
}

/// `HSIC_1` of Song et al. by its definition: Gram matrices with zeros on the diagonal.
fn hsic_1(x: &Array2<f64>, y: &Array2<f64>) -> f64 {
    let gram = |xs: &Array2<f64>| {
        let xs = xs - &xs.sum_axis(Axis(0)) / xs.nrows() as f64;
        let mut gram = xs.dot(&xs.t());
        gram.diag_mut().fill(0.);
        gram
    };
    let (k, l, n) = (gram(x), gram(y), x.nrows() as f64);
    (&k * &l).sum() + k.sum() * l.sum() / ((n - 1.) * (n - 2.))
        - 2. / (n - 2.) * k.sum_axis(Axis(0)).dot(&l.sum_axis(Axis(1)))
}

#[test]
fn debiased_cka_in_one_pass_is_that_of_the_gram_matrices() -> Result<()> {
    for n in [4, 30, 700, 2500] {
        let layers = stack(n);
        let got = pushed(&layers, 0..n, 64)?.pairwise(Measure::Cka(Estimator::Debiased))?;
        let want = Array2::from_shape_fn(got.dim(), |(i, j)| {
            let [x, y] = [&layers[i], &layers[j]];
            hsic_1(x, y) / (hsic_1(x, x) * hsic_1(y, y)).sqrt()
        });
        close(&format!("{n} samples"), &got, &want, TOLERANCE);
        close(
            &format!("{n} samples"),
            &pairwise(&layers, Measure::Cka(Estimator::Debiased))?,
            &want,
            TOLERANCE,
        );
    }
    Ok(())
}

#[test]
fn the_size_of_batches_does_not_show() -> Result<()> {
    let layers = stack(2500);
    for measure in OF_MOMENTS {
        let want = pushed(&layers, 0..2500, 2500)?.pairwise(measure)?;
        for batch in [1, 8, 512] {
            // To the last bit: sums are cut at the same samples.
            assert_eq!(
                pushed(&layers, 0..2500, batch)?.pairwise(measure)?,
                want,
                "{measure:?}, batches of {batch}"
            );
        }
        // By other sums.
        let tolerance = if measure == Measure::ProcrustesDistance { 1e-6 } else { TOLERANCE };
        close(&format!("{measure:?}"), &pairwise(&layers, measure)?, &want, tolerance);
    }
    Ok(())
}

#[test]
fn the_order_of_merging_does_not_show() -> Result<()> {
    let (layers, n) = (stack(2500), 2500);
    let cuts = [0, 1, 3, 400, 401, 1900, n];
    let parts = || cuts.windows(2).map(|cut| pushed(&layers, cut[0]..cut[1], 8)).collect::<Result<Vec<_>>>();
    let orders: [[usize; 6]; 4] =
        [[0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0], [2, 5, 0, 3, 1, 4], [4, 0, 5, 1, 3, 2]];
    for measure in OF_MOMENTS {
        let want = pushed(&layers, 0..n, 512)?.pairwise(measure)?;
        let tolerance = if measure == Measure::ProcrustesDistance { 1e-6 } else { TOLERANCE };
        for order in orders {
            let parts = parts()?;
            let mut all = MomentAccumulator::new(&widths(&layers))?;
            for &part in &order {
                all.merge(parts[part].clone())?;
            }
            assert_eq!(all.samples(), n);
            close(&format!("{measure:?}, {order:?}"), &all.pairwise(measure)?, &want, tolerance);
        }
        // As a tree, through files, with a part that is empty.
        let mut halves = parts()?
            .chunks(3)
            .map(|parts| {
                let mut half = MomentAccumulator::new(&widths(&layers))?;
                for part in parts {
                    half.merge(MomentAccumulator::from_bytes(&part.clone().to_bytes()?)?)?;
                }
                Ok(half)
            })
            .collect::<Result<Vec<_>>>()?;
        let (mut right, left) = (halves.remove(1), halves.remove(0));
        right.merge(left)?;
        right.merge(MomentAccumulator::new(&widths(&layers))?)?;
        close(&format!("{measure:?}, a tree"), &right.pairwise(measure)?, &want, tolerance);
    }
    Ok(())
}

#[test]
fn samples_may_come_in_any_order() -> Result<()> {
    let layers = stack(1500);
    let order: Vec<usize> = (0..1500).map(|i| i * 7 % 1500).collect();
    let shuffled: Vec<Array2<f64>> = layers.iter().map(|layer| layer.select(Axis(0), &order)).collect();
    for estimator in ESTIMATORS {
        let measure = Measure::Cka(estimator);
        let (got, want) = (
            pushed(&shuffled, 0..1500, 100)?.pairwise(measure)?,
            pushed(&layers, 0..1500, 100)?.pairwise(measure)?,
        );
        close(&format!("{estimator:?}"), &got, &want, TOLERANCE);
    }
    Ok(())
}

#[test]
fn two_stacks() -> Result<()> {
    let layers = stack(600);
    let (left, right) = layers.split_at(1);
    let mut between = MomentAccumulator::between(&widths(left), &widths(right))?;
    for start in (0..600).step_by(50) {
        between
            .push(&layers.iter().map(|layer| layer.slice(s![start..start + 50, ..])).collect::<Vec<_>>())?;
    }
    let mut read = MomentAccumulator::from_bytes(&between.to_bytes()?)?;
    for measure in OF_MOMENTS {
        let want = pairwise_between(left, right, measure)?;
        close(&format!("{measure:?}"), &between.pairwise(measure)?, &want, TOLERANCE);
        assert_eq!(read.pairwise(measure)?, between.pairwise(measure)?);
    }
    Ok(())
}

#[test]
fn cos_in_two_passes() -> Result<()> {
    let layers: Vec<Array2<f64>> = (0..3).map(|l| noise(l, 500, 5) + 100. * l as f64).collect();
    let batches = |size: usize| {
        (0..500).step_by(size).map(move |start| s![start..(start + size).min(500), ..]).collect::<Vec<_>>()
    };
    let want = pairwise(&layers, Measure::Cos(Centring::Samples))?;
    let mut means = MeanAccumulator::new(&[5, 5, 5])?;
    for rows in batches(7) {
        means.push(&layers.iter().map(|layer| layer.slice(rows)).collect::<Vec<_>>())?;
    }
    for size in [1, 8, 512] {
        let parts = batches(size);
        let mut all = CosAccumulator::centred(means.clone())?;
        // The second half first, by way of another accumulator.
        let (first, second) = parts.split_at(parts.len() / 2);
        for rows in second {
            all.push(&layers.iter().map(|layer| layer.slice(*rows)).collect::<Vec<_>>())?;
        }
        let mut other = CosAccumulator::centred(means.clone())?;
        for rows in first {
            other.push(&layers.iter().map(|layer| layer.slice(*rows)).collect::<Vec<_>>())?;
        }
        all.merge(CosAccumulator::from_bytes(&other.to_bytes())?)?;
        assert_eq!(all.samples(), 500);
        close(&format!("batches of {size}"), &all.pairwise()?, &want, TOLERANCE);
    }
    let given = CosAccumulator::with_means(means.means());
    let mut given = given?;
    given.push(&layers)?;
    close("given means", &given.pairwise()?, &want, TOLERANCE);
    for centring in [Centring::Features, Centring::None] {
        let mut cosines = CosAccumulator::uncentred(3, 5, centring)?;
        cosines.push(&layers)?;
        close(
            &format!("{centring:?}"),
            &cosines.pairwise()?,
            &pairwise(&layers, Measure::Cos(centring))?,
            TOLERANCE,
        );
    }
    Ok(())
}

#[test]
fn classes_that_come_one_after_the_other() -> Result<()> {
    let (x, labels): (_, Vec<usize>) = (noise(5, 300, 6), (0..300).map(|i| i / 100).collect());
    let mut sorted = ClassAccumulator::new(6, 3)?;
    let mut mixed = ClassAccumulator::new(6, 3)?;
    for start in (0..300).step_by(10) {
        sorted.push(&x.slice(s![start..start + 10, ..]), &labels[start..start + 10])?;
    }
    for first in 0..10 {
        let rows: Vec<usize> = (first..300).step_by(10).collect();
        mixed.push(&x.select(Axis(0), &rows), &rows.iter().map(|&i| labels[i]).collect::<Vec<_>>())?;
    }
    let (a, b) = (sorted.collapse()?, mixed.collapse()?);
    assert!((a.nc1 / b.nc1 - 1.).abs() < TOLERANCE, "{a:?} {b:?}");
    close("means", &sorted.means()?, &mixed.means()?, TOLERANCE);
    Ok(())
}

/// Independent Gaussian representations, 32 samples of 512 features, 100 draws: the biased estimate is about
/// `d / (d + n) = 0.94`, the debiased one has mean 0.
#[test]
fn independent_gaussian_representations() -> Result<(), Error> {
    let (mut biased, mut debiased) = (Vec::new(), Vec::new());
    for draw in 0..100 {
        let (x, y) = (gaussian(2 * draw, 32, 512), gaussian(2 * draw + 1, 32, 512));
        biased.push(cka(&x, &y, Estimator::Biased)?);
        debiased.push(cka(&x, &y, Estimator::Debiased)?);
    }
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    let (biased, mean, largest) =
        (mean(&biased), mean(&debiased), debiased.iter().fold(0f64, |a, b| a.max(b.abs())));
    println!("biased: mean {biased:.4}; debiased: mean {mean:+.5}, largest {largest:.4}");
    assert!((0.9..1.).contains(&biased), "{biased}");
    assert!(mean.abs() < 0.02, "{mean}");
    Ok(())
}
