#![doc = include_str!("../README.md")]

mod accounting;
mod awake;
mod bounds;
mod budget;
mod cost_table;
mod costs;
mod elastic;
mod engine;
mod error;
mod evaluate;
mod gate;
mod generate;
mod guarantee;
mod held_out;
mod measure;
mod monitor;
mod p_value;
mod policy;
mod pools;
mod saved;
mod serve;
mod signal;
mod thresholds;

pub use accounting::{flop_ratio, histogram, layer_ratio, minimal_depth};
pub use bounds::{FixedDepth, Oracle, Random};
pub use budget::{Budget, milliseconds, within_budget};
pub use cost_table::CostTable;
pub use costs::{Costs, Figures};
pub use elastic::{Depth, DeviceLimits, best_depth, depth_latencies};
pub use engine::{Compaction, Engine, Exited, leave_early};
pub use error::{Error, Result};
pub use evaluate::{LayerScores, evaluate};
pub use gate::Gate;
pub use generate::{
    Continuation, Decoding, Generation, GenerationConfig, GenerationCounts, Sampling, Speculate, Token,
    generate,
};
pub use guarantee::{Guarantee, Risk, Test, guaranteed};
pub use held_out::{HeldOut, Outcome};
pub use measure::{ExitReport, measure};
pub use monitor::{Monitor, disagrees};
pub use p_value::{binomial_cdf, binomial_upper, hoeffding_bentkus};
pub use policy::{Check, LateVerdict, Policy, Reads, Verdict};
pub use pools::{PoolConfig, Pools, Work};
pub use saved::{Calibration, SavedExits};
pub use serve::{Client, Pending, ServeConfig, Served, Server, Ticket, serve};
pub use signal::Signal;
pub use thresholds::Thresholds;

use evaluate::argmax;
