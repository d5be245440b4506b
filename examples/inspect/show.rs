//! The tables, plots, `results.json` and the report.

use std::path::Path;

use anyhow::Result;
use layerwise::exit::LayerScores;
use layerwise_example_common::{
    ModelResults, Report, Results, Table,
    curves::named,
    layers::Source,
    measures::NamedMeasure,
    plots::{self, Panel, Series},
    progress,
    table::{Column, per_layer, percent, thousandths},
};
use serde_json::{Map, Value, json};

use crate::measures::Matrix;

/// What was measured of the model, and of it and another.
pub(crate) struct Inspected {
    pub(crate) name: String,
    /// Over layers `0..=L`.
    pub(crate) within: Vec<Matrix>,
    pub(crate) scores: Option<LayerScores>,
    pub(crate) other: Option<Other>,
}

/// A second model beside the first.
pub(crate) struct Other {
    pub(crate) name: String,
    pub(crate) unexpected: Vec<String>,
    /// Its layers `0..=L'` in columns, those of the first model in rows.
    pub(crate) across: Vec<Matrix>,
}

/// Writes everything into `out`, and prints the tables.
pub(crate) fn show(
    out: &Path,
    results: &mut Results,
    input: &dyn Source,
    inspected: &Inspected,
) -> Result<()> {
    let Inspected { name, within, scores, other } = inspected;
    let inner = |named| {
        let matrix = within.iter().find(|matrix| matrix.named == named);
        matrix.map(|matrix| to_last(matrix)[1..].to_vec()).unwrap_or_default()
    };
    let mut entry = ModelResults::of(scores.as_ref());
    (entry.cos_to_last, entry.cka_to_last) = (inner(NamedMeasure::Cos), inner(NamedMeasure::Cka));
    results.models.insert(name.clone(), entry);
    results.more.insert("similarity".into(), by_key(within));
    if let Some(Other { name, unexpected, across }) = other {
        let between =
            json!({ "other": name, "similarity": by_key(across), "unexpected_tensors": unexpected });
        results.more.insert("between".into(), between);
    }
    if let Some(files) = input.files() {
        results.more.insert("files".into(), json!(files));
    }

    let (layers, neighbours) = (layer_table(inspected), neighbour_table(within));
    progress::print(&format!("Each layer and the last:\n{layers}\nEach layer and the next:\n{neighbours}"));
    let heat = |matrices: &[Matrix], labels: (&str, &str)| -> Vec<Panel> {
        let panel =
            |Matrix { named, values }: &Matrix| plots::heat_map(named.title(), labels, values, 0, (0., 1.));
        matrices.iter().map(panel).collect()
    };
    let columns = within.len().min(3);
    let maps = plots::write(&out.join("similarity"), heat(within, ("layer", "layer")), columns)?;
    let curves = |values: fn(&Matrix) -> Vec<f64>, first| -> Vec<Series> {
        plots::series(first, named(within, |matrix| matrix.named.title(), values))
    };
    let distances = within.iter().any(|matrix| matrix.named == NamedMeasure::Angular);
    let unit = if distances { "similarity; angular: distance" } else { "similarity" };
    let panels = vec![
        plots::lines("Each layer and the last", "layer", unit, &curves(to_last, 0), None),
        plots::lines("Each layer and the one before", "layer", unit, &curves(to_next, 1), None),
    ];
    let panels = plots::write(&out.join("curves"), panels, 2)?;

    let mut report = Report::new(&format!("The layers of {name}"));
    report
        .paragraph(&format!(
            "Hidden states of {} samples at the token that the prediction reads: layer 0 is the embedding, layer l \
             the output of block l before any exit norm. COS is sample-wise and centred over the samples; grey cells and \
             dashes are undefined, as where a layer is the same for all samples (the embedding of the class token) or \
             there are too few of them.",
            input.samples()
        ))
        .figure(&panels, "Each layer beside the last one, and beside the one before it.")
        .figure(&maps, "All pairs of layers, on one scale; values below 0 are drawn as 0.")
        .table(&layers, "Each layer and the last one.")
        .table(&neighbours, "Each layer and the next one.");
    if let Some(Other { name: other, across, .. }) = other {
        let labels = (format!("layer of {other}"), format!("layer of {name}"));
        let maps = plots::write(&out.join("between"), heat(across, (&labels.0, &labels.1)), columns)?;
        let nearest = nearest_table(across);
        progress::print(&format!(
            "\nThe layer of {other} that is most like each layer of {name}:\n{nearest}"
        ));
        report
            .heading(&format!("Beside {other}"))
            .figure(
                &maps,
                "Layers of both models on the same samples, on one scale; values below 0 are drawn as 0.",
            )
            .table(&nearest, "The other model's most similar layer, and how similar it is.");
    }
    report.close(results, out)
}

/// A row for each layer but the last, and a column for each measure.
fn neighbour_table(within: &[Matrix]) -> Table {
    let column = |matrix: &Matrix| (matrix.named.title().to_owned(), thousandths as _, to_next(matrix));
    per_layer(0, &within.iter().map(column).collect::<Vec<Column>>())
}

/// A row for each layer, a column for each measure, and the accuracy.
fn layer_table(Inspected { within, scores, .. }: &Inspected) -> Table {
    let column = |matrix: &Matrix| (matrix.named.title().to_owned(), thousandths as _, to_last(matrix));
    let mut columns: Vec<Column> = within.iter().map(column).collect();
    if let Some(scores) = scores {
        // The embedding has no exit.
        columns.push(("accuracy".into(), percent, [vec![f64::NAN], scores.accuracy.clone()].concat()));
    }
    per_layer(0, &columns)
}

/// For each layer of ours the other's most similar one.
fn nearest_table(across: &[Matrix]) -> Table {
    let titles = across.iter().map(|matrix| matrix.named.title().to_owned());
    let mut table = Table::new(std::iter::once("layer".to_owned()).chain(titles));
    for layer in 0..across.first().map_or(0, |matrix| matrix.values.len()) {
        let cell = |Matrix { named, values }: &Matrix| {
            let sign = if *named == NamedMeasure::Angular { -1. } else { 1. };
            let defined = values[layer].iter().enumerate().filter(|(_, value)| value.is_finite());
            let best = defined.max_by(|(_, a), (_, b)| (sign * **a).total_cmp(&(sign * **b)));
            best.map_or("-".into(), |(other, value)| format!("{other} ({})", thousandths(*value)))
        };
        table.row(std::iter::once(layer.to_string()).chain(across.iter().map(cell)));
    }
    table
}

fn by_key(matrices: &[Matrix]) -> Value {
    let entry = |matrix: &Matrix| (matrix.named.key().to_owned(), json!(matrix.values));
    matrices.iter().map(entry).collect::<Map<_, _>>().into()
}

/// Each layer with the last one.
fn to_last(matrix: &Matrix) -> Vec<f64> {
    matrix.values.iter().map(|row| row.last().copied().unwrap_or(f64::NAN)).collect()
}

/// Each layer but the last with the one behind it.
fn to_next(matrix: &Matrix) -> Vec<f64> {
    (1..matrix.values.len()).map(|layer| matrix.values[layer - 1][layer]).collect()
}
