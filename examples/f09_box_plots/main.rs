//! Figure 9 of the paper: how alike the layers are for each sample, and from which layer on the answer stands. See the README
//! beside this file.

use std::{path::Path, process::ExitCode};

use anyhow::{Context, Result};
use candle_core::Device;
use clap::Parser;
use layerwise::similarity::{Centring, cos_per_sample, quantiles, saturation};
use layerwise_example_common::{
    Report, Results, hub, plots, progress, run_main,
    table::{Column, per_layer, percent, thousandths},
    vision::{Subject, Vision, VisionFlags},
};
use ndarray::Array2;
use serde_json::json;

layerwise_example_common::fast_allocator!();

const NAME: &str = "f09_box_plots";

/// Draws the cosine of each sample's features to those of the last layer, and the layer from which its answer no longer changes.
#[derive(Parser)]
#[command(name = NAME)]
struct Flags {
    #[command(flatten)]
    vision: VisionFlags,
}

/// Whose values are written down and shown in the table.
const LEVELS: [f64; 5] = [0.05, 0.25, 0.5, 0.75, 0.95];

/// What was measured of one model; over layers `1..=L`.
struct Measured {
    subject: Subject,
    /// COS of each sample to the last layer, `(L, samples)`.
    cos: Vec<Vec<f64>>,
    /// Values of `cos` at [`LEVELS`], `(L, 5)`.
    quantiles: Vec<Vec<f64>>,
    /// Share of samples whose COS is below 0.
    negative: Vec<f64>,
    /// Samples whose answer stands from each layer on; empty without a classifier.
    saturated: Vec<usize>,
}

fn main() -> ExitCode {
    let flags = Flags::parse().vision;
    run_main(&flags.train.common, |device| f09(&flags.clone().fetched(hub!())?, &device))
}

fn f09(flags: &VisionFlags, device: &Device) -> Result<()> {
    let vision = Vision::open(flags, device)?;
    let out = flags.train.common.out_folder(NAME)?;
    let seed = flags.train.common.seed;
    let mut results = Results::new(NAME, vision.settings(), seed, device);
    let models: Vec<Measured> =
        vision.standard_and_aligned()?.into_iter().map(measure).collect::<Result<_>>()?;
    record(&mut results, &models);
    show(&out, &mut results, &vision, &models)
}

fn record(results: &mut Results, models: &[Measured]) {
    for model in models {
        let mut entry = model.subject.results();
        entry.cos_to_last =
            model.cos.iter().map(|layer| layer.iter().sum::<f64>() / layer.len() as f64).collect();
        entry.more.insert("cos_levels".into(), json!(LEVELS));
        entry.more.insert("cos_quantiles".into(), json!(model.quantiles));
        entry.more.insert("negative".into(), json!(model.negative));
        entry.more.insert("saturated".into(), json!(model.saturated));
        results.models.insert(model.subject.name.clone(), entry);
    }
}

fn show(out: &Path, results: &mut Results, vision: &Vision<'_>, models: &[Measured]) -> Result<()> {
    let table = per_layer(1, &models.iter().flat_map(columns).collect::<Vec<_>>());
    progress::print(&format!(
        "\nCOS of samples to the last layer (median, quartiles), samples below 0 and samples whose answer stands from here on (%):\n{table}"
    ));

    // From below the lowest whisker to a little above 1, where the last layer's box is.
    let whisker = |levels: &Vec<f64>| levels[1] - 1.5 * (levels[3] - levels[1]);
    let low = models.iter().flat_map(|model| model.quantiles.iter().map(whisker)).fold(0., f64::min);
    let range = ((4. * low).floor().max(-4.) / 4., 1.02);
    let names: Vec<String> = (1..=models[0].cos.len()).map(|layer| layer.to_string()).collect();
    let boxes = models.iter().enumerate().map(|(i, model)| {
        let groups: Vec<_> = names.iter().cloned().zip(model.cos.iter().cloned()).collect();
        plots::boxes(&model.subject.name, "layer", "COS to the last layer", &groups, Some(range), i)
    });
    let boxes = plots::write(&out.join("box_plots"), boxes.collect(), 2)?;
    let groups: Vec<(String, Vec<f64>)> = models
        .iter()
        .filter(|model| !model.saturated.is_empty())
        .map(|model| {
            (model.subject.name.clone(), model.saturated.iter().map(|&count| count as f64).collect())
        })
        .collect();
    let mut report = Report::new("Layers, sample by sample");
    report.paragraph(&vision.about()).figure(
        &boxes,
        "COS of each sample to the last layer: median, quartiles, and whiskers to the last value within 1.5 \
            interquartile ranges; what lies beyond is not drawn.",
    );
    if !groups.is_empty() {
        let bars = plots::bars("Saturation", "layer", "samples", &names, &groups);
        let bars = plots::write(&out.join("saturation"), vec![bars], 1)?;
        report.figure(&bars, "Samples whose answer no longer changes from this layer on.");
    }
    report.table(&table, "Per layer: COS of samples to the last layer, and shares of samples in percent.");
    report.close(results, out)
}

fn measure(subject: Subject) -> Result<Measured> {
    let layers = subject.layers();
    let last = layers.last().context("a model without layers")?;
    let (mut cos, mut levels, mut negative) = (Vec::new(), Vec::new(), Vec::new());
    for layer in layers {
        let values = cos_per_sample(layer, last, Centring::Samples)?;
        levels.push(quantiles(values.view(), &LEVELS)?);
        negative.push(values.iter().filter(|value| **value < 0.).count() as f64 / values.len() as f64);
        cos.push(values.to_vec());
    }
    let mut saturated = Vec::new();
    if !subject.answers.is_empty() {
        let shape = (layers.len(), cos[0].len());
        let answers = subject.answers.iter().flatten().map(|&answer| answer as usize).collect();
        saturated = vec![0; layers.len()];
        for layer in saturation(Array2::from_shape_vec(shape, answers)?.view())? {
            saturated[layer] += 1;
        }
    }
    Ok(Measured { subject, cos, quantiles: levels, negative, saturated })
}

fn columns(model: &Measured) -> Vec<Column> {
    let name = |what: &str| format!("{what} {}", model.subject.name);
    let level = |i: usize| model.quantiles.iter().map(|levels| levels[i]).collect();
    let samples: usize = model.saturated.iter().sum();
    let saturated = model.saturated.iter().map(|&count| count as f64 / samples as f64);
    vec![
        (name("median"), thousandths, level(2)),
        (name("25 %"), thousandths, level(1)),
        (name("75 %"), thousandths, level(3)),
        (name("below 0"), percent, model.negative.clone()),
        (name("stands"), percent, saturated.collect()),
    ]
}
