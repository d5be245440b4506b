//! Language modelling as an experiment: which text, which GPT-2, how it is trained, what each of its layers is worth, and what it says.

use std::{
    ops::ControlFlow,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
};

use anyhow::{Context, Result, ensure};
use candle_core::{D, Device, Tensor};
use clap::Args;
use layerwise_data::{ByteBpe, TokenBlocks, metrics::diversity, text_file};
use layerwise_exit::{
    Decoding, FixedDepth, Gate, GenerationConfig, LayerScores, evaluate, generate, histogram,
};
use layerwise_models::{Batch, Gpt2, Gpt2Config, Pass, Tapped, tap};
use layerwise_ops::init::{self, ChaCha8Rng};
use layerwise_similarity::{Centring, Measure, saturation};
use layerwise_train::{AdamWConfig, Objective, Samples, Schedule, TrainConfig};
use ndarray::Array2;
use serde::Serialize;
use serde_json::{Value, json};

use crate::{
    CommonFlags, Preset, Progress,
    checkpoint::model_names,
    flags::{RecipeFlags, RunsFlag},
    progress,
    run::Interrupted,
    sentences::Sentences,
    similarity::to_last,
    training::{Data, HeldOutBatches, trained},
    vision::Plan,
};

/// Flags of the experiments that train a GPT-2.
#[derive(Args, Clone, Debug)]
pub struct LanguageFlags {
    /// The flags of every example.
    #[command(flatten)]
    pub common: CommonFlags,
    /// Text to train on: files, plain or .gz, read one after the other.
    #[arg(long, value_name = "FILES", value_delimiter = ',', required = true)]
    pub train: Vec<PathBuf>,
    /// Text held out: a file, plain or .gz.
    #[arg(long, value_name = "FILE")]
    pub test: PathBuf,
    /// Folder of a GPT-2 to fine-tune, with its tokenizer [default: a new one, and a tokenizer that learns from the text to train on].
    #[arg(long, value_name = "DIR")]
    pub model: Option<PathBuf>,
    /// Folder of a BERT that tells how alike two texts are, for coherence [default: no coherence].
    #[arg(long, value_name = "DIR")]
    pub encoder: Option<PathBuf>,
    /// Where trained models are.
    #[command(flatten)]
    pub runs: RunsFlag,
    /// How long and how fast they are trained.
    #[command(flatten)]
    pub recipe: RecipeFlags,
}

/// A GPT-2 that is trained from random weights, for a tokenizer of so many pieces.
#[must_use]
pub fn language_model(preset: Preset, vocab_size: usize) -> Gpt2Config {
    let (n_layer, n_embd, n_head, n_positions) = match preset {
        Preset::Smoke => (3, 48, 3, 64),
        Preset::Small => (8, 256, 4, 256),
        Preset::Paper => (12, 768, 12, 1024),
    };
    // A corpus that is read a few times is not learned by heart.
    let dropout = if preset == Preset::Paper { 0.1 } else { 0. };
    Gpt2Config {
        vocab_size,
        n_positions,
        n_embd,
        n_layer,
        n_head,
        resid_pdrop: dropout,
        embd_pdrop: dropout,
        attn_pdrop: dropout,
        ..Default::default()
    }
}

/// Pieces of a tokenizer that learns from the text to train on.
fn vocabulary(preset: Preset) -> usize {
    match preset {
        Preset::Smoke => 400,
        Preset::Small => 4096,
        Preset::Paper => 50_257,
    }
}

/// How a GPT-2 is trained; the objective is the caller's. `new`: from random weights.
#[must_use]
pub fn language_recipe(preset: Preset, new: bool) -> TrainConfig {
    // What is pretrained has to be changed a little only.
    let (epochs, of_new, of_pretrained) = match preset {
        Preset::Smoke => (1, 1e-3, 1e-4),
        Preset::Small => (3, 1e-3, 1e-4),
        Preset::Paper => (1, 6e-4, 2e-5),
    };
    TrainConfig {
        epochs,
        batch_size: 8,
        optimiser: AdamWConfig {
            lr: if new { of_new } else { of_pretrained },
            weight_decay: 0.1,
            ..Default::default()
        },
        schedule: Schedule::WarmupCosine { warmup: 0.05, floor: 0.1 },
        clip_norm: Some(1.),
        checkpoint_every: 100,
        ..Default::default()
    }
}

