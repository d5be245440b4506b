#![doc = include_str!("../README.md")]

mod adamw;
mod attention;
mod cross_entropy;
mod dropout;
mod embedding;
mod gelu;
mod gemm;
mod half;
mod host;
pub mod init;
mod layer_norm;
mod linear;
pub mod plain;
mod simd;
mod softmax;

pub use adamw::{AdamWStep, adamw_step};
pub use attention::{Attention, attention};
pub use cross_entropy::{CrossEntropy, Reduction, cross_entropy};
pub use dropout::{Dropout, dropout};
pub use embedding::embedding;
pub use gelu::{gelu, gelu_tanh};
pub use layer_norm::layer_norm;
pub use linear::linear;
pub use softmax::softmax;
