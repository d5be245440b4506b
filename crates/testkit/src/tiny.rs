use candle_core::{Device, Result, Tensor, Var};
use layerwise_models::{Batch, Hidden, Params, Pass, Tapped};
use layerwise_ops::{gelu, init, linear};

/// A residual stack of `h + gelu(h W + b)` blocks under one shared head: the smallest model that trains and exits.
#[derive(Clone, Debug)]
pub struct TinyStack {
    depth: usize,
    params: Params,
    dropout: f64,
}

impl TinyStack {
    /// Random weights from `seed`; inputs are `(rows, width)`.
    ///
    /// # Errors
    ///
    /// When candle cannot allocate.
    pub fn new(depth: usize, width: usize, classes: usize, seed: u64) -> Result<Self> {
        let mut rng = init::rng(seed);
        let mut params = Params::default();
        let mut layer = |name: String, outputs: usize| -> Result<()> {
            let weight = init::xavier_uniform(&mut rng, (outputs, width), &Device::Cpu)?;
            let bias = init::normal(&mut rng, outputs, 0.01, &Device::Cpu)?;
            params.insert(format!("{name}.weight"), Var::from_tensor(&weight)?);
            params.insert(format!("{name}.bias"), Var::from_tensor(&bias)?);
            Ok(())
        };
        for l in 1..=depth {
            layer(format!("block.{l}"), width)?;
        }
        layer("head".into(), classes)?;
        Ok(Self { depth, params, dropout: 0. })
    }

    /// The same model with dropout after every block.
    #[must_use]
    pub fn with_dropout(self, dropout: f64) -> Self {
        Self { dropout, ..self }
    }

    /// Its parameters.
    #[must_use]
    pub fn params(&self) -> &Params {
        &self.params
    }

    fn apply(&self, name: &str, xs: &Tensor) -> Result<Tensor> {
        let get = |part: &str| {
            let name = format!("{name}.{part}");
            self.params.get(&name).ok_or_else(|| candle_core::Error::Msg(format!("no {name}")))
        };
        linear(xs, get("weight")?, Some(get("bias")?))
    }
}

impl Tapped for TinyStack {
    fn depth(&self) -> usize {
        self.depth
    }

    fn embed(&self, batch: &Batch, _pass: Pass) -> Result<Hidden> {
        Ok(Hidden { xs: batch.inputs.clone(), mask: None })
    }

    fn block(&self, layer: usize, hidden: &Hidden, pass: Pass) -> Result<Hidden> {
        let update = gelu(&self.apply(&format!("block.{layer}"), &hidden.xs)?)?;
        let update = pass.dropout(&update, self.dropout, layer, 0)?;
        Ok(Hidden { xs: (&hidden.xs + update)?, mask: None })
    }

    fn feature(&self, hidden: &Hidden) -> Result<Tensor> {
        Ok(hidden.xs.clone())
    }

    fn exit(&self, _layer: usize, feature: &Tensor, _pass: Pass) -> Result<Tensor> {
        self.apply("head", feature)
    }
}
