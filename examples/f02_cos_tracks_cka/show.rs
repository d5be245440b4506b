//! Tables, plots and the report.

use std::path::Path;

use anyhow::Result;
use layerwise_example_common::{
    Report, Results, Table,
    curves::mean_curve,
    plots::{self, Series},
    progress,
    table::{Column, per_layer, percent, thousandths},
    vision::Vision,
};

use crate::Measured;

pub(crate) fn show(
    out: &Path,
    results: &mut Results,
    vision: &Vision<'_>,
    models: &[Measured],
    correlations: &Table,
) -> Result<()> {
    progress::print(&format!("\nCorrelations over the layers but the last:\n{correlations}"));
    let layers = layer_table(models);
    progress::print(&format!(
        "\nMeans over models, accuracy (%), COS and CKA (biased, debiased) to the last layer:\n{layers}"
    ));

    let tracks = plots::write(&out.join("tracks"), models.iter().map(tracks).collect(), 3)?;
    let heat = models.iter().map(|Measured { subject, cos, .. }| {
        plots::heat_map(&format!("COS, {}", subject.name), ("layer", "layer"), cos, 1, (0., 1.))
    });
    let heat = plots::write(&out.join("similarity"), heat.collect(), 3)?;
    Report::new("COS, CKA and accuracy through depth")
        .paragraph(&vision.about())
        .figure(
            &tracks,
            "COS, linear CKA and accuracy of each layer; similarities are those to the last layer.",
        )
        .table(correlations, "Correlations over the layers but the last, where every similarity is 1.")
        .figure(&heat, "COS of all pairs of layers, on one scale; values below 0 are drawn as 0.")
        .table(&layers, "Per layer, means over models: accuracy in percent, COS and CKA to the last layer.")
        .close(results, out)
}

fn layer_table(models: &[Measured]) -> Table {
    let column = |name: &str, write: fn(f64) -> String, values: fn(&Measured) -> Vec<f64>| -> Column {
        (name.to_owned(), write, mean_curve(&models.iter().map(values).collect::<Vec<_>>()))
    };
    let columns = [
        column("accuracy", percent, |model| model.subject.accuracy()),
        column("COS", thousandths, |model| model.cos_to_last.clone()),
        column("CKA", thousandths, |model| model.cka.clone()),
        column("debiased", thousandths, |model| model.cka_debiased.clone()),
    ];
    per_layer(1, &columns)
}

fn tracks(model: &Measured) -> plots::Panel {
    let series = [
        Series::per_layer("COS", 1, &model.cos_to_last),
        Series::per_layer("CKA", 1, &model.cka),
        Series::per_layer("CKA, debiased", 1, &model.cka_debiased),
        Series::per_layer("accuracy", 1, &model.subject.accuracy()),
    ];
    plots::lines(
        &model.subject.name,
        "layer",
        "similarity to the last layer, accuracy",
        &series,
        Some((0., 1.)),
    )
}
