//! The table, plots, `results.json` and the report.

use std::path::Path;

use anyhow::Result;
use layerwise::exit::LayerScores;
use layerwise_example_common::{
    ModelResults, Report, Results, Table,
    input::Input,
    layers::Source,
    plots::{self, Series},
    table::{decimals, percent},
};
use serde_json::json;

use crate::matrices::Matrices;

/// One row a layer.
pub(crate) fn table(matrices: &Matrices, scores: Option<&LayerScores>) -> Table {
    let mut columns = vec!["layer", "COS to last", "CKA to last", "debiased", "COS to next", "CKA to next"];
    if scores.is_some() {
        columns.push("accuracy");
    }
    let mut table = Table::new(columns);
    let last = matrices.cos.len() - 1;
    for layer in 0..=last {
        let cell = |matrix: &[Vec<f64>], other: usize| {
            matrix[layer].get(other).map_or("-".into(), |value| decimals(*value, 3))
        };
        let mut row = vec![
            layer.to_string(),
            cell(&matrices.cos, last),
            cell(&matrices.cka_biased, last),
            cell(&matrices.cka_debiased, last),
            cell(&matrices.cos, layer + 1),
            cell(&matrices.cka_biased, layer + 1),
        ];
        if let Some(scores) = scores {
            row.push(layer.checked_sub(1).map_or("-".into(), |i| percent(scores.accuracy[i])));
        }
        table.row(row);
    }
    table
}

/// Writes everything into `out`.
pub(crate) fn write(
    out: &Path,
    results: &mut Results,
    name: &str,
    input: &Input,
    matrices: &Matrices,
    scores: Option<&LayerScores>,
) -> Result<()> {
    let Matrices { cos, cka_biased, cka_debiased } = matrices;
    let to_last = |matrix: &[Vec<f64>]| matrix.last().cloned().unwrap_or_default();
    let inner = |matrix: &[Vec<f64>]| to_last(matrix).into_iter().skip(1).collect();
    let mut entry =
        ModelResults { cos_to_last: inner(cos), cka_to_last: inner(cka_biased), ..Default::default() };
    if let Some(LayerScores { accuracy, loss, .. }) = scores.cloned() {
        (entry.accuracy, entry.loss) = (accuracy, loss);
    }
    results.models.insert(name.to_owned(), entry);
    let similarity = json!({ "cos": cos, "cka_biased": cka_biased, "cka_debiased": cka_debiased });
    results.more.insert("similarity".into(), similarity);
    if let Some(files) = input.files() {
        results.more.insert("files".into(), json!(files));
    }

    let heat = [("COS", cos), ("linear CKA, biased", cka_biased), ("linear CKA, debiased", cka_debiased)];
    let heat =
        heat.map(|(title, matrix)| plots::heat_map(title, ("layer", "layer"), matrix, 0, (0., 1.))).into();
    let heat = plots::write(&out.join("similarity"), heat, 3)?;
    let neighbours = |matrix: &[Vec<f64>]| -> Vec<f64> {
        (1..matrix.len()).map(|layer| matrix[layer - 1][layer]).collect()
    };
    let last = [
        Series::per_layer("COS", 0, &to_last(cos)),
        Series::per_layer("CKA, biased", 0, &to_last(cka_biased)),
        Series::per_layer("CKA, debiased", 0, &to_last(cka_debiased)),
    ];
    let next = [
        Series::per_layer("COS", 1, &neighbours(cos)),
        Series::per_layer("CKA, biased", 1, &neighbours(cka_biased)),
        Series::per_layer("CKA, debiased", 1, &neighbours(cka_debiased)),
    ];
    let curves = vec![
        plots::lines("Similarity to the last layer", "layer", "similarity", &last, None),
        plots::lines("Similarity to the layer before", "layer", "similarity", &next, None),
    ];
    let curves = plots::write(&out.join("curves"), curves, 2)?;

    let samples = input.samples();
    Report::new(&format!("The layers of {name}"))
        .paragraph(&format!(
            "Hidden states of {samples} samples at the token that the prediction reads: layer 0 is the embedding, layer l \
             the output of block l before any exit norm. COS is sample-wise and centred over the samples; grey cells and \
             dashes are undefined, as where a layer is the same for all samples (the embedding of the class token) or \
             there are too few of them."
        ))
        .figure(&curves, "Each layer beside the last one, and beside the one before it.")
        .figure(&heat, "All pairs of layers, on one scale; values below 0 are drawn as 0.")
        .table(&table(matrices, scores), "Per layer.")
        .close(results, out)
}
