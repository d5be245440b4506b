use std::path::PathBuf;

/// The folder of real data sets and checkpoints that some tests read: `$LAYERWISE_SHARED`.
///
/// `None` when the variable is not set; the caller then skips with a printed reason.
#[must_use]
pub fn shared_dir() -> Option<PathBuf> {
    let dir = std::env::var_os("LAYERWISE_SHARED").map(PathBuf::from)?;
    dir.is_dir().then_some(dir)
}
