#![doc = include_str!("../README.md")]

mod audit;
mod checkpoint;
mod config;
mod error;
mod events;
mod large_heads;
mod loss;
mod objective;
mod optimiser;
mod samples;
mod schedule;
mod trainer;

pub use audit::{audit, audit_gradients};
pub use config::TrainConfig;
pub use error::{Error, Result};
pub use events::{Evaluate, Evaluation, Event, Hooks, OnEvent, StepRecord, TrainReport};
pub use loss::{Loss, loss};
pub use objective::{LayerWeights, Moment, Objective, Terms, Unit};
pub use optimiser::{
    AdamW, AdamWConfig, Gradients, ParamGroup, StepScale, accumulate, clip_factor, decays, global_norm,
    take_gradients,
};
pub use samples::{Samples, TensorSamples, epoch_order};
pub use schedule::Schedule;
pub use trainer::train;
