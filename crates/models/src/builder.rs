//! One way to make parameters, whether they are drawn, read from a checkpoint, or taken from another model.

use candle_core::{DType, Device, Shape, Tensor, Var};
use layerwise_ops::init::{self, ChaCha8Rng};

use crate::{
    Error, Params, Result,
    checkpoint::Checkpoint,
    error::ShapeMismatch,
    layers::{LayerNorm, Linear},
    params::Param,
};

/// How a parameter starts when it is not read.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Init {
    Zeros,
    Ones,
    /// Normal of this deviation, cut at two deviations.
    TruncNormal(f64),
    /// Uniform, scaled by the numbers of inputs and outputs.
    Xavier,
}

/// Parameters to start afresh although the rest is read.
#[derive(Debug)]
pub(crate) struct Fresh {
    pub(crate) wanted: fn(&str) -> bool,
    /// Which others to draw where the checkpoint has none.
    pub(crate) if_missing: fn(&str) -> bool,
    pub(crate) rng: ChaCha8Rng,
}

impl Fresh {
    fn draws(&self, name: &str, checkpoint: &Checkpoint) -> bool {
        (self.wanted)(name) || (self.if_missing)(name) && !checkpoint.contains(name)
    }
}

#[derive(Debug)]
enum Source<'a> {
    Random(&'a mut ChaCha8Rng),
    File { checkpoint: &'a Checkpoint, fresh: Option<&'a mut Fresh> },
    Model(&'a Params),
}

/// Hands out the parameters that a model asks for by name, and keeps account of them.
///
/// A model states its structure once, in terms of a builder; initialisation, loading and cutting follow. Missing
/// tensors and wrong shapes are collected while building goes on, so that [`finish`](Builder::finish) reports them all.
#[derive(Debug)]
pub struct Builder<'a> {
    source: Source<'a>,
    device: Device,
    params: Params,
    missing: Vec<String>,
    shapes: Vec<ShapeMismatch>,
    started_fresh: Vec<String>,
}

/// What a builder leaves.
pub(crate) struct Built {
    pub(crate) params: Params,
    /// Tensors of the checkpoint that nothing asked for.
    pub(crate) unexpected: Vec<String>,
    /// Parameters that were initialised although the others were read.
    pub(crate) fresh: Vec<String>,
}

impl<'a> Builder<'a> {
    /// Draws every parameter.
    pub(crate) fn random(rng: &'a mut ChaCha8Rng, device: &Device) -> Self {
        Self::new(Source::Random(rng), device)
    }

    /// Reads every parameter, but draws those that `fresh` wants.
    pub(crate) fn file(checkpoint: &'a Checkpoint, fresh: Option<&'a mut Fresh>, device: &Device) -> Self {
        Self::new(Source::File { checkpoint, fresh }, device)
    }

    /// Takes the parameters of a model that exists, sharing their storage.
    pub(crate) fn model(params: &'a Params) -> Self {
        Self::new(Source::Model(params), &Device::Cpu)
    }

    fn new(source: Source<'a>, device: &Device) -> Self {
        Self {
            source,
            device: device.clone(),
            params: Params::default(),
            missing: Vec::new(),
            shapes: Vec::new(),
            started_fresh: Vec::new(),
        }
    }

