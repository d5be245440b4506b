//! The experiments with vision transformers: which models, trained here or by others, and what their layers say of held-out
//! images.

use std::{
    num::NonZeroUsize,
    path::{Path, PathBuf},
    sync::atomic::AtomicBool,
};

use anyhow::{Context, Result};
use candle_core::{Device, Tensor};
use clap::Args;
use layerwise_exit::LayerScores;
use layerwise_models::{Vit, VitConfig};
use layerwise_ops::init;
use layerwise_train::{Objective, TrainConfig};
use serde_json::{Value, json};

use crate::{
    CommonFlags, ModelResults, Preset,
    checkpoint::{load_vit, model_name},
    data_sets::{cifar10_of, embedded_digits},
    images::Images,
    input::Input,
    interrupt,
    layers::{Source, features, scores},
    progress,
    recipes::{cifar10_recipe, cifar10_vit, digits_vit},
    training::trained,
};

/// Flags of the experiments with vision transformers.
#[derive(Args, Clone, Debug)]
pub struct VisionFlags {
    /// The flags of every example.
    #[command(flatten)]
    pub common: CommonFlags,
    /// Folder of CIFAR-10, parquet or binary files [without it, --preset smoke takes the embedded digits].
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,
    /// Measure this ViT or DeiT folder of Hugging Face's; nothing is trained.
    #[arg(long, value_name = "DIR")]
    pub model: Option<PathBuf>,
    /// Measure on the first so many held-out images only [default: all; 64 with --preset smoke and --model].
    #[arg(long, value_name = "N")]
    pub limit: Option<NonZeroUsize>,
    /// Trained models, which the experiments share.
    #[arg(long, value_name = "DIR", default_value = "out/runs")]
    pub runs: PathBuf,
}

/// How a model is trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Training {
    /// With the loss of the last layer.
    Standard,
    /// With the paper's alternating objective.
    Aligned,
}

impl Training {
    fn name(self) -> &'static str {
        match self {
            Self::Standard => "standard",
            Self::Aligned => "aligned",
        }
    }

    fn objective(self) -> Objective {
        match self {
            Self::Standard => Objective::Standard,
            Self::Aligned => Objective::default(),
        }
    }
}

/// What the layers of one model say of the held-out images.
#[derive(Debug)]
pub struct Subject {
    /// What tables and figures call it.
    pub name: String,
    /// Features `(samples, width)` of layers `0..=L`. That of layer 0, the class token's embedding, is the same for every image.
    pub features: Vec<Tensor>,
    /// Accuracy and loss after each layer `1..=L`; none for a model without a head for these classes.
    pub scores: Option<LayerScores>,
    /// The class that each exit answers, `(L, samples)`; none without scores.
    pub answers: Vec<Vec<u32>>,
}

impl Subject {
    /// Layers `1..=L`: those that tell images apart.
    #[must_use]
    pub fn layers(&self) -> &[Tensor] {
        &self.features[1..]
    }

    /// Accuracy after each layer `1..=L`; empty without scores.
    #[must_use]
    pub fn accuracy(&self) -> Vec<f64> {
        self.scores.as_ref().map(|scores| scores.accuracy.clone()).unwrap_or_default()
    }

    /// Accuracy and loss as `results.json` has them.
    #[must_use]
    pub fn results(&self) -> ModelResults {
        let LayerScores { accuracy, loss, .. } = self.scores.clone().unwrap_or_default();
        ModelResults { accuracy, loss, ..Default::default() }
    }
}

/// Models and images of one experiment.
#[derive(Debug)]
pub struct Vision<'a> {
    flags: &'a VisionFlags,
    device: Device,
    stop: &'static AtomicBool,
    origin: Origin,
}

#[derive(Debug)]
enum Origin {
    Train { data: Box<Images>, vit: VitConfig, config: TrainConfig },
    Load { name: String, model: Box<Vit>, input: Input },
}

