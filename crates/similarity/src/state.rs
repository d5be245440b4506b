//! Accumulators as safetensors files.

use std::{borrow::Cow, collections::HashMap};

use ndarray::{Array, ArrayView, CowArray, Dimension, Ix1, Ix2, IxDyn};
use safetensors::{Dtype, SafeTensors, View};

use crate::{Error, Result};

/// Of the layout of states; a reader refuses what it does not know.
const VERSION: &str = "1";

/// Up to it, f64 has every whole number.
const COUNT: u64 = 1 << 53;

/// A state that is being written.
pub(crate) struct State<'a> {
    metadata: HashMap<String, String>,
    tensors: Vec<(String, Numbers<'a>)>,
}

impl<'a> State<'a> {
    pub(crate) fn new(kind: &str, samples: usize) -> Self {
        let metadata =
            [("layerwise_accumulator", kind), ("version", VERSION), ("samples", &samples.to_string())]
                .map(|(key, value)| (key.to_owned(), value.to_owned()));
        Self { metadata: metadata.into(), tensors: Vec::new() }
    }

    pub(crate) fn note(&mut self, key: &str, value: String) {
        self.metadata.insert(key.to_owned(), value);
    }

    pub(crate) fn add<D: Dimension>(&mut self, name: String, xs: ArrayView<'a, f64, D>) {
        self.tensors.push((name, Numbers(xs.into_dyn().into())));
    }

    pub(crate) fn add_numbers(&mut self, name: String, xs: &[f64]) {
        self.tensors.push((name, Numbers(ndarray::arr1(xs).into_dyn().into())));
    }

    pub(crate) fn into_bytes(self) -> Vec<u8> {
        safetensors::serialize(self.tensors, Some(self.metadata)).expect("shapes that arrays have are valid")
    }
}

/// Turned into bytes one by one, when they are written.
struct Numbers<'a>(CowArray<'a, f64, IxDyn>);

impl View for Numbers<'_> {
    fn dtype(&self) -> Dtype {
        Dtype::F64
    }

    fn shape(&self) -> &[usize] {
        self.0.shape()
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Owned(self.0.iter().flat_map(|x| x.to_le_bytes()).collect())
    }

    fn data_len(&self) -> usize {
        8 * self.0.len()
    }
}

/// A state that is being read; nothing in it is trusted.
pub(crate) struct StateReader<'a> {
    metadata: HashMap<String, String>,
    tensors: SafeTensors<'a>,
    samples: usize,
}

impl<'a> StateReader<'a> {
    pub(crate) fn new(kind: &str, bytes: &'a [u8]) -> Result<Self> {
        let invalid = |e: safetensors::SafeTensorError| Error::State(e.to_string());
        let (_, header) = SafeTensors::read_metadata(bytes).map_err(invalid)?;
        let tensors = SafeTensors::deserialize(bytes).map_err(invalid)?;
        let metadata = header.metadata().clone().unwrap_or_default();
        let mut state = Self { metadata, tensors, samples: 0 };
        for (key, expected) in [("layerwise_accumulator", kind), ("version", VERSION)] {
            let found = state.text(key)?;
            if found != expected {
                return Err(Error::State(format!("{key} is {found:?}; expected {expected:?}")));
            }
        }
        state.samples = state.count("samples")?;
        Ok(state)
    }

    pub(crate) fn samples(&self) -> usize {
        self.samples
    }

    pub(crate) fn text(&self, key: &str) -> Result<&str> {
        let missing = || Error::State(format!("{key} is missing from the metadata"));
        self.metadata.get(key).map(String::as_str).ok_or_else(missing)
    }

    pub(crate) fn number(&self, key: &str) -> Result<usize> {
        self.text(key)?.parse().map_err(|e| Error::State(format!("{key}: {e}")))
    }

    /// A number of samples.
    pub(crate) fn count(&self, key: &str) -> Result<usize> {
        match self.number(key)? {
            count if count as u64 <= COUNT => Ok(count),
            count => Err(Error::State(format!("{key} is {count}; expected at most {COUNT}"))),
        }
    }

    /// Nothing but what is read.
    pub(crate) fn holds(&self, tensors: usize) -> Result<()> {
        let found = self.tensors.len();
        if found == tensors {
            Ok(())
        } else {
            Err(Error::State(format!("{found} tensors; expected {tensors}")))
        }
    }

    /// A vector of any or of this length, of numbers up to `limit`.
    pub(crate) fn vector(&self, name: &str, length: Option<usize>, limit: f64) -> Result<Array<f64, Ix1>> {
        let found = self.array::<Ix1>(name, limit)?;
        match length {
            Some(length) if length != found.len() => {
                Err(Error::State(format!("{name} has {} numbers; expected {length}", found.len())))
            }
            _ if found.is_empty() => Err(Error::State(format!("{name} is empty"))),
            _ => Ok(found),
        }
    }

    /// A matrix of this shape, of numbers up to `limit`.
    pub(crate) fn matrix(&self, name: &str, shape: (usize, usize), limit: f64) -> Result<Array<f64, Ix2>> {
        self.matrix_shape(name, shape)?;
        self.array(name, limit)
    }

    /// Checks the shape without reading.
    pub(crate) fn matrix_shape(&self, name: &str, shape: (usize, usize)) -> Result<()> {
        let view = self.tensors.tensor(name).map_err(|e| Error::State(format!("{name}: {e}")))?;
        if view.shape() == [shape.0, shape.1] {
            Ok(())
        } else {
            Err(Error::State(format!("{name} has shape {:?}; expected {shape:?}", view.shape())))
        }
    }

    fn array<D: Dimension>(&self, name: &str, limit: f64) -> Result<Array<f64, D>> {
        let invalid = |what: String| Error::State(format!("{name}: {what}"));
        let view = self.tensors.tensor(name).map_err(|e| invalid(e.to_string()))?;
        if view.dtype() != Dtype::F64 {
            return Err(invalid(format!("type {:?}; expected F64", view.dtype())));
        }
        let (values, _) = view.data().as_chunks::<8>();
        let values: Vec<f64> = values.iter().map(|bytes| f64::from_le_bytes(*bytes)).collect();
        if values.iter().any(|x| !x.is_finite()) {
            return Err(invalid("a number that is not finite".into()));
        }
        if let Some(large) = values.iter().find(|x| x.abs() > limit) {
            return Err(invalid(format!("{large:e}; expected at most {limit:e}")));
        }
        Array::from_shape_vec(view.shape(), values)
            .and_then(|xs| xs.into_dimensionality())
            .map_err(|_| invalid(format!("unexpected shape {:?}", view.shape())))
    }
}
