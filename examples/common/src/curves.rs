//! Curves over layers: their means, and how two of them go together.

use layerwise_data::metrics::{pearson, spearman};
use serde::Serialize;

use crate::table::{Table, decimals};

/// Two curves over the layers of one model, and how they go together.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Together {
    /// The curves' names.
    pub curves: [String; 2],
    /// Pearson's correlation.
    pub pearson: f64,
    /// Spearman's correlation.
    pub spearman: f64,
}

/// Correlations over the layers but the last, where similarity to the last layer is 1 whatever the model does.
#[must_use]
pub fn together((name, x): (&str, &[f64]), (other, y): (&str, &[f64])) -> Together {
    let inner = |values: &[f64]| values[..values.len().saturating_sub(1)].to_vec();
    let (x, y) = (inner(x), inner(y));
    let curves = [name.to_owned(), other.to_owned()];
    Together { curves, pearson: pearson(&x, &y), spearman: spearman(&x, &y) }
}

/// A row for each model and pair of curves.
#[must_use]
pub fn correlation_table<'a>(models: impl IntoIterator<Item = (&'a str, &'a [Together])>) -> Table {
    let mut table = Table::new(["model", "curves", "Pearson", "Spearman"]);
    for (model, pairs) in models {
        for pair in pairs {
            let cells = [decimals(pair.pearson, 3), decimals(pair.spearman, 3)];
            table.row([vec![model.to_owned(), pair.curves.join(", ")], cells.to_vec()].concat());
        }
    }
    table
}

/// A curve of each model, under its name.
pub fn named<M>(models: &[M], name: fn(&M) -> &str, values: fn(&M) -> Vec<f64>) -> Vec<(&str, Vec<f64>)> {
    models.iter().map(|model| (name(model), values(model))).collect()
}

/// The mean of curves over as many layers.
#[must_use]
pub fn mean_curve(curves: &[Vec<f64>]) -> Vec<f64> {
    let layers = curves.iter().map(Vec::len).min().unwrap_or(0);
    let mean = |layer: usize| curves.iter().map(|curve| curve[layer]).sum::<f64>() / curves.len() as f64;
    (0..layers).map(mean).collect()
}

/// The mean of each pair over models that have the same pairs.
#[must_use]
pub fn mean_together(models: &[&[Together]]) -> Vec<Together> {
    let Some(first) = models.first() else { return Vec::new() };
    let mean = |pick: &dyn Fn(&[Together]) -> f64| {
        models.iter().map(|pairs| pick(pairs)).sum::<f64>() / models.len() as f64
    };
    let pair = |(i, pair): (usize, &Together)| Together {
        curves: pair.curves.clone(),
        pearson: mean(&|pairs| pairs[i].pearson),
        spearman: mean(&|pairs| pairs[i].spearman),
    };
    first.iter().enumerate().map(pair).collect()
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
    fn the_last_layer_does_not_count() {
        let pair = together(("COS", &[0.1, 0.2, 0.3, 1.]), ("CKA", &[0.3, 0.2, 0.1, 1.]));
        assert!((pair.pearson + 1.).abs() < 1e-12 && (pair.spearman + 1.).abs() < 1e-12);
        let up = together(("COS", &[0.1, 0.2, 1.]), ("CKA", &[0.3, 0.4, 1.]));
        let mean = mean_together(&[std::slice::from_ref(&pair), std::slice::from_ref(&up)]);
        assert!(mean[0].pearson.abs() < 1e-12, "{mean:?}");
        let table = correlation_table([("m", &mean[..])]).to_string();
        assert!(table.contains("COS, CKA"), "{table}");
    }

    #[test]
    fn what_does_not_vary_has_none() {
        assert!(pearson(&[1., 2.], &[3., 3.]).is_nan() && spearman(&[1.], &[2.]).is_nan());
        assert!(spearman(&[1., 2., f64::NAN], &[1., 2., 3.]).is_nan());
        assert!(pearson(&[1., 2., f64::NAN], &[1., 2., 3.]).is_nan());
        assert!(pearson(&[], &[]).is_nan() && pearson(&[0.3; 12], &[0.1; 12]).is_nan());
    }
}
