//! The experiments with vision transformers: which models, trained here or by others, and what their layers say of held-out
//! images.

use std::{
    num::NonZeroUsize,
    path::{Path, PathBuf},
    sync::atomic::AtomicBool,
};

use anyhow::{Context, Result, ensure};
use candle_core::{Device, Tensor};
use clap::Args;
use layerwise_data::{ImageSet, Preprocess, Shape};
use layerwise_exit::LayerScores;
use layerwise_models::{Head, Heads, LoadOptions, Vit, VitConfig};
use layerwise_ops::init;
use layerwise_train::{Evaluation, Objective, TrainConfig};
use serde_json::{Value, json};

use crate::{
    CommonFlags, ModelResults, Preset,
    checkpoint::{load_vit, model_names, preprocess_of},
    cut::save,
    data_sets::{cifar10_of, embedded_digits, folder_or_digits},
    flags::{LimitFlag, RecipeFlags, RunsFlag, in_name},
    hub::{Hub, fetched},
    images::Images,
    input::Input,
    interrupt,
    layers::{Source, features, indices, scores},
    progress,
    recipes::{cifar10_recipe, cifar10_vit, digits_vit, fine_tuned_size, fine_tuning_recipe},
    training::{Trained, recipe_settings, trained},
};

/// Flags of the experiments that train vision transformers.
#[derive(Args, Clone, Debug)]
pub struct TrainFlags {
    /// The flags of every example.
    #[command(flatten)]
    pub common: CommonFlags,
    /// Folder of CIFAR-10, parquet or binary files, or an id of the Hugging Face hub such as uoft-cs/cifar10 [without it, --preset smoke takes the embedded digits].
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,
    /// How many of the held-out images.
    #[command(flatten)]
    pub limit: LimitFlag,
    /// Where trained models are.
    #[command(flatten)]
    pub runs: RunsFlag,
    /// Fine-tune this ViT or DeiT folder of Hugging Face's, or id of the hub, instead of training a small ViT from random weights.
    #[arg(long, value_name = "DIR")]
    pub pretrained: Option<PathBuf>,
    /// With --pretrained: edge in pixels that images are resampled to [default: four patches; with --preset smoke two, with
    /// --preset paper the checkpoint's own].
    #[arg(long, value_name = "PIXELS", requires = "pretrained")]
    pub image_size: Option<NonZeroUsize>,
    /// Train on the first so many images only.
    #[arg(long, value_name = "N")]
    pub train_limit: Option<NonZeroUsize>,
    /// How long and how fast they are trained.
    #[command(flatten)]
    pub recipe: RecipeFlags,
}

impl TrainFlags {
    /// The same with folders for what is an id of the hub.
    ///
    /// # Errors
    ///
    /// As [`fetched`].
    pub fn fetched(mut self, hub: Hub) -> Result<Self> {
        for (flag, folder, get) in
            [("--data", &mut self.data, hub.data_set), ("--pretrained", &mut self.pretrained, hub.model)]
        {
            if let Some(folder) = folder {
                *folder = fetched(flag, folder, get)?;
            }
        }
        Ok(self)
    }
}

impl VisionFlags {
    /// The same with folders for what is an id of the hub.
    ///
    /// # Errors
    ///
    /// As [`fetched`].
    pub fn fetched(self, hub: Hub) -> Result<Self> {
        let model = self.model.map(|folder| fetched("--model", &folder, hub.model)).transpose()?;
        Ok(Self { train: self.train.fetched(hub)?, model })
    }
}

/// Flags of the experiments that train vision transformers, or measure one of somebody else's.
#[derive(Args, Clone, Debug)]
pub struct VisionFlags {
    /// What to train.
    #[command(flatten)]
    pub train: TrainFlags,
    /// Measure this ViT or DeiT folder of Hugging Face's; --data may be a folder of MNIST, or of PNG and JPEG files, too. Nothing is
    /// trained: flags that say how have no place beside it.
    #[arg(long, value_name = "DIR",
        conflicts_with_all = ["runs", "seed", "pretrained", "image_size", "train_limit", "epochs", "lr"])]
    pub model: Option<PathBuf>,
}

