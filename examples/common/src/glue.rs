//! The tasks of GLUE as experiments: which data, which BERT, how it is fine-tuned, and what each of its layers is worth.

use std::{
    collections::BTreeMap,
    num::NonZeroUsize,
    path::{Path, PathBuf},
    sync::atomic::AtomicBool,
};

use anyhow::{Result, ensure};
use candle_core::{Device, Tensor};
use clap::{Args, ValueEnum};
use layerwise_data::{
    Error as DataError, Targets, TextSet,
    glue::{Part, Task, file, load_file},
    metrics::Metric,
};
use layerwise_exit::{HeldOut, Signal};
use layerwise_models::{Bert, BertConfig, Head, LoadOptions, Pass, Pooling, Tapped, tap};
use layerwise_similarity::{Centring, Measure};
use layerwise_train::{AdamWConfig, Objective, Schedule, TrainConfig};
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::{
    CommonFlags, Preset,
    checkpoint::model_names,
    encoded::{EncodedTexts, TOKENS, encoder_cutting_at, first, keep_tokenizer, tokenizer_config},
    flags::{RecipeFlags, RunsFlag, in_name},
    layers::Source,
    progress,
    run::Interrupted,
    similarity::to_last,
    task_exits::{TaskExits, keep_exits, number_exits, task_exits},
    texts::Texts,
    training::trained,
    vision::Plan,
};

/// Flags of the experiments that fine-tune a BERT.
#[derive(Args, Clone, Debug)]
pub struct GlueFlags {
    /// The flags of every example.
    #[command(flatten)]
    pub common: CommonFlags,
    /// Folder of GLUE, with a folder of TSV files for each task, called as in the paper: MRPC, SST-2, STS-B and so on.
    #[arg(long, value_name = "DIR")]
    pub data: PathBuf,
    /// Folder of the BERT to fine-tune: config.json, model.safetensors, tokenizer.json.
    #[arg(long, value_name = "DIR")]
    pub model: PathBuf,
    /// The tokens that exits read: the first, as the paper's, or the mean of all, for encoders of sentences [default: what the model's folder says, or the first].
    #[arg(long, value_enum, value_name = "TOKENS")]
    pub pooling: Option<PoolingFlag>,
    /// Where trained models are.
    #[command(flatten)]
    pub runs: RunsFlag,
    /// How long and how fast they are trained.
    #[command(flatten)]
    pub recipe: RecipeFlags,
    /// Train on the first so many samples of a task only [default: all; with --preset small 10000, with smoke 64].
    #[arg(long, value_name = "N")]
    pub train_limit: Option<NonZeroUsize>,
    /// Most tokens of a sample; the longer text of a pair is cut first [default: 256, or as many as the model has positions for].
    #[arg(long, value_name = "N")]
    pub max_tokens: Option<NonZeroUsize>,
}

/// Names of [`Pooling`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PoolingFlag {
    /// The first token.
    Cls,
    /// The mean of all.
    Mean,
}

impl From<PoolingFlag> for Pooling {
    fn from(flag: PoolingFlag) -> Self {
        match flag {
            PoolingFlag::Cls => Self::Cls,
            PoolingFlag::Mean => Self::Mean,
        }
    }
}

/// How a BERT is fine-tuned; the objective is the caller's.
#[must_use]
pub fn glue_recipe(preset: Preset) -> TrainConfig {
    let (epochs, lr) = match preset {
        Preset::Smoke => (1, 5e-5),
        // Models of a third of BERT-base's width bear larger steps.
        Preset::Small => (3, 1e-4),
        Preset::Paper => (3, 2e-5),
    };
    TrainConfig {
        epochs,
        batch_size: 32,
        optimiser: AdamWConfig { lr, weight_decay: 0.01, ..Default::default() },
        schedule: Schedule::WarmupLinear { warmup: 0.1 },
        clip_norm: Some(1.),
        checkpoint_every: 100,
        ..Default::default()
    }
}

/// Samples that a smoke run takes of each part, and a small one to train on.
const SMOKE: usize = 64;
const SMALL: usize = 10_000;

