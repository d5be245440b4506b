use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use candle_core::Tensor;
use layerwise_ops::threads_share_block;

/// Does the `work` between two blocks, after one that left this state, and keeps a thread of the pool awake meanwhile.
///
/// A check takes a few microseconds on one thread, between two blocks that all work on. A thread that finds nothing to do for that long goes
/// to sleep, and waking it takes longer than the check: on a virtual machine as long as a third of a small block.
pub(crate) fn keeping_awake<R>(hidden: &Tensor, work: impl FnOnce() -> R) -> R {
    let (samples, tokens, width) = match *hidden.dims() {
        [samples, tokens, width] => (samples, tokens, width),
        [samples, width] => (samples, 1, width),
        _ => return work(),
    };
    // Called from outside of the pool, each operation puts this thread to sleep anyway. And where one thread does the blocks alone, the
    // others had better sleep.
    if rayon::current_thread_index().is_none() || !threads_share_block(samples, tokens, width) {
        return work();
    }
    let done = Done(Arc::default());
    let is_done = Arc::clone(&done.0);
    rayon::spawn(move || {
        while !is_done.load(Ordering::Acquire) {
            // Helps where the check is large enough to be shared.
            if rayon::yield_now() != Some(rayon::Yield::Executed) {
                std::hint::spin_loop();
            }
        }
    });
    work()
}

/// Says that it is done, also when it panics.
struct Done(Arc<AtomicBool>);

impl Drop for Done {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}
