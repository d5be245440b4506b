use std::path::Path;

use candle_core::{DType, Device, Result as CandleResult, Tensor};
use layerwise_ops::init::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::{
    Activation, Batch, Error, ExitNorm, Heads, Hidden, Params, Pass, Result, Tapped,
    builder::{Builder, Built, Init},
    checkpoint::{self, Checkpoint, whole},
    exits::{ExitShape, Exits, HEAD, head_name},
    folder::{self, CONFIG},
    layers::Linear,
    validate::{self, MAX_LAYERS, MAX_SIZE},
};

/// Shape of an [`Mlp`]; the default is the paper's nine residual layers on MNIST (appendix, figure of MLPs).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MlpConfig {
    /// Numbers that describe a sample; 784 for MNIST.
    pub inputs: usize,
    /// Width of every block (ours: 256; the paper does not say).
    pub width: usize,
    /// Number of blocks, `L`.
    pub layers: usize,
    /// Number of classes.
    pub classes: usize,
    /// `h + act(h W + b)` with, `act(h W + b)` without.
    pub residual: bool,
    /// The nonlinearity (ours: relu; the paper does not say).
    pub activation: Activation,
    /// Classifiers of the inner exits.
    pub heads: Heads,
}

/// What an MLP's `config.json` holds.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Saved {
    model_type: String,
    config: MlpConfig,
}

const MODEL_TYPE: &str = "layerwise_mlp";

impl Default for MlpConfig {
    fn default() -> Self {
        Self {
            inputs: 784,
            width: 256,
            layers: 9,
            classes: 10,
            residual: true,
            activation: Activation::Relu,
            heads: Heads::Shared,
        }
    }
}

impl MlpConfig {
    /// Checks the sizes.
    ///
    /// # Errors
    ///
    /// [`Error::Size`] when one is zero or absurd.
    pub fn validate(&self) -> Result<()> {
        validate::sizes(&[
            ("inputs", self.inputs, MAX_SIZE),
            ("width", self.width, MAX_SIZE),
            ("layers", self.layers, MAX_LAYERS),
            ("classes", self.classes, MAX_SIZE),
        ])
    }
}

/// A stack of fully connected blocks of one width behind an input projection, with or without residual connections.
///
/// Takes rows of `inputs` numbers, f32, in any shape: `(rows, inputs)` or `(rows, channels, height, width)`. A clone shares
/// its weights with the original; [`copied`](Mlp::copied) has its own.
#[derive(Clone, Debug)]
pub struct Mlp {
    config: MlpConfig,
    params: Params,
    input: Linear,
    blocks: Vec<Linear>,
    exits: Exits,
    frozen: bool,
}

impl Mlp {
    /// A model with random weights: Xavier-uniform, zero biases.
    ///
    /// # Errors
    ///
    /// When [`MlpConfig::validate`] finds fault, or the device cannot allocate.
    pub fn new(config: MlpConfig, rng: &mut ChaCha8Rng, device: &Device) -> Result<Self> {
        Ok(Self::build(config, Builder::random(rng, device))?.0)
    }

