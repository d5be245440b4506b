//! Tables, plots and the report.

use std::path::Path;

use anyhow::{Context, Result};
use layerwise::exit::minimal_depth;
use layerwise_example_common::{
    Report, Results, Table,
    cut::Cut,
    layerwise::Layerwise,
    plots::{self, Series},
    progress,
    table::{decimals, percent},
    vision::Vision,
};
use serde_json::json;

use crate::TOLERANCES;

pub(crate) fn show(
    out: &Path,
    results: &mut Results,
    vision: &Vision<'_>,
    models: &[Layerwise],
    cuts: &[Cut],
) -> Result<()> {
    let (aligned, standard) = models.split_last().context("no model")?;
    let mut depths = Table::new(["depth", "trained at it", "aligned, cut there", "difference", "bytes"]);
    for cut in cuts {
        let own =
            standard.iter().find(|model| model.cos.len() == cut.depth).map(Layerwise::last).transpose()?;
        let own = own.unwrap_or(f64::NAN);
        let (trained, difference) = (percent(own), decimals(100. * (cut.accuracy - own), 1));
        depths.row([
            cut.depth.to_string(),
            trained,
            percent(cut.accuracy),
            difference,
            cut.bytes.to_string(),
        ]);
    }
    let mut minimal = Table::new(["points lost to the best layer", "standard", "aligned"]);
    for points in TOLERANCES {
        let of = |model: &Layerwise| minimal_depth(&model.subject.accuracy(), points / 100.);
        let found = [standard.last().and_then(of), of(aligned)];
        results.more.entry("minimal_depth").or_insert_with(|| json!({}))[points.to_string()] = json!(found);
        let [standard, aligned] = found.map(|depth| depth.map_or("-".to_owned(), |depth| depth.to_string()));
        minimal.row([points.to_string(), standard, aligned]);
    }
    progress::print(&format!(
        "\nAccuracy (%) by depth:\n{depths}\nSmallest depth within a tolerance:\n{minimal}"
    ));

    let layer = |model: &Layerwise, layer: usize, name: String| {
        let points = model.subject.evaluations.iter();
        Series::new(name, points.map(|e| (e.epoch as f64, e.evaluation.accuracy[layer - 1])))
    };
    let mut learning: Vec<Series> =
        standard.iter().map(|model| layer(model, model.cos.len(), model.name().to_owned())).collect();
    let kept = cuts.iter().filter(|cut| standard.iter().any(|model| model.cos.len() == cut.depth));
    learning.extend(kept.map(|cut| layer(aligned, cut.depth, format!("aligned, layer {}", cut.depth))));
    let by_depth = [
        Series::new(
            "trained at this depth",
            standard.iter().map(|m| (m.cos.len() as f64, m.last().unwrap_or(f64::NAN))),
        ),
        Series::per_layer("aligned, cut at this depth", 1, &aligned.subject.accuracy()),
    ];
    let by_depth = plots::lines("Accuracy by depth", "layers", "fraction correct", &by_depth, None);
    let by_depth = plots::write(&out.join("depth"), vec![by_depth], 1)?;
    let learning = plots::lines("Convergence", "epoch", "fraction correct", &learning, None);
    let convergence = plots::write(&out.join("convergence"), vec![learning], 1)?;
    Report::new("One aligned model, cut, against models trained at each depth")
        .paragraph(&vision.about())
        .figure(&by_depth, "Accuracy of models trained at a depth, and of the one aligned model cut there.")
        .figure(&convergence, "Accuracy on held-out images during training.")
        .table(&depths, "Each cut model was saved, read back, and answers bit for bit as the exit does.")
        .table(&minimal, "The first layer within so many points of the model's best.")
        .close(results, out)
}
