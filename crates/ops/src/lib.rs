#![doc = include_str!("../README.md")]

mod activation;
mod adamw;
mod attention;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod backward;
mod certainty;
mod cross_entropy;
#[cfg(feature = "cuda")]
mod cuda;
mod dropout;
mod embedding;
mod feed_forward;
#[cfg(target_arch = "x86_64")]
mod fma;
mod gelu;
mod gemm;
mod half;
mod heads;
mod host;
pub mod init;
mod layer_norm;
mod linear;
mod many;
mod memory;
mod multi_exit;
mod packed_exit;
mod panels;
pub mod plain;
mod read_back;
mod self_attention;
mod simd;
mod softmax;
mod squares;
mod sublayer;
mod weights;

pub use activation::Activation;
pub use adamw::{AdamWStep, AdamWUpdate, adamw_step, adamw_steps};
pub use attention::{Attention, attention};
pub use backward::backward;
pub use certainty::certainty;
pub use cross_entropy::{CrossEntropy, Reduction, cross_entropy};
pub use dropout::{Dropout, dropout};
pub use embedding::{embedding, select_rows};
pub use feed_forward::{FeedForward, feed_forward};
pub use gelu::{gelu, gelu_tanh};
pub use layer_norm::layer_norm;
pub use linear::linear;
pub use memory::keep_memory;
pub use multi_exit::{ExitSummary, MANY_LOGITS, MultiExit, MultiExitLoss, multi_exit_linear_cross_entropy};
pub use packed_exit::PackedExit;
pub use read_back::{ReadBack, read_back};
pub use self_attention::{SelfAttention, self_attention};
pub use softmax::softmax;
pub use squares::sum_of_squares;
pub use sublayer::threads_share_block;
pub use weights::{Affine, Norm, NormPlace, Packed};
