//! Numbers on their way to the processor while the GPU goes on.

use std::sync::{Mutex, PoisonError};

use candle_core::{
    CudaDevice, Result, Tensor,
    cuda_backend::{
        WrapErr,
        cudarc::driver::{CudaEvent, CudaStream, HostSlice, PinnedHostSlice, SyncOnDrop},
    },
};

use super::launch::Input;

/// Memory that a GPU writes to by itself, to be used again: to get and to give back some makes the processor wait.
static FREE: Mutex<Vec<(usize, PinnedHostSlice<f32>)>> = Mutex::new(Vec::new());

/// Pieces that are kept.
const KEPT: usize = 16;

/// f32 numbers on their way.
pub(crate) struct OnTheWay {
    count: usize,
    gpu: usize,
    memory: Option<PinnedHostSlice<f32>>,
    /// Of candle's streams the memory's own event is not always told.
    there: CudaEvent,
}

/// Sends the numbers of a contiguous f32 tensor on their way.
pub(crate) fn read_back(xs: &Tensor) -> Result<OnTheWay> {
    let (input, count) = (Input::of(xs)?, xs.elem_count());
    let device = input.device()?;
    let (gpu, mut memory) = room(&device, count)?;
    device.memcpy_dtoh(&input.view::<f32>()?, &mut Front(&mut memory, count))?;
    let there = device.cuda_stream().record_event(None).w()?;
    Ok(OnTheWay { count, gpu, memory: Some(memory), there })
}

fn room(device: &CudaDevice, count: usize) -> Result<(usize, PinnedHostSlice<f32>)> {
    let context = device.cuda_stream().context().clone();
    let gpu = context.ordinal();
    let mut free = FREE.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(at) = free.iter().position(|(of, memory)| *of == gpu && memory.len() >= count) {
        return Ok(free.swap_remove(at));
    }
    drop(free);
    // SAFETY: f32 is any bits. Not write-combined: it is read here.
    let memory = unsafe { context.alloc_pinned_with_flags(count.next_power_of_two().max(1024), 0) }.w()?;
    Ok((gpu, memory))
}

/// The first so many numbers: a copy is as long as what it goes to.
struct Front<'a>(&'a mut PinnedHostSlice<f32>, usize);

impl HostSlice<f32> for Front<'_> {
    fn len(&self) -> usize {
        self.1
    }

    unsafe fn stream_synced_slice<'a>(&'a self, stream: &'a CudaStream) -> (&'a [f32], SyncOnDrop<'a>) {
        // SAFETY: as the caller's.
        let (all, sync) = unsafe { self.0.stream_synced_slice(stream) };
        (&all[..self.1], sync)
    }

    unsafe fn stream_synced_mut_slice<'a>(
        &'a mut self,
        stream: &'a CudaStream,
    ) -> (&'a mut [f32], SyncOnDrop<'a>) {
        // SAFETY: as the caller's.
        let (all, sync) = unsafe { self.0.stream_synced_mut_slice(stream) };
        (&mut all[..self.1], sync)
    }
}

impl OnTheWay {
    /// Waits until they are there.
    pub(crate) fn wait(mut self) -> Result<Vec<f32>> {
        self.there.synchronize().w()?;
        match &mut self.memory {
            Some(memory) => Ok(memory.as_slice().w()?[..self.count].to_vec()),
            None => Ok(Vec::new()),
        }
    }
}

impl Drop for OnTheWay {
    fn drop(&mut self) {
        let Some(memory) = self.memory.take() else { return };
        if self.there.synchronize().is_err() {
            // Nobody knows whether the GPU still writes there.
            std::mem::forget(memory);
            return;
        }
        let mut free = FREE.lock().unwrap_or_else(PoisonError::into_inner);
        if free.len() < KEPT {
            free.push((self.gpu, memory));
        }
    }
}
