//! The main job in minutes: align a ViT, look inside it, leave it early, cut it. See the README beside this file.

mod show;

use std::process::ExitCode;

use anyhow::{Context, Result};
use candle_core::Device;
use clap::Parser;
use layerwise::{
    exit::{LayerScores, evaluate, minimal_depth},
    models::{Pass, Vit, tap},
    ops::init,
    similarity::{Centring, Estimator, Measure},
    train::{AdamWConfig, Evaluation, Objective, Schedule, TrainConfig},
};
use layerwise_example_common::{
    CommonFlags, Preset,
    cut::{cut_and_check, save, weights_size},
    data_sets::embedded_digits,
    exits::{Exits, leave_at},
    images::Images,
    interrupt,
    layers::Source,
    progress,
    recipes::digits_vit,
    run_main,
    similarity::all_pairs,
    training::{recipe_settings, trained},
};
use serde_json::json;

layerwise_example_common::fast_allocator!();

/// Trains a 12-layer ViT on real digits, standard and aligned, and compares what their layers can do.
#[derive(Parser)]
#[command(name = "quickstart")]
struct Flags {
    #[command(flatten)]
    common: CommonFlags,
}

/// Accuracy that the cut model may lose, and that counts as "nothing lost" in the tables.
const TOLERANCE: f64 = 0.01;
const THRESHOLDS: [f64; 7] = [0.7, 0.8, 0.9, 0.95, 0.99, 0.995, 0.998];

/// A trained model and what was measured of it.
struct Studied {
    name: &'static str,
    model: Vit,
    scores: LayerScores,
    cos: Vec<Vec<f64>>,
    cka: Vec<Vec<f64>>,
    exits: Exits,
    curve: Vec<Evaluation>,
}

fn main() -> ExitCode {
    let flags = Flags::parse();
    run_main(&flags.common, |device| quickstart(&flags.common, device))
}

fn quickstart(flags: &CommonFlags, device: Device) -> Result<()> {
    let out = flags.out_folder("quickstart")?;
    let stop = interrupt::stop_flag()?;
    let smoke = flags.preset == Preset::Smoke;
    let data = embedded_digits(if smoke { 240 } else { usize::MAX }, &device)?;
    let config = TrainConfig {
        epochs: if smoke { 2 } else { 60 },
        batch_size: 48,
        optimiser: AdamWConfig { lr: 1e-3, ..Default::default() },
        schedule: Schedule::OneCycle,
        evaluate_every: 2,
        checkpoint_every: 200,
        seed: flags.seed,
        ..Default::default()
    };
    let vit = digits_vit();
    let settings = json!({ "preset": flags.preset, "train": recipe_settings(&config), "vit": vit, "tolerance": TOLERANCE,
        "train_samples": data.train_len(), "test_samples": data.test_len() });
    let mut results = layerwise_example_common::Results::new("quickstart", settings, flags.seed, &device);

    let mut studied = Vec::new();
    for (name, objective) in [("standard", Objective::Standard), ("aligned", Objective::default())] {
        let config = TrainConfig { objective, ..config.clone() };
        let run = out.join(format!("runs/{name}-{}-seed{}", flags.preset.name(), flags.seed));
        let model = Vit::new(vit.clone(), &mut init::rng(flags.seed), &device)?;
        let curve = trained(name, &model, &data, &config, &run, stop)?.evaluations;
        save(&model, data.preprocess(), &out.join(name))?;
        studied.push(study(name, model, curve, (&data, &device), if smoke { 1 } else { 7 })?);
    }
    let aligned = studied.last().context("no model")?;
    let depth = minimal_depth(&aligned.scores.accuracy, TOLERANCE).context("no accuracy")?;
    let folder = out.join("aligned-cut");
    let cut = cut_and_check(&aligned.model, depth, data.preprocess(), data.test_batches(), &folder, &device)?;
    let cut = (cut, weights_size(&out.join("aligned"))?);
    progress::print(&show::tables(&studied, &cut));
    show::write(&out, &mut results, &studied, &cut)?;
    Ok(())
}

/// Scores every layer, compares all layers, leaves early.
fn study(
    name: &'static str,
    model: Vit,
    curve: Vec<Evaluation>,
    (data, device): (&Images, &Device),
    rounds: usize,
) -> Result<Studied> {
    let packed = model.packed()?;
    let inputs = Source::batch(data, 0..data.test_len(), device)?;
    let scores = evaluate(&packed, data.test_batches())?;
    // The embedding's [CLS] token is the same for every image: layers 1..L only.
    let features = tap::features(&packed, &inputs, Pass::EVAL)?.split_off(1);
    let cos = all_pairs(&features, Measure::Cos(Centring::Samples))?;
    let cka = all_pairs(&features, Measure::Cka(Estimator::Biased))?;
    let reports = leave_at(&packed, || data.test_batches(), &THRESHOLDS, rounds)?;
    let full = scores.accuracy.last().copied().context("no layer")?;
    let exits = Exits { name: name.to_owned(), full, reports };
    Ok(Studied { name, model, scores, cos, cka, exits, curve })
}
