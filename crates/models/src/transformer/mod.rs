//! A stack of transformer blocks under exits: everything that is the same for all kinds of them.

mod io;

use std::{collections::BTreeMap, fmt::Debug, path::Path};

use candle_core::{DType, Device, Result as CandleResult, Tensor};
use layerwise_ops::init::ChaCha8Rng;
use serde_json::Value;

pub use self::io::{Head, LoadOptions};
use crate::{
    Batch, Error, ExitNorm, Heads, Hidden, Params, Pass, Result, Tapped,
    block::Block,
    builder::{Builder, Built},
    checkpoint::{Checkpoint, View},
    exits::{ExitShape, Exits, Pooling, first_token, is_head},
    tap::LinearExit,
};

/// What tells one kind of transformer from another; implemented by configurations.
pub trait Kind: Clone + Debug {
    /// What makes tokens of a batch.
    type Embeddings: Embed<Self>;

    /// Name of the norm that a model has anyway before its last exit.
    const FINAL_NORM: Option<&'static str>;

    fn validate(&self) -> Result<()>;

    /// What all kinds of configurations have.
    fn fields(&mut self) -> Fields<'_>;

    fn embeddings(&self, b: &mut Builder<'_>) -> Result<Self::Embeddings>;

    /// Block `i`, counted from 0 as in the checkpoint.
    fn block(&self, b: &mut Builder<'_>, i: usize) -> Result<Block>;

    fn exits(&self) -> ExitShape<'_>;

    /// The configuration of a Hugging Face folder; what is told by the tensors alone comes from the checkpoint.
    fn from_hf(folder: &Path, checkpoint: &Checkpoint) -> Result<Self>;

    /// What Python's `transformers` reads.
    fn to_hf(&self) -> Value;

    /// The parameters that are made of a tensor in a file; none of one that is no weight.
    fn read(name: &str) -> Vec<(String, View)>;

    /// The tensor in a file that a parameter is made of.
    fn filed(name: &str) -> String {
        name.to_owned()
    }

    /// The tensors of a file.
    fn written(&self, params: &Params) -> Result<Vec<(String, Tensor)>> {
        Ok(params.renamed(str::to_owned))
    }

    /// What the prediction reads of a state `(rows, tokens, width)`: the first token, `(rows, width)`.
    fn feature(&self, hidden: &Hidden) -> CandleResult<Tensor> {
        first_token(&hidden.xs)
    }
}

/// Fields of a configuration.
#[derive(Debug)]
pub struct Fields<'a> {
    pub(crate) depth: &'a mut usize,
    /// `None` for a kind whose blocks end in a norm.
    pub(crate) exit_norm: Option<&'a mut ExitNorm>,
    /// `None` for a kind that always reads the same.
    pub(crate) pooling: Option<&'a mut Pooling>,
    /// `None` for a kind that predicts words by their table.
    pub(crate) classifier: Option<Classifier<'a>>,
}

/// Fields of a classifier.
#[derive(Debug)]
pub(crate) struct Classifier<'a> {
    pub(crate) labels: &'a mut usize,
    pub(crate) names: &'a mut BTreeMap<usize, String>,
    pub(crate) heads: &'a mut Heads,
}

/// The way into the stack.
pub trait Embed<K>: Clone + Debug {
    fn forward(&self, batch: &Batch, config: &K, pass: Pass) -> Result<Hidden>;

    /// The same storage, recording no graph.
    fn detached(&self) -> Self;
}

/// A stack of transformer blocks, tapped after every one; its parameters bear Hugging Face's names.
///
/// [`Vit`](crate::Vit), [`Bert`](crate::Bert) and [`Gpt2`](crate::Gpt2) are this with a configuration of theirs. A clone shares its weights with the original;
/// [`copied`](Self::copied) has its own.
#[derive(Clone, Debug)]
pub struct Transformer<K: Kind> {
    pub(crate) config: K,
    pub(crate) params: Params,
    pub(crate) embeddings: K::Embeddings,
    pub(crate) blocks: Vec<Block>,
    pub(crate) exits: Exits,
    pub(crate) frozen: bool,
}

impl<K: Kind> Transformer<K> {
    /// A model with random weights: truncated normal of deviation `initializer_range`, zero biases, unit norms.
    ///
    /// # Errors
    ///
    /// When the configuration's `validate` finds fault, or the device cannot allocate.
    pub fn new(config: K, rng: &mut ChaCha8Rng, device: &Device) -> Result<Self> {
        Ok(Self::build(config, Builder::random(rng, device))?.0)
    }

    /// Shape, labels and exits of the model.
    #[must_use]
    pub fn config(&self) -> &K {
        &self.config
    }

    /// The trainable parameters.
    #[must_use]
    pub fn params(&self) -> &Params {
        &self.params
    }

    /// The same weights, in the same memory, recording no graph: for evaluation and serving.
    ///
    /// Later updates of the parameters are seen by the frozen model.
    #[must_use]
    pub fn frozen(&self) -> Self {
        Self {
            config: self.config.clone(),
            params: self.params.clone(),
            embeddings: self.embeddings.detached(),
            blocks: self.blocks.iter().map(Block::detached).collect(),
            exits: self.exits.detached(),
            frozen: true,
        }
    }

    /// The same model for serving: frozen, a copy whose weights are laid out for matrix products once instead of at each of
    /// them. The fewer rows a batch has, the more that saves. Until this model is dropped, the weights are in memory three
    /// times.
    ///
    /// Later updates of this model's parameters are not seen. Leave those of the packed model as they are: what is laid out
    /// would not follow.
    ///
    /// # Errors
    ///
    /// When the device cannot allocate.
    pub fn packed(&self) -> Result<Self> {
        let mut packed = self.copied()?.frozen();
        packed.blocks.iter_mut().try_for_each(Block::pack)?;
        packed.exits.pack()?;
        Ok(packed)
    }

