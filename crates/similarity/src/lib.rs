#![doc = include_str!("../README.md")]

#[cfg(feature = "candle")]
mod away;
#[cfg(feature = "candle")]
mod candle;
mod cca;
mod cka;
mod collapse;
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
#[cfg(feature = "candle")]
mod on_device;
mod pairwise;
mod pca;
mod pnka;
mod probe;
mod procrustes;
mod quantiles;
mod representation;
mod rsa;
mod saturation;
mod spectral;
mod stack;
mod state;

pub use cca::{cca, pwcca, svcca};
pub use cka::{Estimator, cka, rbf_cka};
pub use collapse::{ClassAccumulator, Collapse, class_means, neural_collapse};
pub use cos::{Centring, angular_distance, cos, cos_per_sample};
pub use cos_accumulator::CosAccumulator;
pub use error::{Error, Result};
pub use knn::mutual_knn;
pub use mean::MeanAccumulator;
pub use measure::Measure;
pub use moments::MomentAccumulator;
pub use pairwise::{pairwise, pairwise_between, per_sample, similarity};
pub use pca::{Pca, pca};
pub use pnka::{pnka, pnka_per_sample};
pub use probe::{Probe, ProbeConfig, fit_probe};
pub use procrustes::{procrustes, procrustes_distance};
pub use quantiles::quantiles;
pub use representation::{Real, Representation};
pub use rsa::{Distance, rsa};
pub use saturation::saturation;
pub use stack::{BlockRelations, block_influence, block_relations};
