//! Tables, plots, `results.json` and the report.

use std::path::Path;

use anyhow::{Context, Result};
use layerwise_example_common::{
    ModelResults, Report, Results, Table,
    curves::named,
    cut::Cut,
    exits::{Exits, exit_table, leaving, record_exits},
    images::TEST_BATCH,
    plots::{self, Series},
    table::{columns, per_layer, percent, thousandths},
};
use serde_json::json;

use crate::{Studied, TOLERANCE};

/// The two tables, and what the cut gave.
pub(crate) fn tables(studied: &[Studied], cut: &(Cut, u64)) -> String {
    let (layers, exits) = (layer_table(studied), exit_table(&exits(studied)));
    format!(
        "\nAccuracy (%), COS and CKA to the last layer:\n{layers}\nLeaving early:\n{exits}\n{}\n",
        cut_sentence(cut)
    )
}

/// Writes everything into `out`.
pub(crate) fn write(out: &Path, results: &mut Results, studied: &[Studied], cut: &(Cut, u64)) -> Result<()> {
    let figures = draw(out, studied)?;
    for model in studied {
        let mut entry = ModelResults::of(Some(&model.scores));
        entry.cos_to_last = to_last(&model.cos);
        entry.cka_to_last = to_last(&model.cka);
        entry.more.insert("cos".into(), json!(model.cos));
        entry.more.insert("cka".into(), json!(model.cka));
        entry.more.insert("curve".into(), json!(model.curve));
        results.models.insert(model.name.into(), entry);
    }
    let exits = exits(studied);
    record_exits(results, &exits)?;
    let mut entry = json!(cut.0);
    entry["model"] = json!("aligned");
    entry["full_bytes"] = json!(cut.1);
    entry["tolerance"] = json!(TOLERANCE);
    results.more.insert("cut".into(), entry);

    let mut report = Report::new("Quickstart: one ViT, trained standard and aligned");
    report
        .paragraph(
            "Two 12-layer vision transformers with equal initial weights learn the UCI optical digits: one with the loss \
             of the last layer, one with the paper's alternating objective, where a single classifier is applied after \
             every layer. Accuracies are on held-out images.",
        )
        .heading("What each layer knows")
        .figure(&figures.layers, "Accuracy of the shared classifier after each layer, and similarity of each layer to the last.")
        .table(&layer_table(studied), "Per layer: accuracy in percent, COS and CKA to the last layer.")
        .heading("How alike the layers are")
        .figure(&figures.heat, "Sample-wise cosine similarity of all pairs of layers, centred over samples.")
        .heading("Leaving early")
        .figure(&figures.exits, "Samples leaving after each layer at threshold 0.9.")
        .table(
            &exit_table(&exits),
            "A sample leaves at the first layer whose confidence exceeds the threshold. The layer ratio counts layers; \
             the time ratio is measured against the same engine without exits.",
        )
        .heading("Cutting the model")
        .paragraph(&cut_sentence(cut))
        .heading("Convergence")
        .figure(&figures.convergence, "Accuracy on held-out images during training.")
        .close(results, out)
}

struct Figures {
    layers: String,
    heat: String,
    exits: String,
    convergence: String,
}

fn draw(out: &Path, studied: &[Studied]) -> Result<Figures> {
    let series = |values| plots::series(1, curves(studied, values));
    let unit = Some((0., 1.));
    let layers = vec![
        plots::lines("Accuracy", "layer", "fraction correct", &series(|m| m.scores.accuracy.clone()), unit),
        plots::lines("COS to the last layer", "layer", "COS", &series(|m| to_last(&m.cos)), unit),
        plots::lines("CKA to the last layer", "layer", "linear CKA", &series(|m| to_last(&m.cka)), unit),
    ];
    let heat = studied
        .iter()
        .map(|model| {
            plots::heat_map(&format!("COS, {}", model.name), ("layer", "layer"), &model.cos, 1, (0., 1.))
        })
        .collect();
    let depth = studied.first().context("no model")?.scores.accuracy.len();
    let at = studied.iter().filter_map(|model| Some((model.name.to_owned(), model.exits.at(0.9)?)));
    let exits = leaving("Samples leaving, threshold 0.9", &at.collect::<Vec<_>>());
    let curve = |model: &Studied, layer: usize| {
        let points = model.curve.iter().map(|e| (e.epoch as f64, e.evaluation.accuracy[layer - 1]));
        Series::new(format!("{}, layer {layer}", model.name), points)
    };
    let curves: Vec<Series> =
        studied.iter().flat_map(|model| [curve(model, depth), curve(model, 4)]).collect();
    let convergence = plots::lines("Convergence", "epoch", "fraction correct", &curves, unit);
    Ok(Figures {
        layers: plots::write(&out.join("layers"), layers, 2)?,
        heat: plots::write(&out.join("similarity"), heat, 2)?,
        exits: plots::write(&out.join("exits"), vec![exits], 1)?,
        convergence: plots::write(&out.join("convergence"), vec![convergence], 1)?,
    })
}

/// The last row of a matrix over pairs of layers.
fn to_last(matrix: &[Vec<f64>]) -> Vec<f64> {
    matrix.last().cloned().unwrap_or_default()
}

fn layer_table(studied: &[Studied]) -> Table {
    let all = [
        columns("acc.", percent, curves(studied, |model| model.scores.accuracy.clone())),
        columns("COS", thousandths, curves(studied, |model| to_last(&model.cos))),
        columns("CKA", thousandths, curves(studied, |model| to_last(&model.cka))),
    ];
    per_layer(1, &all.concat())
}

fn exits(studied: &[Studied]) -> Vec<Exits> {
    studied.iter().map(|model| model.exits.clone()).collect()
}

fn curves(studied: &[Studied], values: fn(&Studied) -> Vec<f64>) -> Vec<(&str, Vec<f64>)> {
    named(studied, |model| model.name, values)
}

fn cut_sentence((cut, full_bytes): &(Cut, u64)) -> String {
    format!(
        "Layer {} is the first of the aligned model within {:.1} points of its best, on the held-out images: cut there, saved and \
         read back, it answers {} % of them rightly, bit for bit as exit {} does, in a file of {} instead of {} KB. (Time \
         ratios: batches of {TEST_BATCH}, the last one smaller.)",
        cut.depth,
        100. * TOLERANCE,
        percent(cut.accuracy),
        cut.depth,
        cut.bytes / 1000,
        full_bytes / 1000,
    )
}
