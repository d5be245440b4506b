//! Figure 1 of the paper: class means on their way through depth, standard and aligned. See the README beside this file.

use std::{path::Path, process::ExitCode};

use anyhow::{Context, Result, ensure};
use candle_core::Device;
use clap::Parser;
use layerwise::similarity::{Centring, Measure, class_means, cos, pca};
use layerwise_example_common::{
    Report, Results, Table,
    curves::named,
    plots::{self, Series},
    progress, run_main,
    similarity::to_last,
    table::{columns, decimals, per_layer, percent, thousandths},
    vision::{Subject, Vision, VisionFlags},
};
use ndarray::{Array2, Axis, concatenate};
use serde_json::json;

layerwise_example_common::fast_allocator!();

const NAME: &str = "f01_pca_class_means";

/// Draws the class means of every layer in one plane, with the similarity of layers to the last one and their accuracy.
#[derive(Parser)]
#[command(name = NAME)]
struct Flags {
    #[command(flatten)]
    vision: VisionFlags,
}

/// What was measured of one model; over layers `1..=L`.
struct Measured {
    subject: Subject,
    cos: Vec<f64>,
    /// COS of the class means to those of the last layer.
    means_cos: Vec<f64>,
    plane: Plane,
}

/// The plane of largest variance of all class means of all layers.
struct Plane {
    /// Share of the variance along each axis.
    shares: Vec<f64>,
    /// A path for each class, from layer 1 to the last.
    paths: Vec<Series>,
}

fn main() -> ExitCode {
    let flags = Flags::parse().vision;
    run_main(&flags.train.common, |device| f01(&flags, &device))
}

fn f01(flags: &VisionFlags, device: &Device) -> Result<()> {
    let vision = Vision::open(flags, device)?;
    let out = flags.train.common.out_folder(NAME)?;
    let seed = flags.train.common.seed;
    let mut results = Results::new(NAME, vision.settings(), seed, device);
    let labels =
        vision.labels().context("--data: class means need labels, so a data set, not a folder of images")?;
    let labels: Vec<usize> = labels.iter().map(|&label| label as usize).collect();
    for (class, name) in vision.classes().iter().enumerate() {
        let samples = labels.len();
        ensure!(
            labels.contains(&class),
            "no image of class {name} among the {samples} measured (--limit): class means need every class"
        );
    }
    let models: Vec<Measured> = vision
        .standard_and_aligned()?
        .into_iter()
        .map(|subject| measure(subject, &labels, vision.classes()))
        .collect::<Result<_>>()?;
    record(&mut results, &models);
    show(&out, &mut results, &vision, &models)
}

fn record(results: &mut Results, models: &[Measured]) {
    for model in models {
        let mut entry = model.subject.results();
        entry.cos_to_last = model.cos.clone();
        entry.more.insert("class_means_cos_to_last".into(), json!(model.means_cos));
        let paths = model.plane.paths.iter().map(|path| (path.name.clone(), json!(path.points)));
        let plane =
            json!({ "shares": model.plane.shares, "paths": paths.collect::<serde_json::Map<_, _>>() });
        entry.more.insert("plane".into(), plane);
        results.models.insert(model.subject.name.clone(), entry);
    }
}

fn show(out: &Path, results: &mut Results, vision: &Vision<'_>, models: &[Measured]) -> Result<()> {
    let table = table(models);
    progress::print(&format!(
        "\nAccuracy (%), COS of samples and of class means to the last layer:\n{table}"
    ));

    let planes = models.iter().map(|Measured { subject, plane, .. }| {
        let axis = |i: usize| {
            format!("component {} ({} % of the variance)", i + 1, decimals(100. * plane.shares[i], 0))
        };
        plots::plane(&subject.name, &axis(0), &axis(1), &plane.paths)
    });
    let planes = plots::write(&out.join("class_means"), planes.collect(), 2)?;
    let lines = |title: &str, label: &str, values: fn(&Measured) -> Vec<f64>| {
        let series = plots::series(1, curves(models, values));
        plots::lines(title, "layer", label, &series, Some((0., 1.)))
    };
    let curves = vec![
        lines("COS to the last layer", "COS", |model| model.cos.clone()),
        lines("Accuracy", "fraction correct", |model| model.subject.accuracy()),
    ];
    let curves = plots::write(&out.join("curves"), curves, 2)?;
    Report::new("Class means through depth")
        .paragraph(&vision.about())
        .figure(&planes, "The mean of each class, less the mean of all classes, from layer 1 (small dots) to the last (marker), in \
            the plane of largest variance of all layers.")
        .figure(&curves, "Sample-wise cosine similarity to the last layer, centred over samples, and accuracy of the last layer's classifier \
            after each layer.")
        .table(&table, "Per layer: accuracy in percent, COS of samples and of class means to the last layer.")
        .close(results, out)
}

fn measure(subject: Subject, labels: &[usize], classes: &[String]) -> Result<Measured> {
    let cos_to_last = to_last(subject.layers(), Measure::Cos(Centring::Samples))?;
    let mut means = Vec::new();
    for layer in subject.layers() {
        let means_of_layer = class_means(layer, labels, classes.len())?;
        // What all classes share moves through depth, too, and would hide what tells them apart.
        let centre = means_of_layer.mean_axis(Axis(0)).context("no classes")?;
        means.push(means_of_layer - centre);
    }
    let last = means.last().context("a model without layers")?;
    let means_cos = means.iter().map(|layer| cos(layer, last, Centring::None)).collect::<Result<_, _>>()?;
    Ok(Measured { cos: cos_to_last, means_cos, plane: plane(&means, classes)?, subject })
}

fn plane(means: &[Array2<f64>], classes: &[String]) -> Result<Plane> {
    let views: Vec<_> = means.iter().map(|layer| layer.view()).collect();
    let pca = pca(&concatenate(Axis(0), &views)?, 2)?;
    let projected = means.iter().map(|layer| pca.project(layer)).collect::<Result<Vec<_>, _>>()?;
    let path = |(class, name): (usize, &String)| {
        Series::new(name, projected.iter().map(|layer| (layer[[class, 0]], layer[[class, 1]])))
    };
    Ok(Plane { shares: pca.variances.to_vec(), paths: classes.iter().enumerate().map(path).collect() })
}

fn table(models: &[Measured]) -> Table {
    let all = [
        columns("acc.", percent, curves(models, |model| model.subject.accuracy())),
        columns("COS", thousandths, curves(models, |model| model.cos.clone())),
        columns("means", thousandths, curves(models, |model| model.means_cos.clone())),
    ];
    per_layer(1, &all.concat())
}

fn curves(models: &[Measured], values: fn(&Measured) -> Vec<f64>) -> Vec<(&str, Vec<f64>)> {
    named(models, |model| &model.subject.name, values)
}
