#![doc = include_str!("../README.md")]

mod params;
pub mod tap;

pub use params::Params;
pub use tap::{Batch, Hidden, Pass, Tapped};
