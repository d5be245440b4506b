//! Leaving early: what models gave at each threshold, as table, figure and results.

use anyhow::Result;
use candle_core::Tensor;
use layerwise_exit::{Compaction, CostTable, Engine, ExitReport, Signal, Thresholds, measure};
use layerwise_models::{Batch, Tapped};
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
    /// Thresholds on the largest probability, and what leaving there gave.
    pub reports: Vec<(f64, ExitReport)>,
}

impl Exits {
    /// What leaving at this threshold gave.
    #[must_use]
    pub fn at(&self, threshold: f64) -> Option<&ExitReport> {
        self.reports.iter().find(|(at, _)| *at == threshold).map(|(_, exit)| exit)
    }

    /// Of the thresholds that cost at most so many points of accuracy, the one that saves most layers.
    #[must_use]
    pub fn within(&self, points: f64) -> Option<&(f64, ExitReport)> {
        let cheap =
            self.reports.iter().filter(|(_, exit)| 100. * (self.full - exit.accuracy) <= points + 1e-9);
        cheap.max_by(|(_, a), (_, b)| a.layer_ratio.total_cmp(&b.layer_ratio))
    }
}

/// Leaves `model` at each of `thresholds` on the largest probability, after every layer, with batches compacted where measured times say
/// that it pays.
///
/// # Errors
///
/// As [`measure`].
pub fn leave_at<M: Tapped + ?Sized, I>(
    model: &M,
    batches: impl Fn() -> I,
    thresholds: &[f64],
    rounds: usize,
) -> Result<Vec<(f64, ExitReport)>>
where
    I: IntoIterator<Item = candle_core::Result<(Batch, Tensor)>>,
{
    let costs = CostTable::default();
    let policy = |&threshold: &f64| Thresholds::common(Signal::MaxProbability, threshold, model.depth());
    let policies: Vec<Thresholds> = thresholds.iter().map(policy).collect();
    let engine = |policy| Engine { policy, compaction: Compaction::Profitable(&costs) };
    let engines: Vec<Engine<'_>> = policies.iter().map(|policy| engine(policy)).collect();
    let reports = measure(model, batches, &engines, rounds)?;
    Ok(thresholds.iter().copied().zip(reports).collect())
}

/// One row a model and threshold.
#[must_use]
pub fn exit_table(models: &[Exits]) -> Table {
    let mut table =
        Table::new(["model", "threshold", "accuracy", "points lost", "layer ratio", "time ratio"]);
    for Exits { name, full, reports } in models {
        for (threshold, exit) in reports {
            table.row([
                name.clone(),
                threshold.to_string(),
                percent(exit.accuracy),
                decimals(100. * (full - exit.accuracy), 1),
                decimals(exit.layer_ratio, 2),
                decimals(exit.wall_ratio, 2),
            ]);
        }
    }
    table
}

/// Samples that leave after each layer, bars for each of these.
#[must_use]
pub fn leaving(title: &str, exits: &[(String, &ExitReport)]) -> Panel {
    let counts = |exit: &ExitReport| exit.histogram.iter().map(|&count| count as f64).collect::<Vec<f64>>();
    let groups: Vec<_> = exits.iter().map(|(name, exit)| (name.clone(), counts(exit))).collect();
    let depth = groups.first().map_or(0, |(_, counts)| counts.len());
    let names: Vec<String> = (1..=depth).map(|layer| layer.to_string()).collect();
    plots::bars(title, "layer", "samples", &names, &groups)
}

/// Writes an entry for each model and threshold.
///
/// # Errors
///
/// When a report cannot be written as JSON.
pub fn record_exits(results: &mut Results, models: &[Exits]) -> Result<()> {
    for Exits { name, reports, .. } in models {
        for (threshold, exit) in reports {
            let mut entry = serde_json::to_value(exit)?;
            entry["threshold"] = json!(threshold);
            entry["model"] = json!(name);
            entry["policy"] = json!("confidence");
            results.exits.push(entry);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cheapest_threshold_within_a_loss() {
        let exit = |threshold, accuracy, layer_ratio| {
            let report = ExitReport {
                batch: 8,
                accuracy,
                layer_ratio,
                wall_ratio: 1.,
                p50_ms: 1.,
                p95_ms: 1.,
                samples_per_s: 1.,
                histogram: vec![1, 2],
            };
            (threshold, report)
        };
        let reports = vec![exit(0.5, 0.7, 3.), exit(0.8, 0.79, 2.), exit(0.9, 0.81, 1.5)];
        let model = Exits { name: "model".into(), full: 0.8, reports };
        assert_eq!(model.at(0.9).map(|exit| exit.accuracy), Some(0.81));
        assert_eq!(model.at(0.6), None);
        assert_eq!(model.within(1.).map(|exit| exit.0), Some(0.8));
        assert_eq!(model.within(0.).map(|exit| exit.0), Some(0.9));
        assert_eq!(model.within(-2.), None);
    }
}
