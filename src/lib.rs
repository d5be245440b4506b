#![doc = include_str!("../README.md")]

#[cfg(feature = "hub")]
pub mod hub;

#[doc(inline)]
pub use layerwise_data as data;
#[doc(inline)]
pub use layerwise_exit as exit;
#[doc(inline)]
pub use layerwise_models as models;
#[doc(inline)]
pub use layerwise_ops as ops;
#[doc(inline)]
pub use layerwise_similarity as similarity;
#[doc(inline)]
pub use layerwise_train as train;
