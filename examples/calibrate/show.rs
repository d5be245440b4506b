//! Tables, figures, results.

use std::path::Path;

use anyhow::Result;
use layerwise_example_common::{
    Report, Results, Table,
    plots::{self, Series},
    progress,
    table::{decimals, percent},
};
use serde_json::json;

use crate::{
    choose::{Chosen, Curve, Given, Kept},
    samples::{Parts, Shifted, Watched},
    splits::Tried,
};

pub(crate) struct Shown<'a> {
    pub(crate) chosen: &'a Chosen<'a>,
    pub(crate) kept: Kept,
    pub(crate) compared: Vec<Given>,
    pub(crate) curves: Vec<Curve>,
    pub(crate) costs_of_promises: Vec<(f64, [Given; 2])>,
    pub(crate) splits: Vec<Tried>,
    pub(crate) shifted: Option<Shifted>,
}

pub(crate) fn show(out: &Path, results: &mut Results, shown: &Shown<'_>, parts: &Parts) -> Result<()> {
    let full = &shown.compared[0];
    let told = told(shown, parts, full);
    let signals = signals(&shown.compared, full);
    let tolerances = tolerances(&shown.costs_of_promises, full);
    let splits = splits(&shown.splits);
    progress::print(&format!(
        "\n{told}\n\nEvery signal, chosen alike:\n{signals}\nWhat a promise costs:\n{tolerances}\nPromises tried:\n{splits}\n"
    ));
    record(results, shown);

    let curve = |(name, points): &Curve| Series::new(name, points.clone());
    let curves: Vec<Series> = shown.curves.iter().map(curve).collect();
    let trade = plots::curves(
        "Signals, on test samples",
        ("layers of a sample, on average", None),
        ("fraction correct", None),
        &curves,
    );
    let line = |name: &str, at: usize, y: fn(&Given) -> f64| {
        Series::new(name, shown.costs_of_promises.iter().map(|(points, given)| (*points, y(&given[at]))))
    };
    let both = |y: fn(&Given) -> f64| vec![line("with the promise", 0, y), line("plain threshold", 1, y)];
    let layers = plots::curves(
        "What a promise costs",
        ("tolerance, points", None),
        ("layers of a sample", None),
        &both(|given| given.layers),
    );
    let mut accuracy = both(|given| given.accuracy);
    let least = shown.costs_of_promises.iter().map(|(points, _)| (*points, full.accuracy - points / 100.));
    accuracy.push(Series::new("least tolerated", least));
    let accuracy = plots::curves(
        "Accuracy on test samples",
        ("tolerance, points", None),
        ("fraction correct", None),
        &accuracy,
    );
    let trade = plots::write(&out.join("signals"), vec![trade], 1)?;
    let promises = plots::write(&out.join("promises"), vec![accuracy, layers], 2)?;

    let mut report = Report::new("When to leave");
    report
        .paragraph(&told)
        .figure(&trade, "Accuracy against layers, a point for each threshold of a signal. The static cut stops everybody after one layer; the oracle knows each sample's first right layer.")
        .table(&signals, "Every signal at the thresholds chosen alike, on the test samples. Milliseconds are predicted from the costs of blocks and exits in full batches of 64.")
        .figure(&promises, "Accuracy and layers on the test samples, with the promise and with the boldest thresholds that keep the tolerance on the calibration samples.")
        .table(&tolerances, "The same, in numbers.")
        .table(&splits, "Broken: the risk on all samples, which the calibration samples were drawn from one by one, is above the tolerance; at most a share delta may be. Halves: the risk of the other half is above it, its own noise included; plain: with the boldest thresholds that kept the tolerance on the first half.");
    if let Some(shifted) = &shown.shifted {
        let table = shift_table(shifted, shown);
        progress::print(&format!("\nOther images:\n{table}\n"));
        report.table(&table, "Images of another source, for which nothing was promised. Monitors see no label: they watch for more disagreement than half of the test samples had, on up to 5,000 draws of the other half and of these.");
    }
    report.close(results, out)
}

fn told(shown: &Shown<'_>, parts: &Parts, full: &Given) -> String {
    let Kept { thresholds, on_test, .. } = &shown.kept;
    let at = thresholds
        .at
        .values()
        .next()
        .map_or("nobody leaves".into(), |threshold| format!("threshold {threshold:.4}"));
    format!(
        "Chosen on {} samples: {at} after {} layers. On {} others: {:.2} layers of a sample instead of {:.0} (by the costs of full batches {:.2} ms instead of {:.2}), \
         {:.2} points of accuracy lost, {:.2} % answered otherwise than by the last layer.",
        parts.calibrate.len(),
        thresholds.at.len(),
        parts.test.len(),
        on_test.layers,
        full.layers,
        on_test.predicted_ms,
        full.predicted_ms,
        100. * (full.accuracy - on_test.accuracy),
        100. * on_test.disagreement,
    )
}

