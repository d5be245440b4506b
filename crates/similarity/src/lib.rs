#![doc = include_str!("../README.md")]

mod cka;
mod cos;
mod error;
mod pairwise;
mod representation;
#[cfg(feature = "candle")]
pub mod tensor;

pub use cka::{Estimator, cka};
pub use cos::{Centring, cos, cos_per_sample};
pub use error::{Error, Result};
pub use pairwise::{Measure, pairwise, pairwise_between};
pub use representation::Real;
