use std::collections::BTreeMap;

use candle_core::{DType, Tensor, Var};

/// Trainable parameters, in order of their names.
///
/// A clone shares the values; [`copied`](Params::copied) is a snapshot.
///
/// candle's `VarMap` iterates in hash order, which differs from run to run; sums over parameters and saved optimiser
/// states must not.
#[derive(Clone, Debug, Default)]
pub struct Params(BTreeMap<String, Param>);

#[derive(Clone, Debug)]
pub(crate) struct Param {
    pub(crate) var: Var,
    /// What `var` is rounded from.
    pub(crate) master: Option<Var>,
}

impl From<Var> for Param {
    fn from(var: Var) -> Self {
        Self { var, master: None }
    }
}

impl Params {
    /// Adds a parameter, or replaces the one of that name.
    pub fn insert(&mut self, name: impl Into<String>, var: Var) {
        self.add(name, var.into());
    }

    pub(crate) fn add(&mut self, name: impl Into<String>, param: Param) {
        self.0.insert(name.into(), param);
    }

    /// Gives a parameter other numbers, f32, in memory of their own, rounded as it was.
    pub(crate) fn renew(&mut self, name: &str, numbers: &Tensor) -> candle_core::Result<()> {
        let own = Var::from_tensor(&numbers.copy()?)?;
        let param = match self.of(name) {
            Some(Param { var, master: Some(_) }) => Param {
                var: Var::from_tensor(&own.to_dtype(var.dtype())?.detach().copy()?)?,
                master: Some(own),
            },
            _ => own.into(),
        };
        self.add(name, param);
        Ok(())
    }

    /// Lets `to` be the parameter `from`, if there is one.
    pub(crate) fn alias(&mut self, to: &str, from: &str) {
        if let Some(param) = self.of(from).cloned() {
            self.add(to, param);
        }
    }

    pub(crate) fn of(&self, name: &str) -> Option<&Param> {
        self.0.get(name)
    }

    /// The parameter of that name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Var> {
        self.0.get(name).map(|param| &param.var)
    }

    /// What training is to update: of [mixed](Params::mixed) parameters the f32 number that the parameter of this name is rounded from; of others the
    /// parameter.
    #[must_use]
    pub fn master(&self, name: &str) -> Option<&Var> {
        self.0.get(name).map(|Param { var, master }| master.as_ref().unwrap_or(var))
    }

    /// Names and [masters](Params::master), sorted by name.
    pub fn masters(&self) -> impl Iterator<Item = (&str, &Var)> {
        self.0.iter().map(|(name, Param { var, master })| (name.as_str(), master.as_ref().unwrap_or(var)))
    }

    /// Rounds [mixed](Params::mixed) parameters anew, after their masters were changed.
    ///
    /// # Errors
    ///
    /// When candle fails.
    pub fn round(&self) -> candle_core::Result<()> {
        for Param { var, master } in self.0.values() {
            if let Some(master) = master {
                var.set(&master.as_detached_tensor().to_dtype(var.dtype())?)?;
            }
        }
        Ok(())
    }

    /// Names and parameters, sorted by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Var)> {
        self.0.iter().map(|(name, param)| (name.as_str(), &param.var))
    }

    /// The values, unrounded and off the graph, under the names that `rename` gives them.
    pub(crate) fn renamed(&self, rename: impl Fn(&str) -> String) -> Vec<(String, Tensor)> {
        self.masters().map(|(name, var)| (rename(name), var.as_detached_tensor())).collect()
    }

    /// The same values in memory of their own.
    ///
    /// # Errors
    ///
    /// When the device cannot allocate.
    pub fn copied(&self) -> candle_core::Result<Self> {
        let own = |var: &Var| Var::from_tensor(&var.as_detached_tensor().copy()?);
        self.mapped(|Param { var, master }| {
            Ok(Param { var: own(var)?, master: master.as_ref().map(own).transpose()? })
        })
    }

    /// For mixed precision: the same numbers rounded to `dtype`, in memory of their own, whose [masters](Params::master) these are.
    ///
    /// # Errors
    ///
    /// When the device cannot allocate.
    pub fn mixed(&self, dtype: DType) -> candle_core::Result<Self> {
        self.mapped(|Param { var, master }| {
            let master = master.as_ref().unwrap_or(var);
            // Of the same type, too, `to_dtype` shares memory.
            let rounded = master.as_detached_tensor().to_dtype(dtype)?.copy()?;
            Ok(Param { var: Var::from_tensor(&rounded)?, master: Some(master.clone()) })
        })
    }

    fn mapped(&self, f: impl Fn(&Param) -> candle_core::Result<Param>) -> candle_core::Result<Self> {
        self.0.iter().map(|(name, param)| Ok((name.clone(), f(param)?))).collect::<Result<_, _>>().map(Self)
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
        self.iter().map(|(_, var)| var.elem_count()).sum()
    }
}

impl FromIterator<(String, Var)> for Params {
    fn from_iter<I: IntoIterator<Item = (String, Var)>>(vars: I) -> Self {
        let mut params = Self::default();
        vars.into_iter().for_each(|(name, var)| params.insert(name, var));
        params
    }
}