impl<'a> Vision<'a> {
    /// Reads the images, and the model of `--model`.
    ///
    /// # Errors
    ///
    /// When there is no `--data` where it is needed, or it is not what it should be.
    pub fn open(flags: &'a VisionFlags, device: &Device) -> Result<Self> {
        let smoke = flags.common.preset == Preset::Smoke;
        if flags.data.is_none() {
            let needed = "--data DIR: expected a folder of CIFAR-10 (parquet or binary files); only --preset smoke does without";
            smoke.then_some(()).context(needed)?;
            progress::line("no --data: the embedded digits stand in for CIFAR-10");
        }
        let origin = match &flags.model {
            Some(folder) => {
                let (model, _) = load_vit(folder, device)?;
                let limit = flags.limit.map(NonZeroUsize::get).or(smoke.then_some(64));
                let data = flags.data.as_deref().unwrap_or(Path::new("digits"));
                let input = Input::open(data, limit, folder, model.config())?;
                Origin::Load { name: model_name(folder)?, model: model.into(), input }
            }
            None => {
                let (data, vit) = match &flags.data {
                    None => (embedded_digits(240, device)?, digits_vit()),
                    Some(folder) => {
                        let limit = if smoke { 240 } else { usize::MAX };
                        (cifar10_of(folder, limit, device)?, cifar10_vit(flags.common.preset))
                    }
                };
                Origin::Train { data: data.into(), vit, config: cifar10_recipe(flags.common.preset) }
            }
        };
        Ok(Self { flags, device: device.clone(), stop: interrupt::stop_flag()?, origin })
    }

    /// What `results.json` says of the setting.
    #[must_use]
    pub fn settings(&self) -> Value {
        let (preset, samples) = (self.flags.common.preset, self.samples());
        let data = &self.flags.data;
        match &self.origin {
            Origin::Train { data: images, vit, config } => {
                json!({ "preset": preset, "data": data, "images": images.name,
                "train_samples": images.train_len(), "test_samples": samples, "augment": images.augment, "train": config,
                "vit": vit })
            }
            Origin::Load { model, input, .. } => {
                json!({ "preset": preset, "data": data, "model": self.flags.model,
                "test_samples": samples, "vit": model.config(), "preprocess": input.preprocess() })
            }
        }
    }

    /// Number of images measured.
    #[must_use]
    pub fn samples(&self) -> usize {
        self.flags.limit.map_or(usize::MAX, NonZeroUsize::get).min(self.source().samples())
    }

    /// Labels of the images measured, where they are known.
    #[must_use]
    pub fn labels(&self) -> Option<&[u32]> {
        Some(&self.source().labels()?[..self.samples()])
    }

    /// Names of the classes.
    #[must_use]
    pub fn classes(&self) -> &[String] {
        self.source().classes()
    }

    /// What a report says of images and layers.
    #[must_use]
    pub fn about(&self) -> String {
        let samples = self.samples();
        format!(
            "{samples} held-out images. Layers are those after each block, at the class token, before the exit norm. COS is the cosine of a \
             sample's features in two layers, each centred over the samples; where not said otherwise, its mean over samples."
        )
    }

    /// Trains or finds the `wanted` models (name, training, seed) and measures each; with `--model`, that one instead.
    ///
    /// # Errors
    ///
    /// As [`trained`] and [`features`].
    pub fn study(&self, wanted: &[(&str, Training, u64)]) -> Result<Vec<Subject>> {
        match &self.origin {
            Origin::Load { name, model, .. } => Ok(vec![self.measure(name, model)?]),
            Origin::Train { data, vit, config } => {
                let subject = |(name, training, seed): &(&str, Training, u64)| {
                    let config =
                        TrainConfig { objective: training.objective(), seed: *seed, ..config.clone() };
                    let model = Vit::new(vit.clone(), &mut init::rng(*seed), &self.device)?;
                    let run = self.run_folder(data.name, *training, *seed);
                    trained(name, &model, data, &config, &run, self.stop)?;
                    // For other programs, and for `--model`.
                    let folder = run.join("model");
                    model.save(&folder)?;
                    data.preprocess().save(&folder)?;
                    self.measure(name, &model.packed()?)
                };
                wanted.iter().map(subject).collect()
            }
        }
    }

    fn run_folder(&self, data: &str, training: Training, seed: u64) -> PathBuf {
        let preset = self.flags.common.preset.name();
        self.flags.runs.join(format!("{data}-{}-{preset}-seed{seed}", training.name()))
    }

    fn source(&self) -> &dyn Source {
        match &self.origin {
            Origin::Train { data, .. } => &**data,
            Origin::Load { input, .. } => input,
        }
    }

    fn measure(&self, name: &str, model: &Vit) -> Result<Subject> {
        // Small images in large batches; those of a checkpoint need more memory each.
        let at_once = if model.config().tokens() > 100 { 16 } else { 100 };
        let size = (self.samples(), at_once);
        let mut ignore = |_, _, _: &_, _: &_| Ok(());
        let features = features(model, self.source(), size, &self.device, self.stop, &mut ignore)?;
        let (scores, answers) = scores(model, &features, self.source())?.unzip();
        let answers = answers.unwrap_or_default();
        Ok(Subject { name: name.to_owned(), features, scores, answers })
    }
}
