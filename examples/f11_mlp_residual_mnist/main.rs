//! Figure 11 of the paper: MLPs with and without residual connections. See the README beside this file.

mod measured;
mod show;

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Context, Result};
use candle_core::Device;
use clap::Parser;
use layerwise::{
    models::{Mlp, MlpConfig},
    ops::init,
    train::{AdamWConfig, Objective, Schedule, TrainConfig},
};
use layerwise_example_common::{
    CommonFlags, ModelResults, Preset, Results,
    curves::{Together, mean_together},
    data_sets::{embedded_digits, folder_or_digits, mnist_of},
    flags::RunsFlag,
    images::Images,
    interrupt,
    layers::{Source, features, score},
    run_main,
    training::trained,
};
use serde_json::json;

use measured::{Variant, measure};
use show::show;

layerwise_example_common::fast_allocator!();

const NAME: &str = "f11_mlp_residual_mnist";

/// Trains 9-layer MLPs with and without residual connections, and measures how well COS, CKA and accuracy go together in them.
#[derive(Parser)]
#[command(name = NAME)]
struct Flags {
    #[command(flatten)]
    common: CommonFlags,
    /// Folder of MNIST: train-images-idx3-ubyte and so on, also .gz [without it, --preset smoke takes the embedded digits].
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    #[command(flatten)]
    runs: RunsFlag,
}

/// Models of a variant, which differ in the seed only: `--seed` and the two after it.
const SEEDS: u64 = 3;

fn main() -> ExitCode {
    let flags = Flags::parse();
    run_main(&flags.common, |device| f11(&flags, &device))
}

fn f11(flags: &Flags, device: &Device) -> Result<()> {
    let data = load(flags, device)?;
    let out = flags.common.out_folder(NAME)?;
    let stop = interrupt::stop_flag()?;
    let CommonFlags { preset, seed, .. } = flags.common;
    let config = TrainConfig {
        objective: Objective::Standard,
        epochs: if preset == Preset::Smoke { 2 } else { 10 },
        batch_size: if preset == Preset::Smoke { 48 } else { 128 },
        optimiser: AdamWConfig { lr: 1e-3, ..Default::default() },
        schedule: Schedule::OneCycle,
        evaluate_every: 0,
        ..Default::default()
    };
    let pixels: usize = data.batch(0..1, device)?.inputs.elem_count();
    let mlp = |residual| MlpConfig { inputs: pixels, residual, ..Default::default() };
    let settings = json!({ "preset": preset, "data": flags.data, "images": data.name, "train": config, "mlp": mlp(true),
        "train_samples": data.train_len(), "test_samples": data.test_len() });
    let mut results = Results::new(NAME, settings, seed, device);

    let mut variants = Vec::new();
    for (name, residual) in [("plain", false), ("residual", true)] {
        let mut models = Vec::new();
        for seed in flags.common.seeds(SEEDS)? {
            let model = Mlp::new(mlp(residual), &mut init::rng(seed), device)?;
            let run = flags.runs.runs.join(format!("{}-{name}-mlp-{}-seed{seed}", data.name, preset.name()));
            let config = TrainConfig { seed, ..config.clone() };
            trained(&format!("{name}, seed {seed}"), &model, &data, &config, &run, stop)?;
            let size = (data.samples(), 1000);
            let features = features(&model.frozen(), &data, size, device, stop)?;
            let labels = data.labels().context("no labels")?;
            models.push(measure(seed, &features[1..], score(&model.frozen(), &features, labels)?.0)?);
        }
        let correlations: Vec<&[Together]> = models.iter().map(|model| &*model.correlations).collect();
        variants.push(Variant { name, mean: mean_together(&correlations), models });
    }
    record(&mut results, &variants);
    show(&out, &mut results, data.test_len(), &variants)
}

fn record(results: &mut Results, variants: &[Variant]) {
    for variant in variants {
        for model in &variant.models {
            let mut entry = ModelResults::of(Some(&model.scores));
            entry.cos_to_last = model.cos.clone();
            entry.cka_to_last = model.cka.clone();
            entry.more.insert("correlations".into(), json!(model.correlations));
            results.models.insert(format!("{}, seed {}", variant.name, model.seed), entry);
        }
        let mean = results.more.entry("mean_correlations").or_insert_with(|| json!({}));
        mean[variant.name] = json!(variant.mean);
    }
}

fn load(flags: &Flags, device: &Device) -> Result<Images> {
    let smoke = flags.common.preset == Preset::Smoke;
    let folder =
        folder_or_digits(flags.data.as_deref(), flags.common.preset, "a folder of MNIST (idx files)")?;
    match folder {
        Some(folder) => mnist_of(folder, if smoke { 480 } else { usize::MAX }, device),
        None => embedded_digits(480, device),
    }
}