/// Tokens of a sample: the paper's.
const TOKENS: usize = 256;
/// Blocks that a smoke run takes of each text.
const SMOKE: usize = 48;
/// Blocks that COS, saturation and agreement are measured on.
const LOOK: usize = 16;
/// Logits of so many tokens are in memory at a time.
const AT_ONCE: usize = 256;
/// Blocks that are scored together.
const SCORED: usize = 4;

/// Text that a model continues: the first tokens of blocks held out, and so many behind them.
const PROMPTS: usize = 32;
const PROMPT: usize = 32;
const CONTINUATION: usize = 96;

/// A corpus and the model that learns from it.
#[derive(Debug)]
pub struct Language<'a> {
    flags: &'a LanguageFlags,
    bpe: ByteBpe,
    config: Gpt2Config,
    /// What is fine-tuned.
    base: Option<Gpt2>,
    corpus: Corpus,
    sentences: Option<Sentences>,
    device: Device,
    stop: &'static AtomicBool,
}

/// Blocks to train on, and blocks held out.
#[derive(Debug)]
struct Corpus {
    name: String,
    train: TokenBlocks,
    held_out: TokenBlocks,
    device: Device,
}

/// What the layers `1..=L` of a language model are worth.
#[derive(Clone, Debug, Serialize)]
pub struct LayersOfLanguage {
    /// What tables and figures call it.
    pub name: String,
    /// What it minimised.
    pub objective: Objective,
    /// Share of tokens held out that are told rightly.
    pub accuracy: Vec<f64>,
    /// Mean cross-entropy of them, nats.
    pub loss: Vec<f64>,
    /// Its exponential.
    pub perplexity: Vec<f64>,
    /// Share of tokens whose likeliest successor is the last layer's.
    pub agreement: Vec<f64>,
    /// Tokens whose likeliest successor is the last layer's from this layer on, and not before.
    pub saturation: Vec<usize>,
    /// Sample-wise cosine to the last layer, mean over tokens.
    pub cos_to_last: Vec<f64>,
    /// What it says.
    pub said: Said,
    /// Seconds that its training steps took.
    pub train_s: f64,
}

/// Continuations of text held out by nucleus sampling, everything by the exit after each layer.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Said {
    /// Cosine of prompt and continuation as a sentence encoder sees them, mean over prompts; none without an encoder.
    pub coherence: Option<Vec<f64>>,
    /// Of the n-grams of a continuation, mean over prompts.
    pub diversity: Vec<f64>,
    /// The first prompt.
    pub prompt: String,
    /// How each layer goes on.
    pub continuations: Vec<String>,
}

