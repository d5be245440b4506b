//! Figure 2 of the paper: COS follows CKA and accuracy from layer to layer. See the README beside this file.

mod show;

use std::process::ExitCode;

use anyhow::Result;
use candle_core::Device;
use clap::Parser;
use layerwise::similarity::{Centring, Estimator, Measure};
use layerwise_example_common::{
    Results, Table,
    curves::{Together, correlation_table, mean_together, together},
    hub, run_main,
    similarity::{all_pairs, to_last},
    vision::{Plan, Subject, Vision, VisionFlags},
};
use serde_json::json;

use show::show;

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
    run_main(&flags.train.common, |device| f02(&flags.clone().fetched(hub!())?, &device))
}

fn f02(flags: &VisionFlags, device: &Device) -> Result<()> {
    let vision = Vision::open(flags, device)?;
    let out = flags.train.common.out_folder(NAME)?;
    let seed = flags.train.common.seed;
    let mut results = Results::new(NAME, vision.settings(), seed, device);
    let names: Vec<String> = flags.train.common.seeds(SEEDS)?.map(|seed| format!("seed {seed}")).collect();
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
