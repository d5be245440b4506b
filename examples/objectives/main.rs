//! Beyond the paper: which objective aligns the layers and keeps the last one. See the README beside this file.

mod outcome;

use std::{path::Path, process::ExitCode};

use anyhow::{Context, Result, ensure};
use candle_core::Device;
use clap::Parser;
use layerwise::train::{LayerWeights, Objective};
use layerwise_example_common::{
    Report, Results, Table, hub,
    plots::{self, Series},
    progress, run_main,
    table::{decimals, percent},
    vision::{Plan, TrainFlags, Vision},
};
use serde_json::json;

use outcome::Outcome;

layerwise_example_common::fast_allocator!();

const NAME: &str = "objectives";

/// Trains one model after another with each objective, over several seeds, and compares the last layer with all layers.
#[derive(Parser)]
#[command(name = NAME)]
struct Flags {
    #[command(flatten)]
    train: TrainFlags,
    /// Models of an objective, which differ in the seed only: `--seed` and those after it.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..))]
    seeds: u64,
    /// Only these objectives, by the names in the table [default: all].
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    only: Vec<String>,
}

/// All objectives, each for as many steps.
fn plans(seed: u64) -> Vec<Plan> {
    let half_last = || LayerWeights::HalfLast;
    let aligned = Objective::Aligned { weights: LayerWeights::Linear };
    let first = |then: Objective| Objective::StandardFirst { share: 0.5, then: Box::new(then) };
    let distilled = Objective::Distilled { weights: half_last(), share: 0.5, temperature: 2. };
    vec![
        Plan::standard(seed),
        Plan { name: "alternating".into(), ..Plan::aligned(seed) },
        Plan::new("always aligned", aligned.clone(), seed),
        Plan::multi_exit(seed),
        Plan::new("half last", Objective::Aligned { weights: half_last() }, seed),
        Plan::new("standard first", first(aligned), seed),
        Plan::new("balanced", Objective::Balanced { weights: half_last() }, seed),
        Plan::new("distilled", distilled, seed),
        Plan::new("rotating", Objective::Rotating { weights: half_last(), period: 4 }, seed),
    ]
}

fn main() -> ExitCode {
    let flags = Flags::parse();
    run_main(&flags.train.common, |device| objectives(&flags, &device))
}

fn objectives(flags: &Flags, device: &Device) -> Result<()> {
    let train = flags.train.clone().fetched(hub!())?;
    let names: Vec<String> = plans(0).into_iter().map(|plan| plan.name).collect();
    for name in &flags.only {
        ensure!(names.contains(name), "--only {name}: expected some of {}", names.join(", "));
    }
    let common = &train.common;
    let seeds = common.seeds(flags.seeds)?;
    let vision = Vision::training(&train, device)?;
    let out = common.out_folder(NAME)?;
    let mut results = Results::new(NAME, vision.settings(), common.seed, device);
    let mut outcomes: Vec<Outcome> = Vec::new();
    for seed in seeds {
        for plan in plans(seed).iter().filter(|plan| flags.only.is_empty() || flags.only.contains(&plan.name))
        {
            let subject = vision.study(std::slice::from_ref(plan))?.pop().context("no model")?;
            let (name, mut entry) = (&plan.name, subject.results());
            entry.more.insert("objective".into(), json!(plan.objective));
            results.models.insert(format!("{name}, seed {seed}"), entry);
            match outcomes.iter_mut().find(|outcome| &outcome.name == name) {
                Some(outcome) => outcome.curves.push(subject.accuracy()),
                None => outcomes.push(Outcome { name: name.clone(), curves: vec![subject.accuracy()] }),
            }
        }
    }
    show(&out, &mut results, &outcomes, flags.seeds)
}

fn show(out: &Path, results: &mut Results, outcomes: &[Outcome], seeds: u64) -> Result<()> {
    let mut table =
        Table::new(["objective", "last layer", "+-", "layer L/2", "last - L/2", "mean of layers"]);
    for outcome in outcomes {
        let ((last, deviation), half, area) = (outcome.last(), outcome.half(), outcome.area());
        let lost = decimals(100. * (last - half), 1);
        table.row([
            outcome.name.clone(),
            percent(last),
            percent(deviation),
            percent(half),
            lost,
            percent(area),
        ]);
        let summary = json!({ "last": last, "last_deviation": deviation, "half": half, "area": area });
        results.more.entry("objectives").or_insert_with(|| json!({}))[&outcome.name] = summary;
    }
    progress::print(&format!("\nAccuracy (%) on held-out images, means of {seeds} seeds:\n{table}"));
    let points =
        outcomes.iter().map(|outcome| Series::new(&outcome.name, [(outcome.area(), outcome.last().0)]));
    let curves = outcomes.iter().map(|outcome| Series::per_layer(&outcome.name, 1, &outcome.mean()));
    let panels = vec![
        plots::curves(
            "All layers or the last",
            ("mean accuracy of all layers", None),
            ("accuracy of the last layer", None),
            &points.collect::<Vec<_>>(),
        ),
        plots::lines("Accuracy", "layer", "fraction correct", &curves.collect::<Vec<_>>(), None),
    ];
    let figure = plots::write(&out.join("objectives"), panels, 2)?;
    Report::new("Objectives: all layers or the last")
        .paragraph(&format!("Models that differ in the objective only, for as many steps (multi-exit also has a classifier an exit); means of {seeds} seeds."))
        .figure(&figure, "Up and to the right is better. The area under the layer-accuracy curve is the mean accuracy of all layers.")
        .table(&table, "Accuracy in percent; standard deviation of the last layer over seeds.")
        .close(results, out)
}
