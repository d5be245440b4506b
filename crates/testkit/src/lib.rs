#![doc = include_str!("../README.md")]

mod close;
mod counted;
mod grad;
mod padded;
mod random;
mod scripted;
mod shared;
mod tiny;
mod vit;

pub use close::{assert_close, max_abs_diff};
pub use counted::Counted;
pub use grad::check_gradients;
pub use padded::Padded;
pub use random::random;
pub use scripted::Scripted;
pub use shared::{from_env, skipped};
pub use tiny::TinyStack;
pub use vit::{tiny_vit, tiny_vit_config};
