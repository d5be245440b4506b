//! The experiments with vision transformers: which models, trained here or by others, and what their layers say of held-out
//! images.

use std::{num::NonZeroUsize, path::PathBuf, sync::atomic::AtomicBool};

use anyhow::Result;
use candle_core::{Device, Tensor};
use clap::Args;
use layerwise_exit::LayerScores;
use layerwise_models::{Vit, VitConfig};
use layerwise_ops::init;
use layerwise_train::{Objective, TrainConfig};
use serde_json::{Value, json};

use crate::{
    CommonFlags, ModelResults, Preset,
    checkpoint::{load_vit, model_names},
    data_sets::{cifar10_of, embedded_digits, folder_or_digits},
    flags::{LimitFlag, RunsFlag},
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
    /// Folder of CIFAR-10, parquet or binary files; with --model also of MNIST, or of PNG and JPEG files [without it,
    /// --preset smoke takes the embedded digits].
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,
    /// Measure this ViT or DeiT folder of Hugging Face's. Nothing is trained: --seed and --runs have no place beside it.
    #[arg(long, value_name = "DIR", conflicts_with_all = ["runs", "seed"])]
    pub model: Option<PathBuf>,
    /// How many of the held-out images.
    #[command(flatten)]
    pub limit: LimitFlag,
    /// Where trained models are.
    #[command(flatten)]
    pub runs: RunsFlag,
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
        ModelResults::of(self.scores.as_ref())
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
        let preset = flags.common.preset;
        let expected = match flags.model {
            Some(_) => "a folder of images, or of CIFAR-10 or MNIST",
            None => "a folder of CIFAR-10 (parquet or binary files)",
        };
        let folder = folder_or_digits(flags.data.as_deref(), preset, expected)?;
        let origin = match &flags.model {
            Some(model) => {
                let name = model_names(&[model])?.concat();
                let (vit, _) = load_vit(model, device)?;
                let input = Input::open(folder, flags.limit.of_checkpoint(preset), model, vit.config())?;
                Origin::Load { name, model: vit.into(), input }
            }
            None => {
                let (data, vit) = match folder {
                    None => (embedded_digits(240, device)?, digits_vit()),
                    Some(folder) => {
                        let limit = if preset == Preset::Smoke { 240 } else { usize::MAX };
                        (cifar10_of(folder, limit, device)?, cifar10_vit(preset))
                    }
                };
                let (train, held_out) = (data.train_len(), data.test_len());
                progress::line(&format!("{}: {train} images to train on, {held_out} held out", data.name));
                Origin::Train { data: data.into(), vit, config: cifar10_recipe(preset) }
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
        self.flags.limit.limit.map_or(usize::MAX, NonZeroUsize::get).min(self.source().samples())
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

    /// The standard and the aligned model of `--seed`; with `--model`, that one instead.
    ///
    /// # Errors
    ///
    /// As [`study`](Self::study).
    pub fn standard_and_aligned(&self) -> Result<Vec<Subject>> {
        let seed = self.flags.common.seed;
        self.study(&[("standard", Training::Standard, seed), ("aligned", Training::Aligned, seed)])
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
                    let run = self.run_name(data.name, *training, *seed);
                    let runs = &self.flags.runs.runs;
                    trained(name, &model, data, &config, &runs.join(&run), self.stop)?;
                    // For other programs, and for `--model`.
                    let folder = runs.join("models").join(&run);
                    model.save(&folder)?;
                    data.preprocess().save(&folder)?;
                    self.measure(name, &model.packed()?)
                };
                wanted.iter().map(subject).collect()
            }
        }
    }

    fn run_name(&self, data: &str, training: Training, seed: u64) -> String {
        let preset = self.flags.common.preset.name();
        format!("{data}-{}-{preset}-seed{seed}", training.name())
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
        let features = features(model, self.source(), size, &self.device, self.stop)?;
        let (scores, answers) = scores(model, &features, self.source())?.unzip();
        let answers = answers.unwrap_or_default();
        Ok(Subject { name: name.to_owned(), features, scores, answers })
    }
}
