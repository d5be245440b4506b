use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// The nonlinearity between the two layers of a block's MLP, under its Hugging Face name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Activation {
    /// `gelu`: with the error function, as in ViT and BERT.
    #[default]
    Gelu,
    /// `gelu_new`, `gelu_pytorch_tanh`: with the tanh approximation, as in GPT-2.
    GeluTanh,
    /// `relu`.
    Relu,
    /// `silu`, `swish`.
    Silu,
}

impl Activation {
    /// The operation of that name.
    #[must_use]
    pub fn operation(self) -> layerwise_ops::Activation {
        match self {
            Self::Gelu => layerwise_ops::Activation::Gelu,
            Self::GeluTanh => layerwise_ops::Activation::GeluTanh,
            Self::Relu => layerwise_ops::Activation::Relu,
            Self::Silu => layerwise_ops::Activation::Silu,
        }
    }

    /// Its name in a `config.json`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Gelu => "gelu",
            Self::GeluTanh => "gelu_new",
            Self::Relu => "relu",
            Self::Silu => "silu",
        }
    }
}

impl FromStr for Activation {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        Ok(match name {
            "gelu" => Self::Gelu,
            "gelu_new" | "gelu_pytorch_tanh" => Self::GeluTanh,
            "relu" => Self::Relu,
            "silu" | "swish" => Self::Silu,
            other => return Err(Error::Activation { name: other.to_owned() }),
        })
    }
}

impl TryFrom<String> for Activation {
    type Error = Error;

    fn try_from(name: String) -> Result<Self> {
        name.parse()
    }
}

impl From<Activation> for String {
    fn from(activation: Activation) -> Self {
        activation.name().to_owned()
    }
}