fn signals(compared: &[Given], full: &Given) -> Table {
    let mut table =
        Table::new(["signal", "layers", "predicted ms", "accuracy", "points lost", "answered otherwise, %"]);
    for given in compared {
        table.row([
            given.name.clone(),
            decimals(given.layers, 2),
            decimals(given.predicted_ms, 3),
            percent(given.accuracy),
            decimals(100. * (full.accuracy - given.accuracy), 2),
            decimals(100. * given.disagreement, 2),
        ]);
    }
    table
}

fn tolerances(all: &[(f64, [Given; 2])], full: &Given) -> Table {
    let mut table = Table::new([
        "tolerance, points",
        "layers, promised",
        "points lost",
        "layers, plain threshold",
        "points lost",
    ]);
    for (points, [promised, plain]) in all {
        let lost = |given: &Given| decimals(100. * (full.accuracy - given.accuracy), 2);
        let layers = |given: &Given| decimals(given.layers, 2);
        table.row([points.to_string(), layers(promised), lost(promised), layers(plain), lost(plain)]);
    }
    table
}

fn splits(all: &[Tried]) -> Table {
    let mut table = Table::new([
        "risk",
        "test",
        "tolerance, points",
        "delta",
        "broken, %",
        "halves: above, %",
        "halves, plain: above, %",
        "layers",
        "layers, plain",
    ]);
    for tried in all {
        let share = |count: usize| decimals(100. * count as f64 / tried.splits as f64, 1);
        table.row([
            format!("{:?}", tried.risk),
            format!("{:?}", tried.test),
            (100. * tried.tolerance).to_string(),
            tried.delta.to_string(),
            share(tried.broken),
            share(tried.seen_broken),
            share(tried.plain_broken),
            decimals(tried.layers, 2),
            decimals(tried.plain_layers, 2),
        ]);
    }
    table
}

fn shift_table(shifted: &Shifted, shown: &Shown<'_>) -> Table {
    let mut table = Table::new([
        "images",
        "accuracy",
        "points lost",
        "right answers lost, %",
        "answered otherwise, %",
        "monitors that raise an alarm",
    ]);
    let alarm = |watched: &Watched| {
        let after =
            watched.median_until_alarm.map_or(String::new(), |after| format!(", after {after} (median)"));
        format!("{} of {}{after}", watched.alarms, watched.monitors)
    };
    let [familiar, other] = &shifted.watched;
    let (full, given) = (&shown.compared[0], &shown.kept.on_test);
    table.row([
        "test samples".to_owned(),
        percent(given.accuracy),
        decimals(100. * (full.accuracy - given.accuracy), 2),
        String::new(),
        decimals(100. * given.disagreement, 2),
        alarm(familiar),
    ]);
    let accuracy = shifted.outcome.accuracy.unwrap_or(f64::NAN);
    table.row([
        format!("{} others", shifted.samples),
        percent(accuracy),
        decimals(100. * (shifted.full - accuracy), 2),
        decimals(100. * shifted.harmed, 2),
        decimals(100. * shifted.outcome.disagreement, 2),
        alarm(other),
    ]);
    table
}

fn record(results: &mut Results, shown: &Shown<'_>) {
    let given = |given: &Given| {
        json!({ "name": given.name, "layers": given.layers, "predicted_ms": given.predicted_ms, "accuracy": given.accuracy,
            "disagreement": given.disagreement })
    };
    let more = &mut results.more;
    more.insert(
        "chosen".into(),
        json!({ "thresholds": shown.kept.thresholds, "calibration_layers": shown.kept.on_calibration.layers,
        "test": given(&shown.kept.on_test), "costs": shown.chosen.costs }),
    );
    more.insert("signals".into(), shown.compared.iter().map(given).collect());
    let curve = |(name, points): &Curve| json!({ "name": name, "points": points });
    more.insert("curves".into(), shown.curves.iter().map(curve).collect());
    let tolerance = |(points, [promised, plain]): &(f64, [Given; 2])| json!({ "points": points, "promised": given(promised), "plain": given(plain) });
    more.insert("tolerances".into(), shown.costs_of_promises.iter().map(tolerance).collect());
    more.insert("splits".into(), json!(shown.splits));
    if let Some(shifted) = &shown.shifted {
        more.insert(
            "shift".into(),
            json!({ "samples": shifted.samples, "full_accuracy": shifted.full,
            "accuracy": shifted.outcome.accuracy, "layers": shifted.outcome.layers, "harmed": shifted.harmed,
            "disagreement": shifted.outcome.disagreement, "tolerance": shifted.tolerance, "monitors": shifted.watched }),
        );
    }
}
