use std::collections::BTreeMap;

use candle_core::{Tensor, Var};

/// Trainable parameters, in order of their names.
///
/// A clone shares the values; [`copied`](Params::copied) is a snapshot.
///
/// candle's `VarMap` iterates in hash order, which differs from run to run; sums over parameters and saved optimiser
/// states must not.
#[derive(Clone, Debug, Default)]
pub struct Params(BTreeMap<String, Var>);

impl Params {
    /// Adds a parameter, or replaces the one of that name.
    pub fn insert(&mut self, name: impl Into<String>, var: Var) {
        self.0.insert(name.into(), var);
    }

    /// The parameter of that name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Var> {
        self.0.get(name)
    }

    /// Names and parameters, sorted by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Var)> {
        self.0.iter().map(|(name, var)| (name.as_str(), var))
    }

    /// The values, off the graph, under the names that `rename` gives them.
    pub(crate) fn renamed(&self, rename: impl Fn(&str) -> String) -> Vec<(String, Tensor)> {
        self.iter().map(|(name, var)| (rename(name), var.as_detached_tensor())).collect()
    }

    /// The same values in memory of their own.
    ///
    /// # Errors
    ///
    /// When the device cannot allocate.
    pub fn copied(&self) -> candle_core::Result<Self> {
        let copy = |(name, var): (&String, &Var)| {
            Ok((name.clone(), Var::from_tensor(&var.as_detached_tensor().copy()?)?))
        };
        self.0.iter().map(copy).collect()
    }

    /// Number of parameter tensors.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Number of scalars in all parameters.
    #[must_use]
    pub fn elem_count(&self) -> usize {
        self.0.values().map(|var| var.elem_count()).sum()
    }
}

impl FromIterator<(String, Var)> for Params {
    fn from_iter<I: IntoIterator<Item = (String, Var)>>(vars: I) -> Self {
        Self(vars.into_iter().collect())
    }
}