/// A task and the checkpoint that is fine-tuned on it.
#[derive(Debug)]
pub struct Glue<'a> {
    flags: &'a GlueFlags,
    task: Task,
    model: String,
    data: Texts,
    /// MNLI's second development part and its file, where it is there.
    mismatched: Option<(EncodedTexts, String)>,
    config: &'a BertConfig,
    tokenizer_config: Map<String, Value>,
    files: [String; 2],
    device: Device,
    stop: &'static AtomicBool,
}

/// What the layers `1..=L` of a fine-tuned model are worth on a task.
#[derive(Clone, Debug, Serialize)]
pub struct Measured {
    /// What tables and figures call it.
    pub name: String,
    /// What it minimised.
    pub objective: Objective,
    /// The task's score after each layer, at most 1: the mean of its metrics.
    pub score: Vec<f64>,
    /// Each of them.
    pub metrics: BTreeMap<String, Vec<f64>>,
    /// Sample-wise cosine to the last layer, mean over samples.
    pub cos_to_last: Vec<f64>,
    /// What leaving early gives, by what a sample's certainty is read from.
    pub exits: Vec<TaskExits>,
    /// Seconds that its training steps took.
    pub train_s: f64,
}

impl Measured {
    /// The way to leave that is shown and kept: of a number by the gate, where there is one.
    #[must_use]
    pub fn exits_taken(&self) -> Option<&TaskExits> {
        self.exits.last()
    }
}

impl<'a> Glue<'a> {
    /// Reads and encodes a task's training and development parts. Where the folder lacks an official part, a labelled sample of it,
    /// `train-subset.tsv` or `dev-subset.tsv`, stands in.
    ///
    /// # Errors
    ///
    /// When they are not there or wrong, or the tokenizer is not the model's.
    pub fn open(
        flags: &'a GlueFlags,
        config: &'a BertConfig,
        task: Task,
        device: &Device,
        stop: &'static AtomicBool,
    ) -> Result<Self> {
        let folder = flags.data.join(task.name());
        let ((train, train_file), (held_out, held_out_file)) =
            (part(task, &folder, Part::Train)?, part(task, &folder, Part::Dev)?);
        let mismatched = mismatched(task, &folder)?;
        let parts = [(&train, &train_file), (&held_out, &held_out_file)];
        for (samples, file) in parts.into_iter().chain(mismatched.as_ref().map(|(set, file)| (set, file))) {
            let labelled = !matches!(samples.targets(), Targets::None);
            ensure!(
                labelled,
                "{}: no labels, expected a column with those of {}",
                file.display(),
                task.name()
            );
        }
        let name = |path: PathBuf| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let files = [train_file, held_out_file].map(name);
        let (most, most_held_out) = match flags.common.preset {
            Preset::Smoke => (SMOKE, SMOKE),
            Preset::Small => (SMALL, usize::MAX),
            Preset::Paper => (usize::MAX, usize::MAX),
        };
        let train = first(train, flags.train_limit.map_or(most, NonZeroUsize::get))?;
        let held_out = first(held_out, most_held_out)?;
        let default = TOKENS.min(config.max_position_embeddings);
        let max_tokens = flags.max_tokens.map_or(default, NonZeroUsize::get);
        let encoder = encoder_cutting_at(max_tokens, &flags.model, config)?;
        let tokenizer_config = tokenizer_config(&flags.model)?;
        let mismatched = match mismatched {
            Some((set, path)) => {
                let texts = EncodedTexts::new(encoder.clone(), &first(set, most_held_out)?)?;
                progress::line(&format!(
                    "{}: {} more held out ({})",
                    task.name(),
                    texts.samples(),
                    path.display()
                ));
                Some((texts, name(path)))
            }
            None => None,
        };
        let name = task.name().to_lowercase().replace('-', "");
        let data = Texts::new(&name, encoder, (&train, &held_out), device)?;
        progress::line(&format!(
            "{}: {} samples to train on ({}), {} held out ({}); {} longer than {max_tokens} tokens",
            task.name(),
            train.len(),
            files[0],
            held_out.len(),
            files[1],
            data.train.truncated() + data.held_out.truncated()
        ));
        Ok(Self {
            flags,
            task,
            model: model_names(&[&flags.model])?.concat(),
            data,
            mismatched,
            config,
            tokenizer_config,
            files,
            device: device.clone(),
            stop,
        })
    }

