//! Hugging Face folders in and out.

use std::path::Path;

use candle_core::Device;
use layerwise_ops::init;
use serde::{Deserialize, Serialize, de::IgnoredAny};

use super::{Classifier, Fields, Kind, Transformer, no_classifier};
use crate::{
    Error, ExitNorm, Heads, Loaded, Pooling, Result,
    builder::{Builder, Fresh},
    checkpoint::Checkpoint,
    exits::{HEAD, head_name, is_head, is_pooler, norm_name},
    folder,
};

/// Where the classifier of a loaded model comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Head {
    /// The checkpoint, which must have it.
    #[default]
    Checkpoint,
    /// Random weights, for fine-tuning; the checkpoint's own classifier is left out. A pooler that the
    /// checkpoint lacks starts at random, too.
    Fresh {
        /// Number of classes; 1 for a number.
        labels: usize,
        /// Seed of the weights.
        seed: u64,
    },
    /// There is none: the model gives hidden states and features, and errors for logits.
    None,
}

/// How [`Transformer::load_with`] departs from what the folder says; the default does not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LoadOptions {
    /// Where the classifier comes from.
    pub head: Head,
    /// The norm before inner exits. Norms that become [`ExitNorm::PerLayer`] here start as copies of the final one.
    pub exit_norm: Option<ExitNorm>,
    /// The classifiers of inner exits. Those that become [`Heads::PerLayer`] here start as copies of the last one, or
    /// random under [`Head::Fresh`].
    pub heads: Option<Heads>,
    /// The tokens that the exits of a BERT read.
    pub pooling: Option<Pooling>,
}

/// What `layerwise.json` holds.
#[derive(Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct LayerwiseJson {
    exit_norm: ExitNorm,
    heads: Heads,
    #[serde(skip_serializing_if = "Option::is_none")]
    pooling: Option<Pooling>,
    /// When to leave early: written by others once the model is there, and gone when another model takes its place.
    #[serde(skip_serializing)]
    exits: Option<IgnoredAny>,
}

impl<K: Kind> Transformer<K> {
    /// The model of a Hugging Face folder: `config.json`, `model.safetensors` (or shards under an index), and
    /// `layerwise.json` if there is one.
    ///
    /// Takes Python's `ViTForImageClassification`, `DeiTForImageClassification`, `BertForSequenceClassification` and `GPT2LMHeadModel`; of models with
    /// another head or none, the rest under [`Head::Fresh`] and [`Head::None`]. Weights of 16 and 64 bits become f32.
    /// Tensors that the model has no use for are reported to `tracing`; [`load_with`](Self::load_with) returns their names.
    ///
    /// # Errors
    ///
    /// [`Error::Tensors`] lists every tensor that is missing (a classifier, for instance) or has the wrong shape;
    /// [`Error::InFile`] tells of a configuration that is invalid or of another kind; [`Error::Safetensors`],
    /// [`Error::Dtype`], [`Error::NotFinite`], [`Error::Json`] and [`Error::Io`] of damaged or absent files.
    pub fn load(folder: &Path, device: &Device) -> Result<Self> {
        Ok(Self::load_with(folder, &LoadOptions::default(), device)?.model)
    }

