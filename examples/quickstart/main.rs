//! The main job in minutes: align a ViT, look inside it, leave it early, cut it. See the README beside this file.

mod show;

use std::{path::Path, process::ExitCode};

use anyhow::{Context, Result, ensure};
use candle_core::Device;
use clap::Parser;
use layerwise::{
    exit::{ExitReport, LayerScores, evaluate, measure, minimal_depth},
    models::{Pass, Vit, tap},
    ops::init,
    similarity::{Centring, Estimator, Measure},
    train::{AdamWConfig, Evaluation, Objective, Schedule, TrainConfig},
};
use layerwise_example_common::{
    CommonFlags, Preset,
    data_sets::embedded_digits,
    images::{Images, TEST_BATCH},
    interrupt, progress,
    recipes::digits_vit,
    run_main,
    similarity::all_pairs,
    training::trained,
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
    exits: Vec<ExitReport>,
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
    let settings = json!({ "preset": flags.preset, "train": config, "vit": vit, "tolerance": TOLERANCE,
        "train_samples": data.train_len(), "test_samples": data.test_len() });
    let mut results = layerwise_example_common::Results::new("quickstart", settings, flags.seed, &device);

    let mut studied = Vec::new();
    for (name, objective) in [("standard", Objective::Standard), ("aligned", Objective::default())] {
        let config = TrainConfig { objective, ..config.clone() };
        let run = out.join(format!("runs/{name}-{}-seed{}", flags.preset.name(), flags.seed));
        let model = Vit::new(vit.clone(), &mut init::rng(flags.seed), &device)?;
        let curve = trained(name, &model, &data, &config, &run, stop)?;
        save(&model, &out.join(name), &data)?;
        studied.push(study(name, model, curve, &data, if smoke { 1 } else { 7 })?);
    }
    let aligned = studied.last().context("no model")?;
    let depth = minimal_depth(&aligned.scores.accuracy, TOLERANCE).context("no accuracy")?;
    let cut =
        cut_and_check(aligned, depth, &data, (&out.join("aligned"), &out.join("aligned-cut")), &device)?;
    progress::print(&show::tables(&studied, &cut));
    show::write(&out, &mut results, &studied, &cut)?;
    Ok(())
}

/// A Hugging Face folder: the model, and how its images are prepared.
fn save(model: &Vit, folder: &Path, data: &Images) -> Result<()> {
    model.save(folder)?;
    Ok(data.preprocess().save(folder)?)
}

/// Scores every layer, compares all layers, leaves early.
fn study(
    name: &'static str,
    model: Vit,
    curve: Vec<Evaluation>,
    data: &Images,
    rounds: usize,
) -> Result<Studied> {
    let packed = model.packed()?;
    let (inputs, _) = data.test();
    let scores = evaluate(&packed, data.test_batches())?;
    // The embedding's [CLS] token is the same for every image: layers 1..L only.
    let features = tap::features(&packed, inputs, Pass::EVAL)?.split_off(1);
    let cos = all_pairs(&features, Measure::Cos(Centring::Samples))?;
    let cka = all_pairs(&features, Measure::Cka(Estimator::Biased))?;
    let exits = measure(&packed, || data.test_batches(), &THRESHOLDS, rounds)?;
    Ok(Studied { name, model, scores, cos, cka, exits, curve })
}

/// A shallower model in a folder, read back and checked.
struct Cut {
    depth: usize,
    accuracy: f64,
    bytes: u64,
    full_bytes: u64,
}

/// Cuts, saves, reloads: the file must answer as the exit at that depth does, bit for bit.
fn cut_and_check(
    studied: &Studied,
    depth: usize,
    data: &Images,
    (full, folder): (&Path, &Path),
    device: &Device,
) -> Result<Cut> {
    save(&studied.model.cut(depth)?, folder, data)?;
    let (whole, reloaded) = (studied.model.frozen(), Vit::load(folder, device)?.frozen());
    let scores = evaluate(&reloaded, data.test_batches())?;
    let (inputs, _) = data.test();
    for part in inputs.split(TEST_BATCH)? {
        let want = &tap::layer_logits(&whole, &part, Pass::EVAL)?[depth - 1];
        let got = tap::forward(&reloaded, &part, Pass::EVAL)?;
        ensure!(
            got.to_vec2::<f32>()? == want.to_vec2::<f32>()?,
            "{}: the reloaded model's logits differ from exit {depth}'s",
            folder.display()
        );
    }
    Ok(Cut { depth, accuracy: scores.accuracy[depth - 1], bytes: size(folder)?, full_bytes: size(full)? })
}

/// Bytes of a folder's weights.
fn size(folder: &Path) -> Result<u64> {
    let file = folder.join("model.safetensors");
    Ok(std::fs::metadata(&file).with_context(|| file.display().to_string())?.len())
}