/// Training images of CIFAR-10 that the small recipe was made for.
const CIFAR10_IMAGES: usize = 30_000;

/// A model to train.
#[derive(Clone, Debug)]
pub struct Plan {
    /// What tables and figures call it.
    pub name: String,
    /// What tells its run from others with the same data, preset and seed.
    pub run: String,
    /// What it minimises.
    pub objective: Objective,
    /// Classifiers of the inner exits.
    pub heads: Heads,
    /// Blocks, where it is not as deep as the recipe's.
    pub layers: Option<usize>,
    /// Seed of everything random.
    pub seed: u64,
}

impl Plan {
    /// A model with one classifier, called after its objective.
    #[must_use]
    pub fn new(name: impl Into<String>, objective: Objective, seed: u64) -> Self {
        let name = name.into();
        Self {
            run: name.replace(", ", "-").replace(' ', "-"),
            name,
            objective,
            heads: Heads::Shared,
            layers: None,
            seed,
        }
    }

    /// The loss of the last layer.
    #[must_use]
    pub fn standard(seed: u64) -> Self {
        Self::new("standard", Objective::Standard, seed)
    }

    /// The paper's alternating objective.
    #[must_use]
    pub fn aligned(seed: u64) -> Self {
        Self::new("aligned", Objective::default(), seed)
    }

    /// The paper's baseline: alternating, with a classifier for each exit.
    #[must_use]
    pub fn multi_exit(seed: u64) -> Self {
        Self { heads: Heads::PerLayer, ..Self::new("multi-exit", Objective::default(), seed) }
    }
}

/// What the layers of one model say of the held-out images.
#[derive(Debug)]
pub struct Subject {
    /// What tables and figures call it.
    pub name: String,
    /// The model, as it is served.
    pub model: Vit,
    /// Scores of its exits while it was trained; none for a model that was loaded.
    pub evaluations: Vec<Evaluation>,
    /// Seconds that its training steps took, those of earlier pieces included; none for a model that was loaded.
    pub train_seconds: Option<f64>,
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
        let mut results = ModelResults::of(self.scores.as_ref());
        if let Some(seconds) = self.train_seconds {
            results.more.insert("train_s".into(), json!(seconds));
        }
        results
    }
}

/// Models and images of one experiment.
#[derive(Debug)]
pub struct Vision<'a> {
    flags: &'a TrainFlags,
    model: Option<&'a Path>,
    device: Device,
    stop: &'static AtomicBool,
    origin: Origin,
}

#[derive(Debug)]
enum Origin {
    Train { data: Box<Images>, start: Start, config: Box<TrainConfig> },
    Load { name: String, model: Box<Vit>, input: Input },
}

/// Where training starts.
#[derive(Debug)]
enum Start {
    Random(Box<VitConfig>),
    Pretrained { name: String, folder: PathBuf, image_size: usize, layers: usize },
}

impl<'a> Vision<'a> {
    /// Reads the images, and the model of `--model`.
    ///
    /// # Errors
    ///
    /// When there is no `--data` where it is needed, or it is not what it should be.
    pub fn open(flags: &'a VisionFlags, device: &Device) -> Result<Self> {
        let VisionFlags { train, model } = flags;
        let Some(model) = model else { return Self::training(train, device) };
        let preset = train.common.preset;
        let expected = "a folder of images, or of CIFAR-10 or MNIST";
        let folder = folder_or_digits(train.data.as_deref(), preset, expected)?;
        let name = model_names(&[model])?.concat();
        let (vit, _) = load_vit(model, device)?;
        let input = Input::open(folder, train.limit.of_checkpoint(preset), model, vit.config())?;
        let origin = Origin::Load { name, model: vit.into(), input };
        Ok(Self {
            flags: train,
            model: Some(model),
            device: device.clone(),
            stop: interrupt::stop_flag()?,
            origin,
        })
    }