    /// Shape of the model.
    #[must_use]
    pub fn config(&self) -> &MlpConfig {
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
            input: self.input.detached(),
            blocks: self.blocks.iter().map(Linear::detached).collect(),
            exits: self.exits.detached(),
            frozen: true,
        }
    }

    /// The same model with weights of its own: train it, and this one stays as it is.
    ///
    /// # Errors
    ///
    /// When the device cannot allocate.
    pub fn copied(&self) -> Result<Self> {
        Ok(Self::build(self.config.clone(), Builder::model(&self.params.copied()?))?.0)
    }

    /// For mixed precision: see [`Transformer::mixed`](crate::Transformer::mixed).
    ///
    /// # Errors
    ///
    /// When the device cannot allocate.
    pub fn mixed(&self, dtype: DType) -> Result<Self> {
        Ok(Self::build(self.config.clone(), Builder::model(&self.params.mixed(dtype)?))?.0)
    }

    /// The model that [`save`](Self::save) wrote.
    ///
    /// # Errors
    ///
    /// [`Error::Tensors`] lists every tensor that is missing or has the wrong shape; the other variants tell of a
    /// configuration that is invalid and of damaged or absent files.
    pub fn load(folder: &Path, device: &Device) -> Result<Self> {
        let path = folder.join(CONFIG);
        let Saved { model_type, config } = checkpoint::read_json(&path)?;
        if model_type != MODEL_TYPE {
            let what = format!("model_type {model_type:?}");
            return Err(Error::Unsupported { what, expected: "\"layerwise_mlp\"" }.in_file(path));
        }
        config.validate().map_err(|error| error.in_file(path))?;
        let checkpoint = Checkpoint::open(folder, whole)?;
        Ok(Self::build(config, Builder::file(&checkpoint, None, device))?.0)
    }

    /// Writes `config.json` and `model.safetensors` as [`Vit::save`](crate::Vit::save) does; no other program reads
    /// them as a model.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] when the folder cannot be written.
    pub fn save(&self, folder: &Path) -> Result<()> {
        let saved = Saved { model_type: MODEL_TYPE.to_owned(), config: self.config.clone() };
        folder::save(folder, &saved, None::<&()>, &self.params.renamed(str::to_owned))
    }

    /// The first `depth` blocks under the head of that exit, sharing their parameters with this model.
    ///
    /// # Errors
    ///
    /// [`Error::Layer`] unless `depth` is one of the model's layers.
    pub fn cut(&self, depth: usize) -> Result<Self> {
        let layers = self.config.layers;
        if !(1..=layers).contains(&depth) {
            return Err(Error::Layer { layer: depth, depth: layers });
        }
        let mut params = self.params.clone();
        for part in ["weight", "bias"] {
            params.alias(&format!("{HEAD}.{part}"), &format!("{}.{part}", head_name(depth)));
        }
        let config = MlpConfig { layers: depth, ..self.config.clone() };
        let model = Self::build(config, Builder::model(&params))?.0;
        Ok(if self.frozen { model.frozen() } else { model })
    }

    fn build(config: MlpConfig, mut b: Builder<'_>) -> Result<(Self, Built)> {
        config.validate()?;
        let MlpConfig { inputs, width, layers, classes, heads, .. } = config;
        let input = b.linear("input", (inputs, width), true, Init::Xavier)?;
        let mut block = |i| b.linear(&format!("layers.{i}"), (width, width), true, Init::Xavier);
        let blocks = (0..layers).map(&mut block).collect::<Result<_>>()?;
        let shape = ExitShape {
            depth: layers,
            width,
            labels: classes,
            table: None,
            norm: None,
            pooler: None,
            dropout: 0.,
            exit_norm: ExitNorm::Raw,
            heads,
            init: Init::Xavier,
        };
        let exits = Exits::new(&mut b, &shape)?;
        let built = b.finish()?;
        let params = built.params.clone();
        Ok((Self { config, params, input, blocks, exits, frozen: false }, built))
    }
}

impl Tapped for Mlp {
    fn depth(&self) -> usize {
        self.blocks.len()
    }

    fn embed(&self, batch: &Batch, _pass: Pass) -> CandleResult<Hidden> {
        let (xs, inputs) = (&batch.inputs, self.config.inputs);
        let (sample, dtype) = (xs.dims().iter().skip(1).product::<usize>(), self.input.weight.dtype());
        if xs.rank() < 2 || sample != inputs || ![DType::F32, dtype].contains(&xs.dtype()) {
            let found = format!("{:?} {:?}", xs.dtype(), xs.dims());
            return Err(Error::Inputs { found, expected: format!("F32 (rows, {inputs})") }.into_candle());
        }
        let xs = self
            .config
            .activation
            .operation()
            .forward(&self.input.forward(&xs.flatten_from(1)?.to_dtype(dtype)?)?)?;
        Ok(Hidden { xs, mask: None })
    }

    fn block(&self, layer: usize, hidden: &Hidden, _pass: Pass) -> CandleResult<Hidden> {
        let Some(block) = layer.checked_sub(1).and_then(|i| self.blocks.get(i)) else {
            return Err(Error::Layer { layer, depth: self.depth() }.into_candle());
        };
        let update = self.config.activation.operation().forward(&block.forward(&hidden.xs)?)?;
        let xs = if self.config.residual { (&hidden.xs + update)? } else { update };
        Ok(Hidden { xs, mask: None })
    }

    fn feature(&self, hidden: &Hidden) -> CandleResult<Tensor> {
        Ok(hidden.xs.clone())
    }

    fn exit(&self, layer: usize, feature: &Tensor, pass: Pass) -> CandleResult<Tensor> {
        self.exits.forward(layer, feature, pass).map_err(Error::into_candle)
    }
}
