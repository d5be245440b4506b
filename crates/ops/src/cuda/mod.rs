//! The kernels in `kernels/`, on NVIDIA GPUs. Where [`has_kernel`] says no, candle's own operations run.

#![allow(unsafe_code)] // Launching a kernel is: arguments are untyped.

mod activation;
mod attention;
mod blas;
mod columns;
mod cross_entropy;
mod dropout;
mod launch;
mod layer_norm;
mod linear;
mod memory;
mod multi_exit;
mod optimiser;
mod read_back;
mod record;
mod rows;
mod softmax;

pub(crate) use activation::activation;
pub(crate) use attention::attention;
pub(crate) use cross_entropy::{certainty, cross_entropy};
pub(crate) use dropout::dropout;
pub(crate) use launch::has_kernel;
pub(crate) use layer_norm::layer_norm;
pub(crate) use linear::linear;
pub(crate) use memory::keep_memory;
pub(crate) use multi_exit::{Counted, multi_exit, recorded};
pub(crate) use optimiser::{Update, adamw, sum_of_squares};
pub(crate) use read_back::{OnTheWay, read_back};
pub(crate) use rows::{embedding, select};
pub(crate) use softmax::softmax;
