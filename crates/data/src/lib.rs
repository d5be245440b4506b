#![doc = include_str!("../README.md")]

mod augment;
mod batches;
mod bpe;
mod buckets;
pub mod cifar10;
mod digits;
mod encoder;
mod error;
mod files;
pub mod glue;
#[cfg(feature = "parquet")]
pub mod hugging_face;
pub mod idx;
#[cfg(feature = "images")]
mod images;
mod lines;
pub mod metrics;
mod normalise;
mod order;
#[cfg(feature = "parquet")]
mod parquet;
#[cfg(feature = "images")]
mod preprocess;
#[cfg(feature = "images")]
mod resize;
mod set;
mod shards;
mod split;
mod text;
mod token_blocks;
mod vocabulary;
mod whole_file;

pub use augment::{Augment, mirror, rotate, shift};
pub use batches::{Batches, epoch_order};
pub use bpe::{ByteBpe, END_OF_TEXT, TextStream};
pub use buckets::bucketed_order;
pub use digits::digits;
pub use encoder::{Encoded, Encoder, Padded};
pub use error::{Error, Result};
#[cfg(feature = "images")]
pub use images::{image_files, read_image};
pub use normalise::Normalise;
#[cfg(feature = "images")]
pub use preprocess::{Preprocess, Size};
#[cfg(feature = "images")]
pub use resize::resize;
pub use set::{ImageSet, Shape};
pub use shards::missing_shards;
pub use split::Split;
pub use text::{Targets, Text, TextSet, text_file, text_lines};
pub use token_blocks::{TokenBlocks, most_frequent};