    /// Reads the images to train on: CIFAR-10, or the embedded digits.
    ///
    /// # Errors
    ///
    /// As [`open`](Self::open).
    pub fn training(flags: &'a TrainFlags, device: &Device) -> Result<Self> {
        let preset = flags.common.preset;
        let expected = "a folder of CIFAR-10 (parquet or binary files)";
        let (data, vit) = match folder_or_digits(flags.data.as_deref(), preset, expected)? {
            None => (embedded_digits(240, device)?, digits_vit()),
            Some(folder) => {
                let limit = if preset == Preset::Smoke { 240 } else { usize::MAX };
                (cifar10_of(folder, limit, device)?, cifar10_vit(preset))
            }
        };
        Self::on(flags, data, vit, cifar10_recipe(preset), device)
    }

    /// An experiment on these images with models of this shape, trained like that; or with those of `--pretrained`.
    ///
    /// # Errors
    ///
    /// When the folder of `--pretrained` is not one, or its patches do not divide `--image-size`.
    pub fn on(
        flags: &'a TrainFlags,
        mut data: Images,
        mut vit: VitConfig,
        mut config: TrainConfig,
        device: &Device,
    ) -> Result<Self> {
        let preset = flags.common.preset;
        if let Some(limit) = flags.train_limit {
            data = data.train_limited(limit.get())?;
        }
        vit.id2label = data.classes().iter().cloned().enumerate().collect();
        let mut start = Start::Random(vit.into());
        if let Some(folder) = &flags.pretrained {
            config = fine_tuning_recipe(preset);
            let made = VitConfig::from_hf(folder)?;
            let image_size =
                flags.image_size.map_or_else(|| fine_tuned_size(preset, &made), NonZeroUsize::get);
            VitConfig { image_size, ..made.clone() }
                .validate()
                .with_context(|| format!("--image-size {image_size}, for {}", folder.display()))?;
            data = data.prepared_by(preprocess_of(folder, &made)?.resized(image_size));
            start = Start::Pretrained {
                name: model_names(&[folder])?.concat(),
                folder: folder.clone(),
                image_size,
                layers: made.num_hidden_layers,
            };
        }
        flags.recipe.apply(&mut config);
        let (train, held_out) = (data.train_len(), data.test_len());
        progress::line(&format!("{}: {train} images to train on, {held_out} held out", data.name));
        let origin = Origin::Train { data: data.into(), start, config: config.into() };
        Ok(Self { flags, model: None, device: device.clone(), stop: interrupt::stop_flag()?, origin })
    }

    /// An experiment on another data set, whose images may be larger than CIFAR-10's: as many patches and, where there are fewer
    /// images, more epochs, so that it trains for at least as many steps as on 30,000 images.
    ///
    /// # Errors
    ///
    /// As [`on`](Self::on).
    pub fn on_other(flags: &'a TrainFlags, data: Images, device: &Device) -> Result<Self> {
        let preset = flags.common.preset;
        let (small, Shape { height, width, .. }) = (cifar10_vit(preset), data.train_set().shape());
        ensure!(
            height == width && height % small.image_size == 0,
            "{}: {width}x{height} pixels; expected squares, of a multiple of {} pixels",
            data.name,
            small.image_size
        );
        let times = height / small.image_size;
        let vit = VitConfig {
            image_size: height,
            patch_size: times * small.patch_size,
            num_labels: data.classes().len(),
            ..small
        };
        let mut config = cifar10_recipe(preset);
        if preset != Preset::Smoke {
            let images = flags.train_limit.map_or(usize::MAX, NonZeroUsize::get).min(data.train_len());
            config.epochs *= CIFAR10_IMAGES.div_ceil(images.max(1));
        }
        Self::on(flags, data, vit, config, device)
    }

    /// Blocks of the models that are trained, unless a plan says otherwise, or of the model of `--model`.
    #[must_use]
    pub fn depth(&self) -> usize {
        match &self.origin {
            Origin::Train { start: Start::Random(vit), .. } => vit.num_hidden_layers,
            Origin::Train { start: Start::Pretrained { layers, .. }, .. } => *layers,
            Origin::Load { model, .. } => model.config().num_hidden_layers,
        }
    }

