//! Named weights of the benches' own models, and the block that they share.

use std::collections::BTreeMap;

use candle_core::{DType, Device::Cpu, Result, Tensor, Var};
use layerwise::{
    models::{Hidden, Params},
    ops::{
        self, Activation, Affine, Attention, Dropout, FeedForward, Norm, NormPlace, Packed, SelfAttention,
        init,
    },
};

pub(super) struct Weights {
    rng: init::ChaCha8Rng,
    tensors: BTreeMap<String, Tensor>,
    packed: BTreeMap<String, Packed>,
    params: Params,
}

impl Weights {
    pub(super) fn new() -> Self {
        let rng = init::rng(0);
        Self { rng, tensors: BTreeMap::new(), packed: BTreeMap::new(), params: Params::default() }
    }

    pub(super) fn params(&self) -> Params {
        self.params.clone()
    }

    pub(super) fn matrix(&mut self, name: &str, rows: usize, columns: usize) -> Result<()> {
        let values = init::trunc_normal(&mut self.rng, (rows, columns), 0.02, &Cpu)?;
        self.insert(name.to_owned(), Var::from_tensor(&values)?);
        Ok(())
    }

    pub(super) fn linear(&mut self, name: &str, inputs: usize, outputs: usize) -> Result<()> {
        self.matrix(name, outputs, inputs)?;
        self.insert(format!("{name}.bias"), Var::zeros(outputs, DType::F32, &Cpu)?);
        Ok(())
    }

    pub(super) fn norm(&mut self, name: &str, width: usize) -> Result<()> {
        self.insert(name.to_owned(), Var::ones(width, DType::F32, &Cpu)?);
        self.insert(format!("{name}.bias"), Var::zeros(width, DType::F32, &Cpu)?);
        Ok(())
    }

    /// The weights of [`run_block`](Self::run_block).
    pub(super) fn block(&mut self, layer: usize, width: usize) -> Result<()> {
        for name in ["query", "key", "value", "output"] {
            self.linear(&format!("{layer}.{name}"), width, width)?;
        }
        self.linear(&format!("{layer}.up"), width, 4 * width)?;
        self.linear(&format!("{layer}.down"), 4 * width, width)?;
        self.norm(&format!("{layer}.norm1"), width)?;
        self.norm(&format!("{layer}.norm2"), width)
    }

    /// Takes everything off the graph and lays the blocks' weights out for products.
    pub(super) fn pack(&mut self) -> Result<()> {
        for (name, tensor) in &mut self.tensors {
            *tensor = tensor.detach();
            let is_linear = tensor.rank() == 2 && name.contains('.');
            if let Some(packed) = is_linear.then(|| Packed::new(tensor)).transpose()?.flatten() {
                self.packed.insert(name.clone(), packed);
            }
        }
        Ok(())
    }

    pub(super) fn tensor(&self, name: &str) -> &Tensor {
        &self.tensors[name]
    }

    pub(super) fn rows(&self, name: &str, ids: &Tensor) -> Result<Tensor> {
        ops::embedding(ids, self.tensor(name))
    }

    pub(super) fn affine(&self, name: &str) -> Affine<'_> {
        let bias = self.tensors.get(&format!("{name}.bias"));
        Affine { weight: self.tensor(name), bias, packed: self.packed.get(name) }
    }

    pub(super) fn get_norm(&self, name: &str, (eps, place): (f64, NormPlace)) -> Norm<'_> {
        Norm { weight: self.tensor(name), bias: self.tensor(&format!("{name}.bias")), eps, place }
    }

    pub(super) fn run_block(
        &self,
        layer: usize,
        hidden: &Hidden,
        norm: (f64, NormPlace),
        attention: Attention<'_>,
        activation: Activation,
        dropout: impl Fn(u8) -> Option<Dropout>,
    ) -> Result<Hidden> {
        let part = |name: &str| self.affine(&format!("{layer}.{name}"));
        let attend = SelfAttention {
            norm: self.get_norm(&format!("{layer}.norm1"), norm),
            query: part("query"),
            key: part("key"),
            value: part("value"),
            output: part("output"),
            attention,
            dropout: dropout(1),
        };
        let feed = FeedForward {
            norm: self.get_norm(&format!("{layer}.norm2"), norm),
            up: part("up"),
            down: part("down"),
            activation,
            dropout: dropout(2),
        };
        let xs = ops::feed_forward(&ops::self_attention(&hidden.xs, &attend)?, &feed)?;
        Ok(Hidden { xs, mask: hidden.mask.clone() })
    }

    fn insert(&mut self, name: String, var: Var) {
        self.tensors.insert(name.clone(), var.as_tensor().clone());
        self.params.insert(name, var);
    }
}
