//! Thresholds for a budget or with a promise about accuracy, for a trained model. See the README beside this file.

mod choose;
mod samples;
mod show;
mod splits;

use std::{num::NonZeroUsize, path::PathBuf, process::ExitCode};

use anyhow::{Context, Result, ensure};
use candle_core::Device;
use clap::{Parser, ValueEnum};
use layerwise::exit::{self, Calibration, CostTable, Guarantee, Risk, SavedExits, Test};
use layerwise_example_common::{
    CommonFlags, Preset, Results,
    checkpoint::Checkpoint,
    flags::{LimitFlag, ModelFlag},
    progress, run_main,
};
use serde_json::json;

use choose::Chosen;
use samples::{Observed, Parts};

layerwise_example_common::fast_allocator!();

const NAME: &str = "calibrate";
/// Thresholds of a sequence.
const STEPS: usize = 100;
/// Images of a batch that milliseconds are of.
const BATCH: usize = 64;

/// Chooses when a trained model is left early, from images that it was not trained on, and shows what that promise is worth.
#[derive(Parser)]
#[command(name = NAME)]
struct Flags {
    #[command(flatten)]
    common: CommonFlags,
    #[command(flatten)]
    model: ModelFlag,
    /// Folder of a labelled data set that the model has not seen: the test part of CIFAR-10's or MNIST's files [default: the embedded digits],
    /// or for a BERT a folder of GLUE with the name of its task.
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    #[command(flatten)]
    limit: LimitFlag,
    /// What a sample's certainty is read from.
    #[arg(long, value_enum, default_value_t = SignalName::MaxProbability)]
    signal: SignalName,
    /// What must seldom happen: that an exit gets wrong what the last layer gets right, or that they answer differently.
    #[arg(long, value_enum, default_value_t = RiskName::Accuracy)]
    risk: RiskName,
    /// How often at most, in points.
    #[arg(long, value_name = "POINTS", default_value_t = 1.)]
    tolerance: f64,
    /// Probability that this is not kept.
    #[arg(long, default_value_t = 0.05)]
    delta: f64,
    /// Test with the Hoeffding-Bentkus inequality instead of the exact binomial distribution.
    #[arg(long)]
    hoeffding_bentkus: bool,
    /// Choose for so many layers a sample instead, on average, and promise nothing.
    #[arg(long, value_name = "LAYERS", conflicts_with = "budget_ms")]
    budget: Option<f64>,
    /// Choose for so many milliseconds a sample instead, as predicted for full batches of 64, and promise nothing.
    #[arg(long, value_name = "MS")]
    budget_ms: Option<f64>,
    /// Layers that are checked, separated by commas [default: all but the last].
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    layers: Vec<usize>,
    /// Random splits on which promises are tried [default: 1000; with --preset smoke 20].
    #[arg(long, value_name = "N")]
    splits: Option<NonZeroUsize>,
    /// Folder of other images of CIFAR-10's classes, for which nothing was promised.
    #[arg(long, value_name = "DIR")]
    shift: Option<PathBuf>,
    /// Write the thresholds into the model's layerwise.json, where servers look for them.
    #[arg(long)]
    save: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum SignalName {
    MaxProbability,
    Margin,
    Entropy,
    Patience,
    Saturation,
    Gate,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum RiskName {
    Accuracy,
    Disagreement,
}

fn main() -> ExitCode {
    let flags = Flags::parse();
    run_main(&flags.common, |device| calibrate(&flags, &device))
}

fn calibrate(flags: &Flags, device: &Device) -> Result<()> {
    let promise = flags.promise();
    let needed = promise
        .samples_needed()
        .with_context(|| format!("--tolerance {} points, --delta {}", flags.tolerance, flags.delta))?;
    let folder = &flags.model.model;
    let (model, _) = Checkpoint::open(folder, device)?;
    let limit = flags.limit.limit.map(NonZeroUsize::get);
    let input = model.samples(folder, flags.data.as_deref(), limit, false)?;
    let labels = input
        .labels()
        .context("--data: calibration needs a data set with classes, not a folder of images, lines of text or numbers to tell")?
        .to_vec();
    let (classes, found) = (model.labels().len(), input.classes().len());
    ensure!(classes == found, "{}: {classes} classes, the data has {found}", folder.display());
    let others = samples::shift_set(flags.shift.as_deref(), folder, &model)?;
    let depth = model.tapped().depth();
    let layers = flags.checked(depth);
    let parts = Parts::of(labels.len(), flags.common.seed)?;
    let samples = parts.calibrate.len();
    if samples < needed && flags.budget.or(flags.budget_ms).is_none() {
        // Before anything takes time.
        let Guarantee { tolerance, delta, .. } = promise;
        return Err(exit::Error::TooFewSamples { samples, needed, tolerance, delta }.into());
    }
    let out = flags.common.out_folder(NAME)?;
    let settings = json!({ "preset": flags.common.preset, "model": folder, "data": flags.data, "samples": labels.len(), "promise": promise,
        "signal": format!("{:?}", flags.signal), "budget_layers": flags.budget, "budget_ms": flags.budget_ms, "layers": layers,
        "splits": flags.splits(), "shift": flags.shift, "steps": STEPS });
    let mut results = Results::new(NAME, settings, flags.common.seed, device);

    let packed = model.packed()?;
    let batch = input.batch(0..BATCH.min(input.samples()), device)?;
    let costs = CostTable::default().prepare(packed.tapped(), &batch, BATCH)?;
    let observed = Observed::new(packed.tapped(), &*input, &labels, &parts, device)?;

    let chosen = Chosen {
        layers: &layers,
        promise,
        costs: &costs,
        budget: match (flags.budget, flags.budget_ms) {
            (Some(layers), _) => Some(choose::Limit::Layers(layers)),
            (_, Some(ms)) => Some(choose::Limit::Milliseconds(ms)),
            _ => None,
        },
    };
    let signal = observed.signal(flags.signal)?;
    let kept = chosen.of(signal, &parts)?;
    let compared = chosen.compare(&observed, &parts)?;
    let curves = chosen.curves(&observed, &parts)?;
    let costs_of_promises = chosen.tolerances(signal, &parts)?;
    let splits = splits::splits(signal, &layers, flags.splits(), flags.common.seed)?;
    let shifted = others
        .map(|others| samples::shifted(packed.tapped(), &others, signal, (&kept.thresholds, &parts), device));
    let shifted = shifted.transpose()?;

    if flags.save {
        let calibration = match flags.budget.or(flags.budget_ms) {
            Some(_) => {
                Calibration::Budget { layers: kept.on_calibration.layers, samples: parts.calibrate.len() }
            }
            None => Calibration::Guarantee {
                promise,
                layers: kept.on_calibration.layers,
                samples: parts.calibrate.len(),
            },
        };
        SavedExits { depth, thresholds: kept.thresholds.clone(), calibration }.save(folder)?;
        progress::line(&format!("saved in {}", folder.join("layerwise.json").display()));
    }
    let shown = show::Shown { chosen: &chosen, kept, compared, curves, costs_of_promises, splits, shifted };
    show::show(&out, &mut results, &shown, &parts)
}

impl Flags {
    fn promise(&self) -> Guarantee {
        let risk = match self.risk {
            RiskName::Accuracy => Risk::Accuracy,
            RiskName::Disagreement => Risk::Disagreement,
        };
        let test = if self.hoeffding_bentkus { Test::HoeffdingBentkus } else { Test::ExactBinomial };
        Guarantee { risk, test, tolerance: self.tolerance / 100., delta: self.delta }
    }

    fn checked(&self, depth: usize) -> Vec<usize> {
        if self.layers.is_empty() { (1..depth).collect() } else { self.layers.clone() }
    }

    fn splits(&self) -> usize {
        let default = if self.common.preset == Preset::Smoke { 20 } else { 1000 };
        self.splits.map_or(default, NonZeroUsize::get)
    }
}