    /// The parameter `name`.
    pub(crate) fn tensor(&mut self, name: &str, shape: impl Into<Shape>, init: Init) -> Result<Tensor> {
        let shape = shape.into();
        let drawn = |rng: &mut ChaCha8Rng| {
            Ok::<_, Error>(Param::from(Var::from_tensor(&init.values(rng, &shape, &self.device)?)?))
        };
        let param = match &mut self.source {
            Source::Random(rng) => Some(drawn(rng)?),
            Source::File { fresh: Some(fresh), checkpoint } if fresh.draws(name, checkpoint) => {
                self.started_fresh.push(name.to_owned());
                Some(drawn(&mut fresh.rng)?)
            }
            Source::File { checkpoint, .. } if checkpoint.fits(name, shape.dims()) => {
                Some(Var::from_tensor(&checkpoint.tensor(name, &self.device)?)?.into())
            }
            Source::File { checkpoint, .. } => {
                let found = checkpoint.shape(name);
                self.mismatch(name, found, &shape)
            }
            Source::Model(params) => match params.of(name) {
                Some(param) if param.var.shape() == &shape => Some(param.clone()),
                param => {
                    let found = param.map(|param| param.var.dims().to_vec());
                    self.mismatch(name, found, &shape)
                }
            },
        };
        let Some(param) = param else {
            // Stands in until `finish` fails; one number, whatever the shape.
            return Ok(Tensor::zeros((), DType::F32, &Device::Cpu)?.broadcast_as(shape)?);
        };
        let tensor = param.var.as_tensor().clone();
        self.params.add(name, param);
        Ok(tensor)
    }

    /// A parameter that was handed out before.
    pub(crate) fn again(&self, name: &str) -> Result<Tensor> {
        match self.params.get(name) {
            Some(var) => Ok(var.as_tensor().clone()),
            // It was not there, and `finish` says so.
            None => Ok(Tensor::zeros((1, 1), DType::F32, &self.device)?),
        }
    }

    /// `name.weight` `(outputs, inputs)` and, on request, `name.bias` `(outputs)`.
    pub(crate) fn linear(
        &mut self,
        name: &str,
        (inputs, outputs): (usize, usize),
        bias: bool,
        init: Init,
    ) -> Result<Linear> {
        let weight = self.tensor(&format!("{name}.weight"), (outputs, inputs), init)?;
        let bias = match bias {
            true => Some(self.tensor(&format!("{name}.bias"), outputs, Init::Zeros)?),
            false => None,
        };
        Ok(Linear::new(weight, bias))
    }

    /// `name.weight` and `name.bias`, both `(width)`.
    pub(crate) fn layer_norm(&mut self, name: &str, width: usize, eps: f64) -> Result<LayerNorm> {
        let weight = self.tensor(&format!("{name}.weight"), width, Init::Ones)?;
        let bias = self.tensor(&format!("{name}.bias"), width, Init::Zeros)?;
        Ok(LayerNorm { weight, bias, eps })
    }

    /// All parameters handed out, or the one error that lists everything that was missing or of the wrong shape.
    pub(crate) fn finish(self) -> Result<Built> {
        let Self { source, params, missing, shapes, started_fresh, .. } = self;
        let (path, unexpected) = match &source {
            Source::File { checkpoint, fresh } => {
                let asked = |name: &str| {
                    params.get(name).is_some()
                        || shapes.iter().any(|mismatch| mismatch.name == name)
                        || fresh.as_ref().is_some_and(|fresh| (fresh.wanted)(name))
                };
                let names = checkpoint.names().filter(|name| !asked(name));
                (checkpoint.path().to_owned(), names.map(str::to_owned).collect())
            }
            Source::Random(_) | Source::Model(_) => ("parameters".into(), Vec::new()),
        };
        if missing.is_empty() && shapes.is_empty() {
            return Ok(Built { params, unexpected, fresh: started_fresh });
        }
        Err(Error::Tensors { path, missing, shapes, unexpected })
    }

    fn mismatch(&mut self, name: &str, found: Option<Vec<usize>>, expected: &Shape) -> Option<Param> {
        let name = name.to_owned();
        match found {
            None => self.missing.push(name),
            Some(found) => {
                self.shapes.push(ShapeMismatch { name, found, expected: expected.dims().to_vec() });
            }
        }
        None
    }
}

impl Init {
    fn values(self, rng: &mut ChaCha8Rng, shape: &Shape, device: &Device) -> Result<Tensor> {
        Ok(match self {
            Self::Zeros => Tensor::zeros(shape, DType::F32, device)?,
            Self::Ones => Tensor::ones(shape, DType::F32, device)?,
            Self::TruncNormal(std) => init::trunc_normal(rng, shape, std, device)?,
            Self::Xavier => init::xavier_uniform(rng, shape, device)?,
        })
    }
}
