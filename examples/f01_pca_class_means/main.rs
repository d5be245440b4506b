//! Figure 1 of the paper: class means on their way through depth, standard and aligned. See the README beside this file.

use std::{path::Path, process::ExitCode};

use anyhow::{Context, Result};
use candle_core::Device;
use clap::Parser;
use layerwise::similarity::{Centring, class_means, cos, pca};
use layerwise_example_common::{
    Report, Results,
    curves::named,
    hub,
    layers::{every_class, indices},
    layerwise::{Layerwise, layer_columns, layer_figure, record},
    plots::{self, Series},
    progress, run_main,
    table::{columns, decimals, per_layer, thousandths},
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

/// The class means of one model; over layers `1..=L`.
struct Means {
    name: String,
    /// COS to those of the last layer.
    cos: Vec<f64>,
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
    run_main(&flags.train.common, |device| f01(&flags.clone().fetched(hub!())?, &device))
}

fn f01(flags: &VisionFlags, device: &Device) -> Result<()> {
    let vision = Vision::open(flags, device)?;
    let out = flags.train.common.out_folder(NAME)?;
    let seed = flags.train.common.seed;
    let mut results = Results::new(NAME, vision.settings(), seed, device);
    let labels =
        vision.labels().context("--data: class means need labels, so a data set, not a folder of images")?;
    let labels = indices(labels);
    every_class(&labels, vision.classes(), "measured (--limit)")?;
    let models = vision.standard_and_aligned()?.into_iter().map(Layerwise::of).collect::<Result<Vec<_>>>()?;
    let means = models
        .iter()
        .map(|model| measure(&model.subject, &labels, vision.classes()))
        .collect::<Result<Vec<_>>>()?;
    record(&mut results, &models);
    for Means { name, cos, plane } in &means {
        let entry = results.models.entry(name.clone()).or_default();
        entry.more.insert("class_means_cos_to_last".into(), json!(cos));
        let paths = plane.paths.iter().map(|path| (path.name.clone(), json!(path.points)));
        let paths = paths.collect::<serde_json::Map<_, _>>();
        entry.more.insert("plane".into(), json!({ "shares": plane.shares, "paths": paths }));
    }
    show(&out, &mut results, &vision, &models, &means)
}

fn show(
    out: &Path,
    results: &mut Results,
    vision: &Vision<'_>,
    models: &[Layerwise],
    means: &[Means],
) -> Result<()> {
    let of_means =
        columns("means", thousandths, named(means, |means| &means.name, |means| means.cos.clone()));
    let table = per_layer(1, &[layer_columns(models), of_means].concat());
    progress::print(&format!(
        "\nAccuracy (%), COS of samples and of class means to the last layer:\n{table}"
    ));

    let planes = means.iter().map(|Means { name, plane, .. }| {
        let axis = |i: usize| {
            format!("component {} ({} % of the variance)", i + 1, decimals(100. * plane.shares[i], 0))
        };
        plots::plane(name, &axis(0), &axis(1), &plane.paths)
    });
    let planes = plots::write(&out.join("class_means"), planes.collect(), 2)?;
    let curves = layer_figure(&out.join("curves"), models)?;
    Report::new("Class means through depth")
        .paragraph(&vision.about())
        .figure(&planes, "The mean of each class, less the mean of all classes, from layer 1 (small dots) to the last (marker), in \
            the plane of largest variance of all layers.")
        .figure(&curves, "Accuracy of the last layer's classifier after each layer, and sample-wise cosine similarity to the last layer, centred \
            over samples.")
        .table(&table, "Per layer: accuracy in percent, COS of samples and of class means to the last layer.")
        .close(results, out)
}

fn measure(subject: &Subject, labels: &[usize], classes: &[String]) -> Result<Means> {
    let mut means = Vec::new();
    for layer in subject.layers() {
        let means_of_layer = class_means(layer, labels, classes.len())?;
        // What all classes share moves through depth, too, and would hide what tells them apart.
        let centre = means_of_layer.mean_axis(Axis(0)).context("no classes")?;
        means.push(means_of_layer - centre);
    }
    let last = means.last().context("a model without layers")?;
    let cos = means.iter().map(|layer| cos(layer, last, Centring::None)).collect::<Result<_, _>>()?;
    Ok(Means { name: subject.name.clone(), cos, plane: plane(&means, classes)? })
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