impl<'a> Language<'a> {
    /// Reads and encodes the text; learns a tokenizer from it where there is no model to fine-tune.
    ///
    /// # Errors
    ///
    /// When a file is not there or is no text, is shorter than a block, or the tokenizer is not the model's.
    pub fn open(flags: &'a LanguageFlags, device: &Device, stop: &'static AtomicBool) -> Result<Self> {
        let preset = flags.common.preset;
        let texts = flags.train.iter().map(|path| text_file(path)).collect::<Result<Vec<_>, _>>()?;
        let (bpe, config, base) = match &flags.model {
            Some(folder) => {
                let (model, bpe) = open_language_model(folder, device)?;
                (bpe, model.config().clone(), Some(model))
            }
            None => {
                let bpe = ByteBpe::train(
                    texts.iter().flat_map(|text| text.split_inclusive('\n')),
                    vocabulary(preset),
                )?;
                let config = Gpt2Config {
                    eos_token_id: bpe.end_of_text(),
                    ..language_model(preset, bpe.vocabulary())
                };
                (bpe, config, None)
            }
        };
        let tokens = TOKENS.min(config.n_positions);
        // One to go on with, and one behind it.
        ensure!(tokens > 1, "--model: a model of {tokens} position, expected 2 at least");
        let blocks = |ids: Vec<u32>| {
            let most = if preset == Preset::Smoke { SMOKE * tokens + 1 } else { usize::MAX };
            let ids = ids.into_iter().take(most).collect();
            TokenBlocks::new(ids, tokens)
        };
        let mut ids = Vec::new();
        for text in &texts {
            ids.extend(bpe.ids(text)?);
            ids.extend(bpe.end_of_text());
        }
        let names = |paths: &[PathBuf]| {
            paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
        };
        let train = blocks(ids).with_context(|| names(&flags.train))?;
        let held_out = text_file(&flags.test)?;
        let held_out = blocks(bpe.ids(&held_out)?).with_context(|| flags.test.display().to_string())?;
        progress::line(&format!(
            "{} tokens to train on, {} held out, in blocks of {tokens}; a vocabulary of {}",
            train.len() * tokens,
            held_out.len() * tokens,
            bpe.vocabulary()
        ));
        let sentences = flags.encoder.as_deref().map(|folder| Sentences::open(folder, device)).transpose()?;
        let file = flags.train[0].file_name().unwrap_or_default().to_string_lossy();
        let name = file.trim_end_matches(".gz").trim_end_matches(".txt").replace('.', "-");
        let corpus = Corpus { name, train, held_out, device: device.clone() };
        Ok(Self { flags, bpe, config, base, corpus, sentences, device: device.clone(), stop })
    }

    /// How models are trained, but for the objective.
    #[must_use]
    pub fn recipe(flags: &LanguageFlags) -> TrainConfig {
        let mut config = language_recipe(flags.common.preset, flags.model.is_none());
        flags.recipe.apply(&mut config);
        config
    }

    /// What `results.json` says of text and model.
    ///
    /// # Errors
    ///
    /// When the configuration cannot be written down.
    pub fn settings(&self) -> Result<Value> {
        let Corpus { train, held_out, .. } = &self.corpus;
        let tokens = train.tokens();
        Ok(
            json!({ "train_tokens": train.len() * tokens, "held_out_tokens": held_out.len() * tokens, "tokens": tokens,
            "model": serde_json::to_value(&self.config)? }),
        )
    }

    /// Trains a model as planned, or goes on where that stands, and measures every layer on the text held out.
    ///
    /// # Errors
    ///
    /// As [`trained`], and what measuring reports.
    pub fn measured(&self, plan: &Plan) -> Result<LayersOfLanguage> {
        let model = match &self.base {
            Some(model) => model.copied()?,
            None => Gpt2::new(self.config.clone(), &mut init::rng(plan.seed), &self.device)?,
        };
        let config =
            TrainConfig { objective: plan.objective.clone(), seed: plan.seed, ..Self::recipe(self.flags) };
        let name = self.run_name(plan)?;
        let label = format!("{}, seed {}", plan.name, plan.seed);
        let runs = &self.flags.runs.runs;
        let computes = self.flags.recipe.computes(&model)?;
        let learner = computes.as_ref().unwrap_or(&model);
        let trained = trained(&label, learner, &self.corpus, &config, &runs.join(&name), self.stop)?;
        // For other programs, and for `generate`.
        let folder = runs.join("models").join(&name);
        trained.keep(&folder, "tokenizer.json", || {
            model.save(&folder)?;
            Ok(self.bpe.save(&folder)?)
        })?;
        self.measure(plan, &model.packed()?, trained.seconds)
    }

    fn run_name(&self, plan: &Plan) -> Result<String> {
        let LanguageFlags { recipe, common, model, .. } = self.flags;
        let model = match model {
            Some(folder) => model_names(&[folder])?.concat().replace(['/', '\\'], "-"),
            None => "gpt2".to_owned(),
        };
        let recipe = recipe.in_name();
        let (corpus, preset) = (&self.corpus.name, common.preset.name());
        Ok(format!("{corpus}-{model}-{}-{preset}{recipe}-seed{}", plan.run, plan.seed))
    }

