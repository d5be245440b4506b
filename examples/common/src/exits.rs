//! Leaving early: what models gave at each threshold, as table, figure and results.

use anyhow::Result;
use layerwise_exit::ExitReport;
use serde_json::json;

use crate::{
    Results, Table,
    plots::{self, Panel},
    table::{decimals, percent},
};

/// A model and its exits at every threshold.
#[derive(Clone, Debug)]
pub struct Exits {
    /// What tables and figures call it.
    pub name: String,
    /// Accuracy without leaving early.
    pub full: f64,
    /// One for each threshold.
    pub reports: Vec<ExitReport>,
}

/// One row a model and threshold.
#[must_use]
pub fn exit_table(models: &[Exits]) -> Table {
    let mut table =
        Table::new(["model", "threshold", "accuracy", "points lost", "layer ratio", "time ratio"]);
    for Exits { name, full, reports } in models {
        for exit in reports {
            table.row([
                name.clone(),
                exit.threshold.to_string(),
                percent(exit.accuracy),
                decimals(100. * (full - exit.accuracy), 1),
                decimals(exit.layer_ratio, 2),
                decimals(exit.wall_ratio, 2),
            ]);
        }
    }
    table
}

/// Samples that leave after each layer at one threshold, bars for each model that was measured at it.
#[must_use]
pub fn leaving(models: &[Exits], threshold: f64) -> Panel {
    let at = |model: &Exits| {
        let exit = model.reports.iter().find(|exit| exit.threshold == threshold)?;
        Some((model.name.clone(), exit.histogram.iter().map(|&count| count as f64).collect::<Vec<f64>>()))
    };
    let groups: Vec<_> = models.iter().filter_map(at).collect();
    let depth = groups.first().map_or(0, |(_, counts)| counts.len());
    let names: Vec<String> = (1..=depth).map(|layer| layer.to_string()).collect();
    plots::bars(&format!("Samples leaving, threshold {threshold}"), "layer", "samples", &names, &groups)
}

/// Writes an entry for each model and threshold.
///
/// # Errors
///
/// When a report cannot be written as JSON.
pub fn record_exits(results: &mut Results, models: &[Exits]) -> Result<()> {
    for Exits { name, reports, .. } in models {
        for exit in reports {
            let mut entry = serde_json::to_value(exit)?;
            entry["model"] = json!(name);
            entry["policy"] = json!("confidence");
            results.exits.push(entry);
        }
    }
    Ok(())
}