    /// How models are trained, but for the objective.
    #[must_use]
    pub fn recipe(flags: &GlueFlags) -> TrainConfig {
        let mut config = glue_recipe(flags.common.preset);
        flags.recipe.apply(&mut config);
        config
    }

    /// What `results.json` says of the task.
    #[must_use]
    pub fn settings(&self) -> Value {
        let Texts { train, held_out, .. } = &self.data;
        let mismatched = self.mismatched.as_ref().map(|(texts, file)| {
            json!({ "file": file, "samples": texts.samples(), "truncated": texts.truncated() })
        });
        json!({ "train_file": self.files[0], "held_out_file": self.files[1], "train_samples": train.samples(),
            "held_out_samples": held_out.samples(), "truncated": [train.truncated(), held_out.truncated()],
            "metrics": self.task.metrics(), "pooling": self.config.pooling, "mismatched": mismatched })
    }

    /// Fine-tunes the checkpoint as planned, or goes on where that stands, and measures every layer on the samples held out.
    ///
    /// # Errors
    ///
    /// As [`trained`], and what measuring reports.
    pub fn measured(&self, plan: &Plan) -> Result<Measured> {
        let classes = self.task.classes();
        let head = Head::Fresh { labels: classes.len().max(1), seed: plan.seed };
        let pooling = Some(self.config.pooling);
        let options = LoadOptions { head, heads: Some(plan.heads), pooling, ..Default::default() };
        let model = Bert::load_with(&self.flags.model, &options, &self.device)?.model;
        let model = model.with_labels(classes.iter().map(|name| (*name).to_owned()))?;
        let model = model.with_prior(&self.data.train.targets().prior())?;
        let config =
            TrainConfig { objective: plan.objective.clone(), seed: plan.seed, ..Self::recipe(self.flags) };
        let name = self.run_name(plan);
        let label = format!("{} {}, seed {}", self.task.name(), plan.name, plan.seed);
        let computes = self.flags.recipe.computes(&model)?;
        let learner = computes.as_ref().unwrap_or(&model);
        let trained =
            trained(&label, learner, &self.data, &config, &self.flags.runs.runs.join(&name), self.stop)?;
        // For other programs, and for `inspect` and `early_exit_server`.
        let folder = self.flags.runs.runs.join("models").join(&name);
        trained.keep(&folder, "tokenizer.json", || {
            model.save(&folder)?;
            keep_tokenizer(
                &self.flags.model,
                self.tokenizer_config.clone(),
                &folder,
                self.data.train.max_tokens(),
            )
        })?;
        let measured = self.measure(plan, &model.packed()?, trained.seconds)?;
        if classes.is_empty() {
            keep_exits(&folder, model.depth(), measured.exits_taken())?;
        }
        Ok(measured)
    }

    fn run_name(&self, plan: &Plan) -> String {
        let GlueFlags { train_limit, recipe, common, max_tokens, .. } = self.flags;
        let limit = in_name("first", *train_limit);
        let recipe = recipe.in_name();
        let model = self.model.replace(['/', '\\'], "-");
        let (task, preset) = (&self.data.name, common.preset.name());
        let tokens = in_name("tokens", *max_tokens);
        let pooling = if self.config.pooling == Pooling::Mean { "-mean" } else { "" };
        format!("{task}{limit}-{model}{pooling}{tokens}-{}-{preset}{recipe}-seed{}", plan.run, plan.seed)
    }

    fn measure(&self, plan: &Plan, model: &Bert, train_s: f64) -> Result<Measured> {
        let (features, logits) = self.layers_of(model, &self.data.held_out)?;
        let targets = self.data.held_out.targets();
        let mut metrics = BTreeMap::new();
        if let Some((texts, _)) = &self.mismatched {
            let (_, logits) = self.layers_of(model, texts)?;
            let scores = logits.iter().map(|logits| score(self.task, logits, texts.targets()));
            metrics.insert("accuracy, mismatched".to_owned(), scores.collect::<Result<_>>()?);
        }
        for metric in self.task.metrics() {
            let of = |logits| metric.score(logits, targets);
            metrics.insert(metric.name().to_owned(), logits.iter().map(of).collect::<Result<_, _>>()?);
        }
        Ok(Measured {
            name: plan.name.clone(),
            objective: plan.objective.clone(),
            score: logits.iter().map(|logits| score(self.task, logits, targets)).collect::<Result<_>>()?,
            metrics,
            cos_to_last: to_last(&features, Measure::Cos(Centring::Samples))?,
            exits: match targets {
                Targets::Numbers(numbers) => number_exits(self.task, model, (&features, &logits), numbers)?,
                _ => {
                    let held_out = HeldOut::from_logits(Signal::MaxProbability, &logits)?;
                    vec![task_exits(self.task, Signal::MaxProbability, &held_out, &logits, targets)?]
                }
            },
            train_s,
        })
    }