    /// The trained model of a plan, not packed, as it is cut and saved; with `--model`, that one.
    ///
    /// # Errors
    ///
    /// When it was not trained before.
    pub fn whole(&self, plan: &Plan) -> Result<Vit> {
        match &self.origin {
            Origin::Train { .. } => Ok(Vit::load(&self.folder_of(plan), &self.device)?.frozen()),
            Origin::Load { model, .. } => Ok((**model).clone()),
        }
    }

    /// What `results.json` says of the setting.
    #[must_use]
    pub fn settings(&self) -> Value {
        let (preset, samples) = (self.flags.common.preset, self.samples());
        let data = &self.flags.data;
        match &self.origin {
            Origin::Train { data: images, start, config } => {
                let mut settings = json!({ "preset": preset, "data": data, "images": images.name,
                    "train_samples": images.train_len(), "test_samples": samples, "augment": images.augment, "train": recipe_settings(config), "precision": self.flags.recipe.precision });
                match start {
                    Start::Random(vit) => settings["vit"] = json!(vit),
                    Start::Pretrained { folder, image_size, .. } => {
                        settings["pretrained"] = json!(folder);
                        settings["image_size"] = json!(image_size);
                        settings["preprocess"] = json!(images.preprocess());
                    }
                }
                settings
            }
            Origin::Load { model, input, .. } => {
                json!({ "preset": preset, "data": data, "model": self.model,
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

    /// How images are prepared for the models.
    #[must_use]
    pub fn preprocess(&self) -> &Preprocess {
        match &self.origin {
            Origin::Train { data, .. } => data.preprocess(),
            Origin::Load { input, .. } => input.preprocess(),
        }
    }

    /// The images to train on; none with `--model`.
    #[must_use]
    pub fn images(&self) -> Option<&Images> {
        match &self.origin {
            Origin::Train { data, .. } => Some(data),
            Origin::Load { .. } => None,
        }
    }

    /// The images measured, as models take them.
    #[must_use]
    pub fn source(&self) -> &dyn Source {
        match &self.origin {
            Origin::Train { data, .. } => &**data,
            Origin::Load { input, .. } => input,
        }
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
        self.study(&[Plan::standard(seed), Plan::aligned(seed)])
    }

    /// Trains or finds the `wanted` models and measures each; with `--model`, that one instead.
    ///
    /// # Errors
    ///
    /// As [`trained`] and [`features`].
    pub fn study(&self, wanted: &[Plan]) -> Result<Vec<Subject>> {
        match &self.origin {
            Origin::Load { name, model, .. } => Ok(vec![self.measure(name, model, None)?]),
            Origin::Train { data, start, config } => {
                let subject = |plan: &Plan| {
                    let (model, trained) = self.train(plan, data, start, config)?;
                    self.measure(&plan.name, &model.packed()?, Some(trained))
                };
                // What cannot be trained is said before anything is.
                for plan in wanted {
                    plan.objective.exits(plan.layers.unwrap_or_else(|| self.depth()))?;
                }
                wanted.iter().map(subject).collect()
            }
        }
    }

    /// Where the model of a plan is, as a Hugging Face folder, once it is trained.
    #[must_use]
    pub fn folder_of(&self, plan: &Plan) -> PathBuf {
        self.flags.runs.runs.join("models").join(self.run_name(plan))
    }

    fn train(
        &self,
        plan: &Plan,
        data: &Images,
        start: &Start,
        config: &TrainConfig,
    ) -> Result<(Vit, Trained)> {
        let config = TrainConfig { objective: plan.objective.clone(), seed: plan.seed, ..config.clone() };
        let model = self.untrained(plan, start, data.classes())?;
        let run = self.flags.runs.runs.join(self.run_name(plan));
        let label = format!("{}, seed {}", plan.name, plan.seed);
        let computes = self.flags.recipe.computes(&model)?;
        let trained = trained(&label, computes.as_ref().unwrap_or(&model), data, &config, &run, self.stop)?;
        // For other programs, and for `--model`.
        let folder = self.folder_of(plan);
        trained.keep(&folder, "preprocessor_config.json", || save(&model, data.preprocess(), &folder))?;
        Ok((model, trained))
    }

    fn untrained(&self, plan: &Plan, start: &Start, classes: &[String]) -> Result<Vit> {
        match start {
            Start::Random(vit) => {
                let layers = plan.layers.unwrap_or(vit.num_hidden_layers);
                let vit = VitConfig { heads: plan.heads, num_hidden_layers: layers, ..(**vit).clone() };
                Ok(Vit::new(vit, &mut init::rng(plan.seed), &self.device)?)
            }
            Start::Pretrained { folder, image_size, .. } => {
                let head = Head::Fresh { labels: classes.len(), seed: plan.seed };
                let options = LoadOptions { head, heads: Some(plan.heads), ..Default::default() };
                let model = Vit::load_with(folder, &options, &self.device)?.model;
                let model = model.resized(*image_size)?.with_labels(classes.iter().cloned())?;
                Ok(match plan.layers {
                    Some(layers) => model.cut(layers)?,
                    None => model,
                })
            }
        }
    }

    fn run_name(&self, plan: &Plan) -> String {
        let preset = self.flags.common.preset.name();
        let (data, start) = match &self.origin {
            Origin::Train { data, start: Start::Random(_), .. } => (&*data.name, String::new()),
            Origin::Train { data, start: Start::Pretrained { name, image_size, .. }, .. } => {
                (&*data.name, format!("-{}-{image_size}px", name.replace(['/', '\\'], "-")))
            }
            Origin::Load { name, .. } => ("", name.clone()),
        };
        let TrainFlags { train_limit, recipe, .. } = self.flags;
        let limit = in_name("first", *train_limit);
        let recipe = recipe.in_name();
        format!("{data}{limit}{start}-{}-{preset}{recipe}-seed{}", plan.run, plan.seed)
    }

    fn measure(&self, name: &str, model: &Vit, trained: Option<Trained>) -> Result<Subject> {
        let (features, scores) = self.layers_of(model, self.source(), self.samples())?;
        let (scores, answers) = scores.unzip();
        let (name, model) = (name.to_owned(), model.clone());
        let (evaluations, train_seconds) = trained.map(|t| (t.evaluations, t.seconds)).unzip();
        let evaluations = evaluations.unwrap_or_default();
        Ok(Subject {
            name,
            model,
            evaluations,
            train_seconds,
            features,
            scores,
            answers: answers.unwrap_or_default(),
        })
    }

    /// Features of layers `1..=L` of the images of a set, as they are, and their labels: what probes are fitted and scored on.
    ///
    /// # Errors
    ///
    /// As [`features`].
    pub fn layers_of_set(&self, model: &Vit, set: ImageSet) -> Result<(Vec<Tensor>, Vec<usize>)> {
        let labels = indices(set.labels());
        let source = Input::of_set(set, self.preprocess().clone(), model.config());
        let (mut features, _) = self.layers_of(model, &source, source.samples())?;
        Ok((features.split_off(1), labels))
    }

    /// Features of layers `0..=L` of the first `samples` of `from`, and the scores and answers of the exits where there are labels.
    ///
    /// # Errors
    ///
    /// As [`features`] and [`scores`].
    pub fn layers_of(&self, model: &Vit, from: &dyn Source, samples: usize) -> Result<LayersOf> {
        // Small images in large batches; those of a checkpoint need more memory each.
        let at_once = if model.config().tokens() > 100 { 16 } else { 100 };
        let features = features(model, from, (samples, at_once), &self.device, self.stop)?;
        let scores = scores((model, model.config().num_labels), &features, from)?;
        Ok((features, scores))
    }
}

/// Features of layers, and the exits' scores and answers.
pub type LayersOf = (Vec<Tensor>, Option<(LayerScores, Vec<Vec<u32>>)>);
