#![doc = include_str!("../README.md")]

mod activation;
mod bert;
mod block;
mod builder;
mod cache;
mod checkpoint;
mod error;
mod exits;
mod flops;
mod folder;
mod gpt2;
mod ids;
mod labels;
mod layers;
mod loaded;
mod mlp;
mod params;
pub mod tap;
mod transformer;
mod validate;
mod vit;
mod whole_file;

pub use activation::Activation;
pub use bert::{Bert, BertConfig};
pub use cache::{KvCache, Next};
pub use error::{Error, Result, ShapeMismatch};
pub use exits::{ExitNorm, Heads, Pooling};
pub use flops::Flops;
pub use gpt2::{Gpt2, Gpt2Config};
pub use loaded::Loaded;
pub use mlp::{Mlp, MlpConfig};
pub use params::Params;
pub use tap::{Batch, Decoder, Hidden, LinearExit, Pass, Tapped};
pub use transformer::{Head, LoadOptions, Transformer};
pub use vit::{Vit, VitConfig};
pub use whole_file::write_whole;
