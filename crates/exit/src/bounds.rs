//! Policies that look at nothing: what any other is compared with.

use crate::{Check, Error, Policy, Reads, Result, Verdict};

/// Everybody leaves after the same layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FixedDepth(pub usize);

impl Policy for FixedDepth {
    fn validate(&self, depth: usize) -> Result<()> {
        if (1..=depth).contains(&self.0) {
            return Ok(());
        }
        Err(Error::Layer { field: "fixed depth", layer: self.0, first: 1, last: depth, depth })
    }

    fn reads(&self, layer: usize, _depth: usize) -> Reads {
        if layer == self.0 { Reads::Decision } else { Reads::Nothing }
    }

    fn verdict(&self, check: &Check<'_>) -> Result<Verdict> {
        Ok(all(check, |_| check.layer >= self.0))
    }
}

/// Each sample leaves after the first layer that is as good as any later one: the most that a policy could save.
///
/// Knows samples by their place in the data that it was made from; give the same as keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Oracle {
    layers: Vec<usize>,
}

impl Oracle {
    /// After the first layer that answers rightly; a sample that no layer gets right leaves after layer 1. `answers` are the classes that
    /// each exit gives, `(L, samples)`.
    ///
    /// # Errors
    ///
    /// [`Error::Empty`] without layers, [`Error::Rows`] where lengths differ.
    pub fn right(answers: &[Vec<u32>], labels: &[u32]) -> Result<Self> {
        check(answers, labels.len())?;
        let first = |i: usize| answers.iter().position(|layer| layer[i] == labels[i]).map_or(1, |at| at + 1);
        Ok(Self { layers: (0..labels.len()).map(first).collect() })
    }

    /// After the first layer that answers as the last one does: no labels needed, and no answer changed.
    ///
    /// # Errors
    ///
    /// As [`right`](Self::right).
    pub fn agreeing(answers: &[Vec<u32>]) -> Result<Self> {
        Self::right(answers, answers.last().ok_or(Error::Empty)?)
    }

    /// The layer that each sample leaves after.
    #[must_use]
    pub fn layers(&self) -> &[usize] {
        &self.layers
    }
}

fn check(answers: &[Vec<u32>], samples: usize) -> Result<()> {
    if answers.is_empty() {
        return Err(Error::Empty);
    }
    match answers.iter().find(|layer| layer.len() != samples) {
        Some(layer) => Err(Error::Rows { rows: layer.len(), labels: samples }),
        None => Ok(()),
    }
}

impl Policy for Oracle {
    fn validate(&self, depth: usize) -> Result<()> {
        match self.layers.iter().find(|layer| **layer > depth) {
            Some(&layer) => Err(Error::Layer { field: "oracle", layer, first: 1, last: depth, depth }),
            None => Ok(()),
        }
    }

    fn reads(&self, _layer: usize, _depth: usize) -> Reads {
        Reads::Decision
    }

    fn verdict(&self, check: &Check<'_>) -> Result<Verdict> {
        let known = |key: u64| usize::try_from(key).ok().and_then(|key| self.layers.get(key)).copied();
        if let Some(&key) = check.keys.iter().find(|&&key| known(key).is_none()) {
            return Err(Error::Key { key, samples: self.layers.len() });
        }
        Ok(all(check, |key| known(key).is_some_and(|layer| check.layer >= layer)))
    }
}

/// Each sample leaves after a layer drawn for it, whatever it looks like: what a policy has to beat.
///
/// The draw is a function of seed and key.
#[derive(Clone, Debug, PartialEq)]
pub struct Random {
    /// Of the draw.
    pub seed: u64,
    /// How likely each layer `1..=L` is, in any unit: another policy's histogram, for instance.
    pub weights: Vec<f64>,
}

impl Random {
    fn layer(&self, key: u64) -> usize {
        let draw = (mixed(self.seed ^ mixed(key)) >> 11) as f64 / (1u64 << 53) as f64;
        let total: f64 = self.weights.iter().sum();
        let mut below = 0.;
        let passed = |weight: &f64| {
            below += weight / total;
            draw < below
        };
        self.weights.iter().position(passed).unwrap_or(self.weights.len() - 1) + 1
    }
}

/// SplitMix64's finaliser.
fn mixed(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

impl Policy for Random {
    fn validate(&self, depth: usize) -> Result<()> {
        if self.weights.len() != depth {
            return Err(Error::Depth { made_for: self.weights.len(), depth });
        }
        let total: f64 = self.weights.iter().sum();
        if self.weights.iter().all(|weight| *weight >= 0.) && total > 0. && total.is_finite() {
            return Ok(());
        }
        let value = format!("{:?}", self.weights);
        Err(Error::Setting { field: "weights", value, expected: "no negative number, and a positive one" })
    }

    fn reads(&self, _layer: usize, _depth: usize) -> Reads {
        Reads::Decision
    }

    fn verdict(&self, check: &Check<'_>) -> Result<Verdict> {
        Ok(all(check, |key| check.layer >= self.layer(key)))
    }
}

fn all(check: &Check<'_>, leaves: impl Fn(u64) -> bool) -> Verdict {
    Verdict { leaves: check.keys.iter().map(|&key| leaves(key)).collect(), memory: None }
}
