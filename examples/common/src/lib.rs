#![doc = include_str!("../README.md")]

pub mod checkpoint;
pub mod curves;
pub mod cut;
pub mod data_sets;
pub mod encoded;
pub mod exits;
pub mod files;
pub mod flags;
pub mod glue;
pub mod hub;
pub mod images;
pub mod input;
pub mod interrupt;
pub mod language;
pub mod layers;
pub mod layerwise;
pub mod measures;
pub mod memory;
pub mod plots;
pub mod progress;
pub mod recipes;
pub mod report;
pub mod results;
pub mod run;
pub mod sentences;
pub mod similarity;
pub mod table;
pub mod task_exits;
pub mod texts;
pub mod training;
pub mod vision;

pub use flags::{CommonFlags, Preset};
pub use progress::Progress;
pub use report::Report;
pub use results::{ModelResults, Results};
pub use run::{in_pool, run_main};
pub use table::Table;

/// Makes mimalloc the program's allocator: training allocates and frees many equal buffers, which it recycles.
#[macro_export]
macro_rules! fast_allocator {
    () => {
        #[global_allocator]
        static ALLOCATOR: $crate::MiMalloc = $crate::MiMalloc;
    };
}

#[doc(hidden)]
pub use mimalloc::MiMalloc;