    /// As [`load`](Self::load), with another classifier or other exits than the folder's.
    ///
    /// # Errors
    ///
    /// As [`load`](Self::load); [`Error::Unsupported`] for an [`ExitNorm`] of a model whose blocks end in a norm, for a head of a model that has no
    /// classifier of its own, and for a [`Pooling`] of one that is no BERT.
    pub fn load_with(folder: &Path, options: &LoadOptions, device: &Device) -> Result<Loaded<Self>> {
        let saved: LayerwiseJson = folder::read_layerwise(folder)?;
        let mut checkpoint = Checkpoint::open(folder, K::read)?;
        let mut config = K::from_hf(folder, &checkpoint)?;
        let Fields { depth, exit_norm, pooling, classifier } = config.fields();
        let depth = *depth;
        let wanted = options.exit_norm.unwrap_or(saved.exit_norm);
        match exit_norm {
            Some(exit_norm) => *exit_norm = wanted,
            None if options.exit_norm.is_some() => {
                let what = format!("exit_norm {wanted:?}");
                return Err(Error::Unsupported {
                    what,
                    expected: "none: each block of this model ends in a norm",
                });
            }
            None => {}
        }
        if let (Some(last), ExitNorm::PerLayer, true) =
            (K::FINAL_NORM, wanted, saved.exit_norm != ExitNorm::PerLayer)
        {
            start_alike(&mut checkpoint, depth, norm_name, last);
        }
        match (pooling, options.pooling.or(saved.pooling)) {
            (Some(pooling), Some(wanted)) => *pooling = wanted,
            (None, Some(wanted)) => {
                return Err(Error::Unsupported {
                    what: format!("pooling {wanted:?}"),
                    expected: "none: this model always reads the same tokens",
                });
            }
            (_, None) => {}
        }
        let mut fresh = None::<Fresh>;
        match classifier {
            Some(Classifier { labels, names, heads }) => {
                *heads = options.heads.unwrap_or(saved.heads);
                if *heads == Heads::PerLayer && saved.heads != Heads::PerLayer {
                    start_alike(&mut checkpoint, depth, head_name, HEAD);
                }
                let mut relabel = |to| {
                    *labels = to;
                    names.clear();
                };
                match options.head {
                    Head::Checkpoint => {}
                    Head::Fresh { labels, seed } => {
                        relabel(labels);
                        fresh = Some(Fresh { wanted: is_head, if_missing: is_pooler, rng: init::rng(seed) });
                    }
                    Head::None => relabel(0),
                }
            }
            None if options.head != Head::Checkpoint || options.heads.is_some() => {
                return Err(no_classifier(&format!("{:?}, heads {:?}", options.head, options.heads)));
            }
            None => {}
        }
        let built = Self::build(config, Builder::file(&checkpoint, fresh.as_mut(), device));
        let (model, built) = built.map_err(|error| match error {
            Error::Tensors { path, missing, shapes, unexpected } => {
                let mut missing: Vec<String> = missing.iter().map(|name| K::filed(name)).collect();
                missing.dedup();
                Error::Tensors { path, missing, shapes, unexpected }
            }
            error => error,
        })?;
        let loaded = Loaded { model, unexpected: built.unexpected, fresh: built.fresh };
        if !loaded.unexpected.is_empty() {
            tracing::warn!(file = %checkpoint.path().display(), tensors = ?loaded.unexpected, "unused tensors");
        }
        Ok(loaded)
    }

    /// Writes a Hugging Face folder that [`load`](Self::load) and Python's `transformers` read: `config.json`,
    /// `model.safetensors`, and `layerwise.json` for the exits.
    ///
    /// A BERT of [`Pooling::Mean`] has other logits in Python, whose `BertForSequenceClassification` reads the first token; a warning of `tracing` says so.
    ///
    /// Equal models give equal bytes. Each file is written under a temporary name, synced and renamed.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] when the folder cannot be written.
    pub fn save(&self, folder: &Path) -> Result<()> {
        let mut config = self.config.clone();
        let Fields { exit_norm, pooling, classifier, .. } = config.fields();
        let exit_norm = exit_norm.map_or_else(ExitNorm::default, |norm| *norm);
        let heads = classifier.map_or_else(Heads::default, |classifier| *classifier.heads);
        let pooling = pooling.map(|pooling| *pooling);
        if pooling == Some(Pooling::Mean) {
            tracing::warn!(folder = %folder.display(), "exits read the mean of all tokens; Python's transformers read the first");
        }
        let layerwise = LayerwiseJson { exit_norm, heads, pooling, exits: None };
        folder::save(folder, &self.config.to_hf(), Some(&layerwise), &self.config.written(&self.params)?)
    }

    /// The model's first `depth` blocks, under the norm and the head of that exit: an ordinary, shallower model.
    ///
    /// Parameters are shared with this model. Under [`ExitNorm::PerLayer`] and [`Heads::PerLayer`] layer `depth`'s own
    /// norm and head become the model's, so that Python's `transformers` reads the saved folder. Under
    /// [`ExitNorm::Raw`] the last exit is normed although the uncut model did not norm this one.
    ///
    /// # Errors
    ///
    /// [`Error::Layer`] unless `depth` is one of the model's layers.
    pub fn cut(&self, depth: usize) -> Result<Self> {
        let mut config = self.config.clone();
        let layers = config.fields().depth;
        if !(1..=*layers).contains(&depth) {
            return Err(Error::Layer { layer: depth, depth: *layers });
        }
        *layers = depth;
        let mut params = self.params.clone();
        let own = K::FINAL_NORM.map(|norm| (norm_name(depth), norm));
        for (own, model) in own.into_iter().chain([(head_name(depth), HEAD)]) {
            for part in ["weight", "bias"] {
                params.alias(&format!("{model}.{part}"), &format!("{own}.{part}"));
            }
        }
        let model = Self::build(config, Builder::model(&params))?.0;
        if !self.frozen {
            return Ok(model);
        }
        // The same blocks, packed ones too.
        let mut cut = Self { blocks: self.blocks[..depth].to_vec(), ..model.frozen() };
        if self.exits.is_packed() {
            cut.exits.pack()?;
        }
        Ok(cut)
    }
}

/// Lets the inner layers' norms or heads be read from those of the last.
fn start_alike(checkpoint: &mut Checkpoint, depth: usize, own: fn(usize) -> String, last: &str) {
    for layer in 1..depth {
        for part in ["weight", "bias"] {
            checkpoint.alias(format!("{}.{part}", own(layer)), format!("{last}.{part}"));
        }
    }
}