    fn measure(&self, plan: &Plan, model: &Gpt2, train_s: f64) -> Result<LayersOfLanguage> {
        let scores = self.scores(plan, model)?;
        let (features, answers) = look(model, &self.corpus.held_out, &self.device)?;
        let depth = model.depth();
        let tokens = answers[0].len();
        let agreement = answers.iter().map(|layer| {
            let same = layer.iter().zip(&answers[depth - 1]).filter(|(a, b)| a == b).count();
            same as f64 / tokens as f64
        });
        let predictions =
            Array2::from_shape_fn((depth, tokens), |(layer, token)| answers[layer][token] as usize);
        let saturated: Vec<usize> = saturation(predictions.view())?.iter().map(|layer| layer + 1).collect();
        Ok(LayersOfLanguage {
            name: plan.name.clone(),
            objective: plan.objective.clone(),
            perplexity: scores.loss.iter().map(|loss| loss.exp()).collect(),
            accuracy: scores.accuracy,
            loss: scores.loss,
            agreement: agreement.collect(),
            saturation: histogram(&saturated, depth),
            cos_to_last: to_last(&features, Measure::Cos(Centring::Samples))?,
            said: self.said(model, plan.seed)?,
            train_s,
        })
    }

    fn go_on(&self) -> Result<()> {
        let stopped = "stopped; what is trained is saved, and the same command goes on from there";
        if self.stop.load(Ordering::Relaxed) { Err(Interrupted(stopped).into()) } else { Ok(()) }
    }

    /// Of all blocks held out.
    fn scores(&self, plan: &Plan, model: &Gpt2) -> Result<LayerScores> {
        let held_out = &self.corpus.held_out;
        let all: Vec<usize> = (0..held_out.len()).collect();
        let label = format!("measuring {}, seed {}", plan.name, plan.seed);
        let mut progress = Progress::new(&label, all.len() as u64);
        let batches = all.chunks(SCORED).take_while(|_| !self.stop.load(Ordering::Relaxed)).map(|blocks| {
            let (inputs, next) = held_out.batch(blocks, &self.device).map_err(candle_core::Error::wrap)?;
            progress.set(blocks[0] as u64, "");
            Ok((Batch::from(inputs), next))
        });
        let scores = evaluate(model, batches);
        // What stopped is no error of the scores.
        self.go_on()?;
        let scores = scores?;
        progress.finish(&format!("{} blocks", all.len()));
        Ok(scores)
    }

    /// Continues the beginnings of blocks held out with every layer.
    fn said(&self, model: &Gpt2, seed: u64) -> Result<Said> {
        let held_out = &self.corpus.held_out;
        let (tokens, ids) = (held_out.tokens(), held_out.ids());
        let (count, prompt) = (held_out.len().min(PROMPTS), PROMPT.min(tokens / 2));
        let starts = spread(held_out, count).map(|block| block * tokens);
        let prompts: Vec<Vec<u32>> = starts.map(|start| ids[start..start + prompt].to_vec()).collect();
        let mut said = Said { prompt: self.bpe.text(&prompts[0])?, ..Default::default() };
        let (mut coherence, before) = (Vec::new(), self.texts(&prompts)?);
        let before = self.sentences.as_ref().map(|sentences| sentences.embed(&before)).transpose()?;
        for layer in 1..=model.depth() {
            self.go_on()?;
            let policy = FixedDepth(layer);
            let decoding = Decoding::Leave { policy: &policy, words: None };
            let config = GenerationConfig {
                max_new_tokens: CONTINUATION.min(tokens - prompt),
                seed,
                ..Default::default()
            };
            let (continuations, _) =
                generate(model, &prompts, decoding, &config, |_| ControlFlow::Continue(()))?;
            let continuations: Vec<Vec<u32>> = continuations.into_iter().map(|text| text.ids).collect();
            said.diversity.push(continuations.iter().map(|ids| diversity(ids)).sum::<f64>() / count as f64);
            let texts = self.texts(&continuations)?;
            if let (Some(sentences), Some(before)) = (&self.sentences, &before) {
                let after = sentences.embed(&texts)?;
                coherence.push(f64::from((before * after)?.sum(1)?.mean_all()?.to_scalar::<f32>()?));
            }
            said.continuations.extend(texts.into_iter().next());
        }
        said.coherence = (!coherence.is_empty()).then_some(coherence);
        Ok(said)
    }

