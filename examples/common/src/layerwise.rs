//! Models side by side, layer by layer: accuracy of every exit, and similarity of every layer to the last one.

use std::path::Path;

use anyhow::{Context, Result};
use candle_core::Tensor;
use layerwise_similarity::{Centring, Measure, ProbeConfig, fit_probe};

use crate::{
    ModelResults, Report, Results, Table,
    curves::named,
    plots, progress,
    similarity::to_last,
    table::{Column, columns, per_layer, percent, thousandths},
    vision::Subject,
};

/// A model and what its layers `1..=L` have in common with the last one.
#[derive(Debug)]
pub struct Layerwise {
    /// The model and its accuracy.
    pub subject: Subject,
    /// Sample-wise cosine to the last layer, mean over samples.
    pub cos: Vec<f64>,
}

impl Layerwise {
    /// Measures a model.
    ///
    /// # Errors
    ///
    /// As [`to_last`].
    pub fn of(subject: Subject) -> Result<Self> {
        let cos = to_last(subject.layers(), Measure::Cos(Centring::Samples))?;
        Ok(Self { subject, cos })
    }

    /// What tables and figures call it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.subject.name
    }

    /// Accuracy, loss and COS as `results.json` has them.
    #[must_use]
    pub fn results(&self) -> ModelResults {
        ModelResults { cos_to_last: self.cos.clone(), ..self.subject.results() }
    }

    /// Accuracy of the last layer.
    ///
    /// # Errors
    ///
    /// For a model without scores.
    pub fn last(&self) -> Result<f64> {
        self.subject.accuracy().last().copied().with_context(|| format!("{}: no accuracy", self.name()))
    }
}

/// Images that probes are fitted on, at most.
pub const PROBE_SAMPLES: usize = 10_000;

/// What a fresh linear classifier reads from each layer: fitted on features of some samples, scored on those of others.
///
/// # Errors
///
/// As [`fit_probe`].
pub fn probes(
    (seen, seen_labels): (&[Tensor], &[usize]),
    (held_out, labels): (&[Tensor], &[usize]),
    classes: usize,
) -> Result<Vec<f64>> {
    let probe = |(seen, held_out): (&Tensor, &Tensor)| {
        let probe = fit_probe(seen, seen_labels, classes, &ProbeConfig::default())?;
        Ok(probe.accuracy(held_out, labels)?)
    };
    seen.iter().zip(held_out).map(probe).collect()
}

/// Accuracy and COS of every layer of every model, a column each.
#[must_use]
pub fn layer_columns(models: &[Layerwise]) -> Vec<Column> {
    let all = [
        columns("acc.", percent, named(models, Layerwise::name, |model| model.subject.accuracy())),
        columns("COS", thousandths, named(models, Layerwise::name, |model| model.cos.clone())),
    ];
    all.concat()
}

/// Accuracy and COS of every layer of every model.
#[must_use]
pub fn layer_table(models: &[Layerwise]) -> Table {
    per_layer(1, &layer_columns(models))
}

/// Accuracy and COS over layers, a line for each model, as `{stem}.svg` and `{stem}.png`; gives the SVG.
///
/// # Errors
///
/// When a file cannot be written.
pub fn layer_figure(stem: &Path, models: &[Layerwise]) -> Result<String> {
    let lines = |title: &str, label: &str, values: fn(&Layerwise) -> Vec<f64>| {
        let series = plots::series(1, named(models, Layerwise::name, values));
        plots::lines(title, "layer", label, &series, Some((0., 1.)))
    };
    let panels = vec![
        lines("Accuracy", "fraction correct", |model| model.subject.accuracy()),
        lines("COS to the last layer", "COS", |model| model.cos.clone()),
    ];
    plots::write(stem, panels, 2)
}

/// Writes down, prints and draws what there is to say of models side by side.
///
/// # Errors
///
/// When a file cannot be written.
pub fn show(
    results: &mut Results,
    out: &Path,
    title: &str,
    about: &[&str],
    models: &[Layerwise],
) -> Result<()> {
    record(results, models);
    let table = layer_table(models);
    progress::print(&format!("\nAccuracy (%) and COS to the last layer:\n{table}"));
    let figure = layer_figure(&out.join("layers"), models)?;
    let mut report = Report::new(title);
    for text in about {
        report.paragraph(text);
    }
    report
        .figure(
            &figure,
            "Accuracy of the shared classifier after each layer, and similarity of each layer to the last.",
        )
        .table(&table, "Per layer: accuracy in percent, COS to the last layer.")
        .close(results, out)
}

/// Writes accuracy, loss and COS of every model down.
pub fn record(results: &mut Results, models: &[Layerwise]) {
    for model in models {
        results.models.insert(model.name().to_owned(), model.results());
    }
}
