//! Figure 2 of the paper: COS follows CKA and accuracy from layer to layer. See the README beside this file.

use std::{path::Path, process::ExitCode};

use anyhow::Result;
use candle_core::Device;
use clap::Parser;
use layerwise::similarity::{Centring, Estimator, Measure};
use layerwise_example_common::{
    Report, Results, Table,
    curves::{Together, correlation_table, mean_curve, mean_together, together},
    plots::{self, Series},
    progress, run_main,
    similarity::{all_pairs, to_last},
    table::{Column, per_layer, percent, thousandths},
    vision::{Plan, Subject, Vision, VisionFlags},
};
use serde_json::json;

layerwise_example_common::fast_allocator!();

const NAME: &str = "f02_cos_tracks_cka";

/// Measures COS, CKA and accuracy of every layer of three standard models, and how well they go together.
#[derive(Parser)]
#[command(name = NAME)]
struct Flags {
    #[command(flatten)]
    vision: VisionFlags,
}

/// Models that differ in the seed only: `--seed` and the two after it.
const SEEDS: u64 = 3;

/// What was measured of one model; over layers `1..=L`.
struct Measured {
    subject: Subject,
    cos: Vec<Vec<f64>>,
    cos_to_last: Vec<f64>,
    cka: Vec<f64>,
    cka_debiased: Vec<f64>,
    correlations: Vec<Together>,
}

fn main() -> ExitCode {
    let flags = Flags::parse().vision;
    run_main(&flags.train.common, |device| f02(&flags, &device))
}

fn f02(flags: &VisionFlags, device: &Device) -> Result<()> {
    let vision = Vision::open(flags, device)?;
    let out = flags.train.common.out_folder(NAME)?;
    let seed = flags.train.common.seed;
    let mut results = Results::new(NAME, vision.settings(), seed, device);
    let names: Vec<String> = (seed..seed + SEEDS).map(|seed| format!("seed {seed}")).collect();
    let wanted: Vec<_> = names
        .iter()
        .zip(seed..)
        .map(|(name, seed)| Plan { name: name.clone(), ..Plan::standard(seed) })
        .collect();
    let models: Vec<Measured> = vision.study(&wanted)?.into_iter().map(measure).collect::<Result<_>>()?;
    let correlations = record(&mut results, &models);
    show(&out, &mut results, &vision, &models, &correlations)
}

/// Puts everything into `results.json`; gives the correlations with their means.
fn record(results: &mut Results, models: &[Measured]) -> Table {
    for model in models {
        let mut entry = model.subject.results();
        entry.cos_to_last = model.cos_to_last.clone();
        entry.cka_to_last = model.cka.clone();
        entry.more.insert("cka_debiased_to_last".into(), json!(model.cka_debiased));
        entry.more.insert("cos".into(), json!(model.cos));
        entry.more.insert("correlations".into(), json!(model.correlations));
        results.models.insert(model.subject.name.clone(), entry);
    }
    let mut correlations: Vec<(&str, &[Together])> =
        models.iter().map(|model| (&*model.subject.name, &*model.correlations)).collect();
    let mean = mean_together(&correlations.iter().map(|(_, pairs)| *pairs).collect::<Vec<_>>());
    results.more.insert("mean_correlations".into(), json!(mean));
    if models.len() > 1 {
        correlations.push(("mean", &mean));
    }
    correlation_table(correlations)
}

fn show(
    out: &Path,
    results: &mut Results,
    vision: &Vision<'_>,
    models: &[Measured],
    correlations: &Table,
) -> Result<()> {
    progress::print(&format!("\nCorrelations over the layers but the last:\n{correlations}"));
    let layers = layer_table(models);
    progress::print(&format!(
        "\nMeans over models, accuracy (%), COS and CKA (biased, debiased) to the last layer:\n{layers}"
    ));

    let tracks = plots::write(&out.join("tracks"), models.iter().map(tracks).collect(), 3)?;
    let heat = models.iter().map(|Measured { subject, cos, .. }| {
        plots::heat_map(&format!("COS, {}", subject.name), ("layer", "layer"), cos, 1, (0., 1.))
    });
    let heat = plots::write(&out.join("similarity"), heat.collect(), 3)?;
    Report::new("COS, CKA and accuracy through depth")
        .paragraph(&vision.about())
        .figure(
            &tracks,
            "COS, linear CKA and accuracy of each layer; similarities are those to the last layer.",
        )
        .table(correlations, "Correlations over the layers but the last, where every similarity is 1.")
        .figure(&heat, "COS of all pairs of layers, on one scale; values below 0 are drawn as 0.")
        .table(&layers, "Per layer, means over models: accuracy in percent, COS and CKA to the last layer.")
        .close(results, out)
}

fn measure(subject: Subject) -> Result<Measured> {
    let layers = subject.layers();
    let cos = all_pairs(layers, Measure::Cos(Centring::Samples))?;
    let cos_to_last = cos.last().cloned().unwrap_or_default();
    let cka = to_last(layers, Measure::Cka(Estimator::Biased))?;
    let cka_debiased = to_last(layers, Measure::Cka(Estimator::Debiased))?;
    let curve = ("COS", &*cos_to_last);
    let mut correlations =
        vec![together(curve, ("CKA", &cka)), together(curve, ("debiased CKA", &cka_debiased))];
    if let Some(scores) = &subject.scores {
        correlations.push(together(curve, ("accuracy", &scores.accuracy)));
        correlations.push(together(("CKA", &cka), ("accuracy", &scores.accuracy)));
    }
    Ok(Measured { cos, cos_to_last, cka, cka_debiased, correlations, subject })
}

fn layer_table(models: &[Measured]) -> Table {
    let column = |name: &str, write: fn(f64) -> String, values: fn(&Measured) -> Vec<f64>| -> Column {
        (name.to_owned(), write, mean_curve(&models.iter().map(values).collect::<Vec<_>>()))
    };
    let columns = [
        column("accuracy", percent, |model| model.subject.accuracy()),
        column("COS", thousandths, |model| model.cos_to_last.clone()),
        column("CKA", thousandths, |model| model.cka.clone()),
        column("debiased", thousandths, |model| model.cka_debiased.clone()),
    ];
    per_layer(1, &columns)
}

fn tracks(model: &Measured) -> plots::Panel {
    let series = [
        Series::per_layer("COS", 1, &model.cos_to_last),
        Series::per_layer("CKA", 1, &model.cka),
        Series::per_layer("CKA, debiased", 1, &model.cka_debiased),
        Series::per_layer("accuracy", 1, &model.subject.accuracy()),
    ];
    plots::lines(
        &model.subject.name,
        "layer",
        "similarity to the last layer, accuracy",
        &series,
        Some((0., 1.)),
    )
}