    /// The same model with weights of its own: train it, and this one stays as it is.
    ///
    /// # Errors
    ///
    /// When the device cannot allocate.
    pub fn copied(&self) -> Result<Self> {
        Ok(Self::build(self.config.clone(), Builder::model(&self.params.copied()?))?.0)
    }

    /// For mixed precision: the same model that computes in `dtype`, bf16 for training. Its parameters are this model's, rounded; to train it updates this
    /// model's, too, which stay f32 and are what is saved.
    ///
    /// # Errors
    ///
    /// When the device cannot allocate.
    ///
    /// # Example
    ///
    /// ```
    /// use candle_core::{DType, Device::Cpu, Tensor};
    /// use layerwise_models::{Batch, Pass, Tapped, Vit, VitConfig};
    ///
    /// let config = VitConfig { image_size: 32, hidden_size: 24, num_hidden_layers: 2, num_attention_heads: 2, ..Default::default() };
    /// let vit = Vit::new(config, &mut layerwise_ops::init::rng(0), &Cpu)?;
    /// let computes = vit.mixed(DType::BF16)?;
    /// let images = Batch::from(Tensor::zeros((1, 3, 32, 32), DType::F32, &Cpu)?);
    /// assert_eq!(computes.embed(&images, Pass::EVAL)?.xs.dtype(), DType::BF16);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn mixed(&self, dtype: DType) -> Result<Self> {
        Ok(Self::build(self.config.clone(), Builder::model(&self.params.mixed(dtype)?))?.0)
    }

    /// The same model under other names of its classes; empty for `LABEL_0`, `LABEL_1`, ...
    ///
    /// # Errors
    ///
    /// [`Error::Labels`] unless there are as many names as classes; [`Error::Unsupported`] for a model without a classifier of its own.
    pub fn with_labels(mut self, names: impl IntoIterator<Item = String>) -> Result<Self> {
        let Some(classifier) = self.config.fields().classifier else {
            return Err(no_classifier("names of classes"));
        };
        *classifier.names = names.into_iter().enumerate().collect();
        self.config.validate()?;
        Ok(self)
    }

    /// The same model, whose classifiers all say this of a sample of which they know nothing: their biases become `outputs`, one a class. Starts a fresh classifier
    /// where it would get to first, so that features need not be spent on it.
    ///
    /// # Errors
    ///
    /// [`Error::Prior`] unless there is one finite output a class; [`Error::Unsupported`] for a model without a classifier of its own.
    pub fn with_prior(self, outputs: &[f32]) -> Result<Self> {
        let finite = outputs.iter().all(|output| output.is_finite());
        let biases = || self.params.masters().filter(|(name, _)| is_head(name) && name.ends_with(".bias"));
        if biases().next().is_none() {
            return Err(no_classifier("what a classifier starts with"));
        }
        if self.exits.is_packed() {
            let what = "another start of a classifier that is laid out".to_owned();
            return Err(Error::Unsupported { what, expected: "a model that is not packed" });
        }
        for (name, var) in biases() {
            if !finite || var.dims() != [outputs.len()] {
                return Err(Error::Prior {
                    name: name.to_owned(),
                    classes: var.elem_count(),
                    outputs: outputs.to_vec(),
                });
            }
            var.set(&Tensor::new(outputs, var.device())?)?;
        }
        self.params.round()?;
        Ok(self)
    }

    pub(crate) fn build(config: K, mut b: Builder<'_>) -> Result<(Self, Built)> {
        config.validate()?;
        let embeddings = config.embeddings(&mut b)?;
        let shape = config.exits();
        let blocks = (0..shape.depth).map(|i| config.block(&mut b, i)).collect::<Result<_>>()?;
        let exits = Exits::new(&mut b, &shape)?;
        let built = b.finish()?;
        let params = built.params.clone();
        Ok((Self { config, params, embeddings, blocks, exits, frozen: false }, built))
    }
}

impl<K: Kind> Tapped for Transformer<K> {
    fn depth(&self) -> usize {
        self.blocks.len()
    }

    fn embed(&self, batch: &Batch, pass: Pass) -> CandleResult<Hidden> {
        self.embeddings.forward(batch, &self.config, pass).map_err(Error::into_candle)
    }

    fn block(&self, layer: usize, hidden: &Hidden, pass: Pass) -> CandleResult<Hidden> {
        let Some(block) = layer.checked_sub(1).and_then(|i| self.blocks.get(i)) else {
            return Err(Error::Layer { layer, depth: self.depth() }.into_candle());
        };
        block.forward(layer, hidden, pass)
    }

    fn feature(&self, hidden: &Hidden) -> CandleResult<Tensor> {
        self.config.feature(hidden)
    }

    fn exit(&self, layer: usize, feature: &Tensor, pass: Pass) -> CandleResult<Tensor> {
        self.exits.forward(layer, feature, pass).map_err(Error::into_candle)
    }

    fn linear_exit(&self, layer: usize, feature: &Tensor, pass: Pass) -> CandleResult<Option<LinearExit>> {
        self.exits.linear(layer, feature, pass).map(Some).map_err(Error::into_candle)
    }

    fn answer(&self, layer: usize, hidden: &Hidden) -> CandleResult<Tensor> {
        match self.exits.packed(layer) {
            Some(packed) => packed.forward(&hidden.xs),
            None => Ok(self.exit(layer, &self.feature(hidden)?, Pass::EVAL)?.detach()),
        }
    }
}

fn no_classifier(what: &str) -> Error {
    Error::Unsupported { what: what.to_owned(), expected: "a model with a classifier" }
}
