//! Figure 5 of the paper: leaving early after three trainings, in layers and in time. See the README beside this file.

use std::{path::Path, process::ExitCode};

use anyhow::{Context, Result};
use candle_core::Device;
use clap::Parser;
use layerwise::exit::ExitReport;
use layerwise_example_common::{
    Preset, Report, Results,
    exits::{Exits, exit_table, leave_at, leaving, record_exits},
    hub,
    images::TEST_BATCH,
    layers::labelled,
    plots::{self, Panel, Series},
    progress, run_main,
    vision::{Plan, Subject, Vision, VisionFlags},
};

layerwise_example_common::fast_allocator!();

const NAME: &str = "f05_early_exit";
/// Largest softmax probability above which a sample leaves.
const THRESHOLDS: [f64; 12] = [0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.999];
/// Points of accuracy that leaving may cost where samples are counted layer by layer.
const LOST: f64 = 1.;

/// Lets samples leave at the first layer that is sure enough, and measures what that costs in accuracy and saves in time.
#[derive(Parser)]
#[command(name = NAME)]
struct Flags {
    #[command(flatten)]
    vision: VisionFlags,
}

fn main() -> ExitCode {
    let flags = Flags::parse().vision;
    run_main(&flags.train.common, |device| f05(&flags.clone().fetched(hub!())?, &device))
}

fn f05(flags: &VisionFlags, device: &Device) -> Result<()> {
    let vision = Vision::open(flags, device)?;
    let common = &flags.train.common;
    let out = common.out_folder(NAME)?;
    let mut results = Results::new(NAME, vision.settings(), common.seed, device);
    vision.labels().context("--data: accuracy needs labels, so a data set, not a folder of images")?;
    let rounds = if common.preset == Preset::Smoke { 1 } else { 3 };
    let plans = [Plan::standard(common.seed), Plan::aligned(common.seed), Plan::multi_exit(common.seed)];
    let mut models = Vec::new();
    for subject in vision.study(&plans)? {
        models.push(leave(&vision, &subject, rounds, device)?);
        results.models.insert(subject.name.clone(), subject.results());
    }
    record_exits(&mut results, &models)?;
    show(&out, &mut results, &vision, &models)
}

fn leave(vision: &Vision<'_>, subject: &Subject, rounds: usize, device: &Device) -> Result<Exits> {
    progress::line(&format!("{}: leaving at {} thresholds", subject.name, THRESHOLDS.len()));
    let scores =
        subject.scores.as_ref().with_context(|| format!("{}: no head for these classes", subject.name))?;
    let full = scores.accuracy.last().copied().context("a model without layers")?;
    let batches = || labelled(vision.source(), vision.samples(), TEST_BATCH, device);
    let reports = leave_at(&subject.model, batches, &THRESHOLDS, rounds)?;
    Ok(Exits { name: subject.name.clone(), full, reports })
}

fn show(out: &Path, results: &mut Results, vision: &Vision<'_>, models: &[Exits]) -> Result<()> {
    let table = exit_table(models);
    progress::print(&format!("\nLeaving early:\n{table}"));
    let panels = vec![
        trade(models, "In layers", "layers of the model / layers run", |exit| exit.layer_ratio),
        trade(models, "In time", "time without exits / time with exits", |exit| exit.wall_ratio),
    ];
    let trade = plots::write(&out.join("trade_off"), panels, 2)?;
    let cheap: Vec<_> = models
        .iter()
        .filter_map(|model| Some((model, model.within(LOST)?)))
        .map(|(model, (threshold, exit))| (format!("{}, above {threshold}", model.name), exit))
        .collect();
    let leaving = leaving(&format!("Samples leaving, at most {LOST} point lost"), &cheap);
    let leaving = plots::write(&out.join("leaving"), vec![leaving], 1)?;
    Report::new("Leaving early after three trainings")
        .paragraph(&vision.about())
        .figure(&trade, "Accuracy against how much is saved, one point a threshold. At 1 stands the model without exits.")
        .figure(&leaving, "Where samples leave, each model at the threshold that saves most and costs at most one point.")
        .table(&table, "The layer ratio counts layers; the time ratio is measured, in batches of 256 images or as many as there are.")
        .close(results, out)
}

/// Accuracy against a ratio, from no exits on. Both panels have one range, so that time can be read against layers.
fn trade(models: &[Exits], title: &str, label: &str, ratio: fn(&ExitReport) -> f64) -> Panel {
    let reports = models.iter().flat_map(|model| &model.reports);
    let ratios = reports.flat_map(|(_, exit)| [exit.layer_ratio, exit.wall_ratio]);
    let (least, most) =
        ratios.fold((1., 1.), |(least, most): (f64, f64), ratio| (least.min(ratio), most.max(ratio)));
    let line = |model: &Exits| {
        let mut points: Vec<(f64, f64)> =
            model.reports.iter().map(|(_, exit)| (ratio(exit), exit.accuracy)).collect();
        points.push((1., model.full));
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        Series::new(&model.name, points)
    };
    let series: Vec<Series> = models.iter().map(line).collect();
    plots::curves(title, (label, Some((least, most))), ("fraction correct", None), &series)
}
