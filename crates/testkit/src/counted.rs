use std::cell::RefCell;

use candle_core::{Result, Tensor};
use layerwise_models::{Batch, Hidden, Pass, Tapped};

/// A model that counts the rows which each of its blocks and exits computes.
#[derive(Debug)]
pub struct Counted<M> {
    model: M,
    blocks: RefCell<Vec<usize>>,
    exits: RefCell<Vec<usize>>,
}

impl<M: Tapped> Counted<M> {
    /// Nothing counted yet.
    pub fn new(model: M) -> Self {
        let zeros = || RefCell::new(vec![0; model.depth()]);
        Self { blocks: zeros(), exits: zeros(), model }
    }

    /// Rows that blocks `1..=L` computed so far.
    pub fn blocks(&self) -> Vec<usize> {
        self.blocks.borrow().clone()
    }

    /// Rows that exits `1..=L` computed so far.
    pub fn exits(&self) -> Vec<usize> {
        self.exits.borrow().clone()
    }
}

impl<M: Tapped> Tapped for Counted<M> {
    fn depth(&self) -> usize {
        self.model.depth()
    }

    fn embed(&self, batch: &Batch, pass: Pass) -> Result<Hidden> {
        self.model.embed(batch, pass)
    }

    fn block(&self, layer: usize, hidden: &Hidden, pass: Pass) -> Result<Hidden> {
        self.blocks.borrow_mut()[layer - 1] += hidden.xs.dim(0)?;
        self.model.block(layer, hidden, pass)
    }

    fn feature(&self, hidden: &Hidden) -> Result<Tensor> {
        self.model.feature(hidden)
    }

    fn exit(&self, layer: usize, feature: &Tensor, pass: Pass) -> Result<Tensor> {
        self.exits.borrow_mut()[layer - 1] += feature.dim(0)?;
        self.model.exit(layer, feature, pass)
    }

    fn select(&self, hidden: &Hidden, rows: &Tensor) -> Result<Hidden> {
        self.model.select(hidden, rows)
    }
}
