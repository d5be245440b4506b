//! Tables, plots and the report.

use std::path::Path;

use anyhow::Result;
use layerwise_example_common::{
    Report, Results, Table,
    curves::{Together, correlation_table},
    plots::{self, Series},
    progress,
    table::{columns, per_layer, percent, thousandths},
};

use crate::{
    SEEDS,
    measured::{Measured, Variant},
};

pub(crate) fn show(out: &Path, results: &mut Results, samples: usize, variants: &[Variant]) -> Result<()> {
    let (correlations, layers) = (correlations(variants), layer_table(variants));
    progress::print(&format!(
        "\nCorrelations over the layers but the last:\n{correlations}\nMeans of the seeds, accuracy (%), COS and CKA to the last layer:\n{layers}"
    ));

    let panels = variants.iter().map(|variant| {
        let curve = |name: &str, values: fn(&Measured) -> Vec<f64>| {
            Series::per_layer(name, 1, &variant.mean_of(values))
        };
        let series = [
            curve("COS", |model| model.cos.clone()),
            curve("CKA", |model| model.cka.clone()),
            curve("accuracy", |model| model.scores.accuracy.clone()),
        ];
        plots::lines(variant.name, "layer", "similarity to the last layer, accuracy", &series, Some((0., 1.)))
    });
    let figure = plots::write(&out.join("curves"), panels.collect(), 2)?;
    Report::new("MLPs with and without residual connections")
        .paragraph(&format!(
            "9-layer MLPs trained with the loss of the last layer; {samples} held-out images; means of {SEEDS} seeds. COS is sample-wise and centred over \
             the samples, CKA linear and biased.",
        ))
        .figure(&figure, "COS and CKA to the last layer, and accuracy of the last layer's classifier after each layer.")
        .table(&correlations, "Correlations over the layers but the last, where every similarity is 1.")
        .table(&layers, "Means of the seeds per layer: accuracy in percent, COS and CKA to the last layer.")
        .close(results, out)
}

fn correlations(variants: &[Variant]) -> Table {
    let mut rows: Vec<(String, &[Together])> = Vec::new();
    for Variant { name, models, mean } in variants {
        rows.extend(
            models.iter().map(|model| (format!("{name}, seed {}", model.seed), &*model.correlations)),
        );
        rows.push((format!("{name}, mean"), mean));
    }
    correlation_table(rows.iter().map(|(name, pairs)| (&**name, *pairs)))
}

fn layer_table(variants: &[Variant]) -> Table {
    let column = |name: &str, write, values: fn(&Measured) -> Vec<f64>| {
        columns(name, write, variants.iter().map(|variant| (variant.name, variant.mean_of(values))))
    };
    let all = [
        column("acc.", percent, |model| model.scores.accuracy.clone()),
        column("COS", thousandths, |model| model.cos.clone()),
        column("CKA", thousandths, |model| model.cka.clone()),
    ];
    per_layer(1, &all.concat())
}
