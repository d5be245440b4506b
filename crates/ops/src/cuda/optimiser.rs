//! All parameters in one launch: tables of pointers, which a block finds its tensor in.

use candle_core::{
    DType, Result, Tensor, bail,
    cuda_backend::cudarc::driver::{DevicePtr, DevicePtrMut, DeviceRepr},
};

use super::launch::{Fresh, Input, Number, by_type, grid, launch, room, visit};
use crate::simd::AdamW;

/// Elements that a block takes.
const PART: usize = 4096;

/// What [`adamw`] updates; all contiguous, of one shape, on one GPU, and no two of one memory.
pub(crate) struct Update<'a> {
    /// f32.
    pub(crate) param: &'a Tensor,
    /// First and second moment, f32.
    pub(crate) moments: [&'a Tensor; 2],
    /// Of any type of number.
    pub(crate) gradient: &'a Tensor,
    /// The parameter in another type.
    pub(crate) copy: Option<&'a Tensor>,
    pub(crate) by: AdamW,
}

/// A row of the table, as the kernel's.
#[repr(C)]
#[derive(Clone, Copy)]
struct Parameter {
    p: u64,
    m: u64,
    v: u64,
    gradient: u64,
    copy: u64,
    count: u64,
    first: u32,
    gradient_type: u32,
    copy_type: u32,
    scale: f32,
    keep: f32,
    rate: f32,
    correction: f32,
    beta1: f32,
    beta2: f32,
    fresh1: f32,
    fresh2: f32,
    eps: f32,
}

// SAFETY: numbers only, without gaps.
unsafe impl DeviceRepr for Parameter {}

/// A row of the table, as the kernel's.
#[repr(C)]
#[derive(Clone, Copy)]
struct Numbers {
    values: u64,
    count: u64,
    first: u32,
    of: u32,
}

// SAFETY: numbers only, without gaps.
unsafe impl DeviceRepr for Numbers {}

/// One step of AdamW of each.
pub(crate) fn adamw(updates: &[Update<'_>]) -> Result<()> {
    let Some(first) = updates.first() else { return Ok(()) };
    let device = Input::of(first.param)?.device()?;
    let mut blocks = Blocks::default();
    let row = |update: &Update<'_>| {
        let Update { param, moments: [m, v], gradient, copy, by } = update;
        let copied = copy.map_or(DType::F32, Tensor::dtype);
        Ok(Parameter {
            p: written(param)?,
            m: written(m)?,
            v: written(v)?,
            gradient: read(gradient)?,
            copy: copy.map_or(Ok(0), written)?,
            count: param.elem_count() as u64,
            first: blocks.take(param.elem_count())?,
            gradient_type: code(gradient.dtype()),
            copy_type: code(copied),
            scale: by.gradient,
            keep: by.keep,
            rate: by.rate,
            correction: by.correction,
            beta1: by.beta1,
            beta2: by.beta2,
            fresh1: by.fresh1,
            fresh2: by.fresh2,
            eps: by.eps,
        })
    };
    let table = updates.iter().map(row).collect::<Result<Vec<_>>>()?;
    let (table, rows) = (device.clone_htod(&table)?, updates.len() as i32);
    // The tensors outlive the launch, and what frees them later waits for it: all of it is this thread's stream's.
    launch!(device, OPTIMISER, "adamw", grid((blocks.0, 1), (256, 1))?, arguments => arguments.arg(&table).arg(&rows));
    Ok(())
}

/// Sum of the squares of all numbers of contiguous tensors of one GPU. Reads one number back.
pub(crate) fn sum_of_squares(tensors: &[&Tensor]) -> Result<f64> {
    let Some(first) = tensors.first() else { return Ok(0.) };
    let device = Input::of(first)?.device()?;
    let mut blocks = Blocks::default();
    let row = |xs: &&Tensor| {
        let count = xs.elem_count();
        let (values, first, of) = (read(xs)?, blocks.take(count)?, code(xs.dtype()));
        Ok(Numbers { values, count: count as u64, first, of })
    };
    let table = tensors.iter().map(row).collect::<Result<Vec<_>>>()?;
    let (table, rows) = (device.clone_htod(&table)?, tensors.len() as i32);
    let mut sums = room::<f64>(&device, blocks.0)?;
    launch!(device, OPTIMISER, "sums_of_squares", grid((blocks.0, 1), (256, 1))?, arguments =>
        arguments.arg(&table).arg(&mut sums).arg(&rows));
    Fresh::new(sums, &device, blocks.0).tensor().sum_all()?.to_scalar()
}

/// Blocks that tensors have so far.
#[derive(Default)]
struct Blocks(usize);

impl Blocks {
    /// Takes those of a tensor of `count` numbers; gives the first.
    fn take(&mut self, count: usize) -> Result<u32> {
        let first = self.0;
        self.0 += count.div_ceil(PART);
        match u32::try_from(first) {
            Ok(first) => Ok(first),
            Err(_) => bail!("more than {} numbers at once", u64::from(u32::MAX) * PART as u64),
        }
    }
}

/// The kernels' name of a type of number.
fn code(dtype: DType) -> u32 {
    match dtype {
        DType::F16 => 1,
        DType::BF16 => 2,
        _ => 0,
    }
}

/// Where a contiguous tensor is, to be read.
fn read(xs: &Tensor) -> Result<u64> {
    by_type!(xs.dtype(), place(xs))
}

fn place<T: Number>(xs: &Tensor) -> Result<u64> {
    let input = Input::of(xs)?;
    let stream = input.device()?.cuda_stream();
    let view = input.view::<T>()?;
    let (place, _reading) = view.device_ptr(&stream);
    Ok(place)
}

/// Where a contiguous tensor is, to be changed: its lock was free, and what this thread reads later is read in the same stream.
fn written(xs: &Tensor) -> Result<u64> {
    by_type!(xs.dtype(), place_of_own(xs))
}

fn place_of_own<T: Number>(xs: &Tensor) -> Result<u64> {
    let mut to = 0;
    visit(xs, |storage| {
        let stream = storage.device.cuda_stream();
        let slice = storage.as_cuda_slice_mut::<T>()?;
        (to, _) = slice.device_ptr_mut(&stream);
        Ok(())
    })?;
    Ok(to)
}
