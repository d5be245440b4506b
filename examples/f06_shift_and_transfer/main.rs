//! Figure 6 of the paper: layers under a shift of the data, and probed on other data. See the README beside this file.

mod transfer;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, Result, ensure};
use candle_core::Device;
use clap::Parser;
use layerwise::data::{ImageSet, Split, cifar10};
use layerwise_example_common::{
    Report, Results, Table,
    curves::named,
    hub,
    hub::fetched,
    input::Input,
    layers::Source,
    plots::{self, Panel},
    progress, run_main,
    table::{columns, per_layer, percent},
    vision::{Subject, TrainFlags, Vision},
};
use serde_json::json;

use transfer::{source, transfer};

layerwise_example_common::fast_allocator!();

const NAME: &str = "f06_shift_and_transfer";

/// Measures every layer of a standard and an aligned model on data that is not what it learned.
#[derive(Parser)]
#[command(name = NAME)]
struct Flags {
    #[command(flatten)]
    train: TrainFlags,
    /// Folder of other images of CIFAR-10's classes, or some of them, in the layout of CIFAR-10's test set, or an id of the hub.
    #[arg(long, value_name = "DIR")]
    shift: Option<PathBuf>,
    /// Folder of a data set in Hugging Face's parquet layout, or an id of the hub: models that learned it are probed on `--data`.
    #[arg(long, value_name = "DIR")]
    transfer_from: Option<PathBuf>,
}

/// A curve over layers `1..=L` of each model, by its name.
type Curves = Vec<(String, Vec<f64>)>;

fn main() -> ExitCode {
    let flags = Flags::parse();
    run_main(&flags.train.common, |device| f06(&flags, &device))
}

fn f06(flags: &Flags, device: &Device) -> Result<()> {
    let (train, hub) = (&flags.train.clone().fetched(hub!())?, hub!());
    let [shift_folder, other_folder] = [("--shift", &flags.shift), ("--transfer-from", &flags.transfer_from)]
        .map(|(flag, folder)| folder.as_ref().map(|folder| fetched(flag, folder, hub.data_set)).transpose());
    let (shift_folder, other_folder) = (shift_folder?, other_folder?);
    ensure!(train.data.is_some(), "--data DIR: expected a folder of CIFAR-10 (parquet or binary files)");
    let parts = [&flags.shift, &flags.transfer_from].into_iter().flatten();
    ensure!(parts.count() > 0, "--shift DIR or --transfer-from DIR: expected at least one of them");
    let vision = Vision::training(train, device)?;
    let others = shift_folder.as_ref().map(|folder| cifar10::load(folder, Split::Test)).transpose()?;
    let source = other_folder.as_ref().map(|folder| source(train, folder, device)).transpose()?;
    let out = train.common.out_folder(NAME)?;
    let mut settings = vision.settings();
    settings["shift"] = json!(flags.shift);
    settings["transfer_from"] = json!(source.as_ref().map(Vision::settings));
    let mut results = Results::new(NAME, settings, train.common.seed, device);
    let mut shown: Vec<(&str, Curves)> = Vec::new();
    if let Some(others) = others {
        let (familiar, shifted) = shift(&vision, &others)?;
        shown.extend([("familiar", familiar), ("shifted", shifted)]);
    }
    if let Some(source) = source {
        let (own, probes) = transfer(&source, &vision)?;
        shown.extend([("source", own), ("probe", probes)]);
    }
    for (key, curves) in &shown {
        for (name, curve) in curves {
            let entry = results.models.entry(name.clone()).or_default();
            entry.more.insert((*key).to_owned(), json!(curve));
        }
    }
    show(&out, &mut results, &vision, &shown)
}

/// Accuracy after each layer on the images held out, those of the classes that `other` has, and on `other`.
fn shift(vision: &Vision<'_>, other: &ImageSet) -> Result<(Curves, Curves)> {
    let (mut familiar, mut shifted) = (Vec::new(), Vec::new());
    for Subject { name, model, answers, .. } in vision.standard_and_aligned()? {
        let labels = vision.labels().context("no labels")?;
        let shared: Vec<usize> = (0..labels.len()).filter(|&i| other.labels().contains(&labels[i])).collect();
        let right = |answers: &Vec<u32>| shared.iter().filter(|&&i| answers[i] == labels[i]).count() as f64;
        familiar.push((
            name.clone(),
            answers.iter().map(|answers| right(answers) / shared.len() as f64).collect(),
        ));
        let source = Input::of_set(other.clone(), vision.preprocess().clone(), model.config());
        let (_, scores) = vision.layers_of(&model, &source, source.samples())?;
        shifted.push((name, scores.context("a model without a head")?.0.accuracy));
    }
    Ok((familiar, shifted))
}

fn by_name(curves: &Curves) -> Vec<(&str, Vec<f64>)> {
    named(curves, |(name, _)| name, |(_, curve)| curve.clone())
}

fn show(out: &Path, results: &mut Results, vision: &Vision<'_>, shown: &[(&str, Curves)]) -> Result<()> {
    let all = shown.iter().flat_map(|(key, curves)| columns(key, percent, by_name(curves)));
    let table: Table = per_layer(1, &all.collect::<Vec<_>>());
    progress::print(&format!("\nAccuracy (%):\n{table}"));
    let panel = |(key, curves): &(&str, Curves)| -> Panel {
        let title = match *key {
            "familiar" => "Held-out images, shared classes",
            "shifted" => "Other images of these classes",
            "source" => "The data set that was learned",
            _ => "Linear probes on CIFAR-10",
        };
        plots::lines(title, "layer", "fraction correct", &plots::series(1, by_name(curves)), Some((0., 1.)))
    };
    let figure = plots::write(&out.join("layers"), shown.iter().map(panel).collect(), 2)?;
    Report::new("Layers under shift and after transfer")
        .paragraph(&vision.about())
        .figure(&figure, "Accuracy after each layer, on familiar and on other data; probes are linear classifiers fitted on frozen features.")
        .table(&table, "Accuracy in percent.")
        .close(results, out)
}
