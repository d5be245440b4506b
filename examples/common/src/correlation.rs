//! How two sequences go together.

/// Pearson's correlation; NaN where one of them is constant or there are fewer than two pairs.
#[must_use]
pub fn pearson(x: &[f64], y: &[f64]) -> f64 {
    let n = x.len().min(y.len());
    let centred = |values: &[f64]| -> Vec<f64> {
        let mean = values.iter().sum::<f64>() / n as f64;
        values.iter().map(|value| value - mean).collect()
    };
    let (x, y) = (centred(&x[..n]), centred(&y[..n]));
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let scale = (dot(&x, &x) * dot(&y, &y)).sqrt();
    if scale > 0. { (dot(&x, &y) / scale).clamp(-1., 1.) } else { f64::NAN }
}

/// Spearman's correlation: Pearson's of the ranks, equal values sharing their mean rank.
#[must_use]
pub fn spearman(x: &[f64], y: &[f64]) -> f64 {
    let n = x.len().min(y.len());
    pearson(&ranks(&x[..n]), &ranks(&y[..n]))
}

fn ranks(values: &[f64]) -> Vec<f64> {
    let below = |value: f64| values.iter().filter(|other| **other < value).count();
    let equal = |value: f64| values.iter().filter(|other| **other == value).count();
    values.iter().map(|&value| below(value) as f64 + (equal(value) as f64 - 1.) / 2.).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    // Equivalent Python: scipy.stats.pearsonr(x, y)[0], scipy.stats.spearmanr(x, y)[0]
    #[test]
    fn agrees_with_scipy() {
        let (x, y) = ([1., 2., 3., 4., 5.], [2., 1., 4., 3., 7.]);
        assert!((pearson(&x, &y) - 0.824_163_383_692_134_2).abs() < 1e-12);
        assert!((spearman(&x, &y) - 0.8).abs() < 1e-12);
        let ties = [1., 1., 2., 2., 3.];
        assert!((spearman(&x, &ties) - 0.948_683_298_050_513_7).abs() < 1e-12);
    }

    #[test]
    fn a_monotone_map_changes_pearson_only() {
        let x = [0.1, 0.4, 0.5, 0.9];
        let y = x.map(|x: f64| x.powi(9));
        assert!((spearman(&x, &y) - 1.).abs() < 1e-12 && pearson(&x, &y) < 0.95);
    }

    #[test]
    fn what_does_not_vary_has_none() {
        assert!(pearson(&[1., 2.], &[3., 3.]).is_nan() && spearman(&[1.], &[2.]).is_nan());
        assert!(pearson(&[], &[]).is_nan());
    }
}
