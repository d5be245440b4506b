#![doc = include_str!("../README.md")]

#[cfg(feature = "candle")]
mod candle;
mod cca;
mod cka;
mod cos;
mod cos_accumulator;
mod error;
mod frame;
mod gram;
mod in_memory;
mod knn;
mod linalg;
mod mean;
mod measure;
mod moments;
mod pairwise;
mod pnka;
mod procrustes;
mod representation;
mod rsa;
mod spectral;
mod state;

pub use cca::{cca, pwcca, svcca};
pub use cka::{Estimator, cka, rbf_cka};
pub use cos::{Centring, angular_distance, cos, cos_per_sample};
pub use cos_accumulator::CosAccumulator;
pub use error::{Error, Result};
pub use knn::mutual_knn;
pub use mean::MeanAccumulator;
pub use measure::Measure;
pub use moments::MomentAccumulator;
pub use pairwise::{pairwise, pairwise_between, per_sample, similarity};
pub use pnka::{pnka, pnka_per_sample};
pub use procrustes::{procrustes, procrustes_distance};
pub use representation::{Real, Representation};
pub use rsa::{Distance, rsa};