    fn texts(&self, ids: &[Vec<u32>]) -> Result<Vec<String>> {
        Ok(ids.iter().map(|ids| self.bpe.text(ids)).collect::<Result<_, _>>()?)
    }
}

/// So many blocks from all over a text.
fn spread(text: &TokenBlocks, count: usize) -> impl Iterator<Item = usize> {
    let blocks = text.len();
    (0..count).map(move |i| i * blocks / count)
}

/// Features `(tokens, width)` and answers of layers `1..=L` on some blocks of a text.
fn look(model: &Gpt2, text: &TokenBlocks, device: &Device) -> Result<(Vec<Tensor>, Vec<Vec<u32>>)> {
    let blocks: Vec<usize> = spread(text, text.len().min(LOOK)).collect();
    let (inputs, _) = text.batch(&blocks, device)?;
    let (mut features, mut answers) = (Vec::new(), Vec::new());
    tap::for_each_layer(model, &inputs.into(), Pass::EVAL, |layer, hidden| {
        if layer == 0 {
            return Ok(());
        }
        let feature = model.feature(hidden)?;
        let mut said = Vec::new();
        for from in (0..feature.dim(0)?).step_by(AT_ONCE) {
            let rows = feature.narrow(0, from, AT_ONCE.min(feature.dim(0)? - from))?;
            said.extend(model.exit(layer, &rows, Pass::EVAL)?.argmax(D::Minus1)?.to_vec1::<u32>()?);
        }
        answers.push(said);
        features.push(feature);
        anyhow::Ok(())
    })?;
    Ok((features, answers))
}

impl Samples for Corpus {
    fn len(&self) -> usize {
        self.train.len()
    }

    fn batch(&self, indices: &[usize], _rng: &mut ChaCha8Rng) -> candle_core::Result<(Batch, Tensor)> {
        let (inputs, next) = self.train.batch(indices, &self.device).map_err(candle_core::Error::wrap)?;
        Ok((inputs.into(), next))
    }
}

impl Data for Corpus {
    fn identity(&self) -> Value {
        let mut hasher = crc32fast::Hasher::new();
        self.train.ids().iter().for_each(|id| hasher.update(&id.to_le_bytes()));
        let data = json!({ "name": self.name, "train": self.len(), "crc32": hasher.finalize() });
        json!({ "data": data, "tokens": self.train.tokens() })
    }

    fn held_out(&self) -> Option<HeldOutBatches<'_>> {
        None
    }
}

/// A gate that has learned from a text when the exit of a token says what the last one says.
///
/// # Errors
///
/// When all inner exits say so, or none; what the model reports.
pub fn gate(model: &Gpt2, text: &TokenBlocks, device: &Device) -> Result<Gate> {
    let (features, answers) = look(model, text, device)?;
    let inner = model.depth() - 1;
    let same = |layer: &Vec<u32>| layer.iter().zip(&answers[inner]).map(|(a, b)| a == b).collect();
    let right: Vec<Vec<bool>> = answers[..inner].iter().map(same).collect();
    Gate::fit(&features[..inner], &right).context("the gate")
}

/// A GPT-2 and its tokenizer, which must belong together.
///
/// # Errors
///
/// When one is missing or wrong, or they are of different models.
pub fn open_language_model(folder: &Path, device: &Device) -> Result<(Gpt2, ByteBpe)> {
    ensure!(folder.is_dir(), "{}: no folder of a model", folder.display());
    let bpe = ByteBpe::open(folder)?;
    let model = Gpt2::load(folder, device)?;
    bpe.check(model.config().vocab_size)?;
    // Rows that are no word are not to be said.
    let spare = model.config().vocab_size - bpe.vocabulary();
    if spare > 0 {
        progress::line(&format!(
            "{}: {spare} rows of the table are no word and are left out",
            folder.display()
        ));
    }
    Ok((model.with_vocabulary(bpe.vocabulary())?, bpe))
}
