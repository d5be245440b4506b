//! Figure 3 of the paper: standard, aligned, and one classifier per exit. See the README beside this file.

use std::{path::Path, process::ExitCode};

use anyhow::{Context, Result};
use candle_core::{Device, Tensor};
use clap::Parser;
use layerwise::{
    data::ImageSet,
    similarity::{Centring, Measure, neural_collapse},
};
use layerwise_example_common::{
    Report, Results, Table,
    curves::named,
    hub,
    layers::{every_class, indices},
    layerwise::{Layerwise, PROBE_SAMPLES, layer_figure, layer_table, probes, record},
    plots, progress, run_main,
    similarity::all_pairs,
    table::{columns, decimals, per_layer, percent},
    vision::{Plan, TrainFlags, Vision},
};
use serde_json::json;

layerwise_example_common::fast_allocator!();

const NAME: &str = "f03_three_trainings";

/// Compares three trainings layer by layer: accuracy, COS, neural collapse, linear probes, and the parameters of the exits.
#[derive(Parser)]
#[command(name = NAME)]
struct Flags {
    #[command(flatten)]
    train: TrainFlags,
}

/// What only this figure shows of a model; over layers `1..=L`.
struct Details {
    name: String,
    /// COS of all pairs.
    cos: Vec<Vec<f64>>,
    /// `tr(S_W S_B^+) / C` of training images.
    nc1: Vec<f64>,
    /// Accuracy on held-out images of a fresh linear classifier.
    probe: Vec<f64>,
    parameters: usize,
    /// Of these, what inner exits have of their own.
    exit_parameters: usize,
}

fn main() -> ExitCode {
    let flags = Flags::parse().train;
    run_main(&flags.common, |device| f03(&flags.clone().fetched(hub!())?, &device))
}

fn f03(flags: &TrainFlags, device: &Device) -> Result<()> {
    let vision = Vision::training(flags, device)?;
    let seen = vision.images().context("no images")?.train_set().take(PROBE_SAMPLES)?;
    every_class(&indices(seen.labels()), seen.classes(), "to train on (--train-limit)")?;
    let out = flags.common.out_folder(NAME)?;
    let seed = flags.common.seed;
    let mut results = Results::new(NAME, vision.settings(), seed, device);
    let (mut models, mut details) = (Vec::new(), Vec::new());
    for subject in vision.study(&[Plan::standard(seed), Plan::aligned(seed), Plan::multi_exit(seed)])? {
        let model = Layerwise::of(subject)?;
        details.push(look(&vision, &model, &seen)?);
        models.push(model);
    }
    record(&mut results, &models);
    for model in &details {
        let entry = results.models.entry(model.name.clone()).or_default();
        entry.more.insert("cos".into(), json!(model.cos));
        entry.more.insert("nc1".into(), json!(model.nc1));
        entry.more.insert("probe".into(), json!(model.probe));
        entry.more.insert("parameters".into(), json!(model.parameters));
        entry.more.insert("exit_parameters".into(), json!(model.exit_parameters));
    }
    show(&out, &mut results, &vision, &models, &details)
}

fn look(vision: &Vision<'_>, model: &Layerwise, seen: &ImageSet) -> Result<Details> {
    let (subject, classes) = (&model.subject, vision.classes().len());
    let (seen, seen_labels) = vision.layers_of_set(&subject.model, seen.clone())?;
    let labels = indices(vision.labels().context("no labels")?);
    let collapse = |layer: &Tensor| Ok(neural_collapse(layer, &seen_labels, classes)?.nc1);
    let nc1 = seen.iter().map(collapse).collect::<Result<_>>()?;
    let probe = probes((&seen, &seen_labels), (subject.layers(), &labels), classes)?;
    let params = subject.model.params();
    let inner = params.iter().filter(|(name, _)| name.starts_with("exits."));
    Ok(Details {
        name: subject.name.clone(),
        cos: all_pairs(subject.layers(), Measure::Cos(Centring::Samples))?,
        nc1,
        probe,
        parameters: params.elem_count(),
        exit_parameters: inner.map(|(_, var)| var.elem_count()).sum(),
    })
}

fn show(
    out: &Path,
    results: &mut Results,
    vision: &Vision<'_>,
    models: &[Layerwise],
    details: &[Details],
) -> Result<()> {
    let curves = |values: fn(&Details) -> Vec<f64>| named(details, |model| &model.name, values);
    let parts = [
        columns("NC1", |x| decimals(x, 2), curves(|model| model.nc1.clone())),
        columns("probe", percent, curves(|model| model.probe.clone())),
    ];
    let (layers, collapse) = (layer_table(models), per_layer(1, &parts.concat()));
    let mut parameters = Table::new(["model", "parameters", "of inner exits"]);
    for model in details {
        let [all, exits] = [model.parameters, model.exit_parameters].map(|count| count.to_string());
        parameters.row([model.name.clone(), all, exits]);
    }
    progress::print(&format!(
        "\nAccuracy (%) and COS to the last layer:\n{layers}\nNC1, and accuracy of linear probes (%):\n{collapse}\n{parameters}"
    ));

    let figure = layer_figure(&out.join("layers"), models)?;
    let nc1 = plots::series(1, curves(|model| model.nc1.clone()));
    let probes = plots::series(1, curves(|model| model.probe.clone()));
    let inner = vec![
        plots::lines("Neural collapse, training images", "layer", "NC1", &nc1, None),
        plots::lines("Linear probes", "layer", "fraction correct", &probes, Some((0., 1.))),
    ];
    let inner = plots::write(&out.join("collapse"), inner, 2)?;
    let heat = details.iter().map(|model| {
        plots::heat_map(&format!("COS, {}", model.name), ("layer", "layer"), &model.cos, 1, (0., 1.))
    });
    let heat = plots::write(&out.join("similarity"), heat.collect(), 3)?;
    Report::new("Three trainings, layer by layer")
        .paragraph(&vision.about())
        .figure(&figure, "Accuracy of the exit after each layer, and similarity of each layer to the last.")
        .figure(&inner, "Variability within classes against that between them, and what a fresh linear classifier reads from each layer.")
        .figure(&heat, "Sample-wise cosine similarity of all pairs of layers, centred over samples.")
        .table(&layers, "Per layer: accuracy in percent, COS to the last layer.")
        .table(&collapse, "NC1 of training images; accuracy in percent of probes fitted on training images.")
        .table(&parameters, "What one classifier an exit costs.")
        .close(results, out)
}