    /// Features and logits of layers `1..=L`, in the order of the texts.
    fn layers_of(&self, model: &Bert, texts: &EncodedTexts) -> Result<(Vec<Tensor>, Vec<Tensor>)> {
        let depth = model.depth();
        let (mut features, mut logits) = (vec![Vec::new(); depth], vec![Vec::new(); depth]);
        let mut order = Vec::new();
        let all: Vec<usize> = (0..texts.samples()).collect();
        for (batch, rows) in texts.by_length(&all, &self.device) {
            if self.stop.load(std::sync::atomic::Ordering::Relaxed) {
                return Err(Interrupted(
                    "stopped; what is trained is saved, and the same command goes on from there",
                )
                .into());
            }
            tap::for_each_layer(model, &batch?, Pass::EVAL, |layer, hidden| {
                if layer > 0 {
                    let feature = model.feature(hidden)?;
                    logits[layer - 1].push(model.exit(layer, &feature, Pass::EVAL)?);
                    features[layer - 1].push(feature);
                }
                anyhow::Ok(())
            })?;
            order.extend(rows);
        }
        let mut place = vec![0u32; order.len()];
        order.iter().enumerate().for_each(|(at, &text)| place[text] = at as u32);
        let place = Tensor::new(place, &self.device)?;
        let sorted = |layers: Vec<Vec<Tensor>>| {
            layers
                .iter()
                .map(|parts| Ok(Tensor::cat(parts, 0)?.index_select(&place, 0)?))
                .collect::<Result<_>>()
        };
        Ok((sorted(features)?, sorted(logits)?))
    }
}

/// The configuration of the BERT to fine-tune, with what exits read: as asked for, or as its folder says.
///
/// # Errors
///
/// As [`Bert::load_with`].
pub fn base_config(flags: &GlueFlags, device: &Device) -> Result<BertConfig> {
    let pooling = flags.pooling.map(Pooling::from);
    let options = LoadOptions { head: Head::None, pooling, ..Default::default() };
    Ok(Bert::load_with(&flags.model, &options, device)?.model.config().clone())
}

/// MNLI's second development part, where it is there; other tasks have none.
fn mismatched(task: Task, folder: &Path) -> Result<Option<(TextSet, PathBuf)>> {
    if task != Task::Mnli {
        return Ok(None);
    }
    match file(task, folder, Part::DevMismatched) {
        Err(DataError::NotFound { .. }) => Ok(None),
        _ => part(task, folder, Part::DevMismatched).map(Some),
    }
}

/// The mean of the task's metrics.
pub(crate) fn score(task: Task, logits: &Tensor, targets: &Targets) -> Result<f64> {
    let metrics: &[Metric] = task.metrics();
    let scores = metrics.iter().map(|metric| metric.score(logits, targets)).collect::<Result<Vec<_>, _>>()?;
    Ok(scores.iter().sum::<f64>() / scores.len() as f64)
}

/// The official part of a task, or, where the folder lacks one to train on or to develop with, the labelled sample of it, and its
/// file.
///
/// # Errors
///
/// When neither is there, or it is wrong.
pub fn part(task: Task, folder: &Path, part: Part) -> Result<(TextSet, PathBuf)> {
    let sample = match part {
        Part::Train => Some("train-subset.tsv"),
        Part::Dev => Some("dev-subset.tsv"),
        _ => None,
    };
    let path = file(task, folder, part).or_else(|missing| {
        let names = sample.into_iter().flat_map(|name| [name.to_owned(), format!("{name}.gz")]);
        names.map(|name| folder.join(name)).find(|path| path.is_file()).ok_or(missing)
    })?;
    Ok((load_file(task, &path)?, path))
}
