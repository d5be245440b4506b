#![doc = include_str!("../README.md")]

mod accounting;
mod engine;
mod error;
mod evaluate;
mod measure;

pub use accounting::{histogram, layer_ratio, minimal_depth};
pub use engine::{Exited, leave_early};
pub use error::{Error, Result};
pub use evaluate::{LayerScores, evaluate};
pub use measure::{ExitReport, measure};
