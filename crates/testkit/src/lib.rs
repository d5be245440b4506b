//! Gradient checks, tolerances, a tiny model and fixtures, shared by the tests of layerwise.

mod close;
mod grad;
mod shared;
mod tiny;

pub use close::{assert_close, max_abs_diff};
pub use grad::check_gradients;
pub use shared::shared_dir;
pub use tiny::TinyStack;
