//! Products with panels on processors with AVX-512.
//!
//! Kernels of six rows pay for a weight that comes from beyond the second-level cache by its way, and then for the arithmetic of all rows behind the sixth.
//! Here twelve rows meet each line of a panel, and what comes next is fetched meanwhile.

#![allow(unsafe_code)] // Vector instructions on raw pointers; bounds are checked before.

use std::{
    arch::x86_64::{
        __m512, _MM_HINT_T1, _mm_prefetch, _mm512_fmadd_ps, _mm512_load_ps, _mm512_mask_loadu_ps,
        _mm512_mask_storeu_ps, _mm512_mul_ps, _mm512_set1_ps, _mm512_setzero_ps,
    },
    cell::Cell,
};

use crate::{
    gemm::{Mat, MatMut},
    panels::{INPUTS, LANES, ROWS},
};

/// Outputs of a panel.
pub(crate) const PANEL: usize = 2 * LANES;

/// Rows at once: sums of so many rows and of a panel's outputs, and the panel's own vectors, fill the registers.
const TOGETHER: usize = 12;

/// How far copied rows are apart. A power of 2 would have all of them compete for the same places of a cache.
const APART: usize = INPUTS + LANES;

/// Inputs that a panel is fetched ahead of where it is read.
const AHEAD: usize = 16;

thread_local! {
    /// Memory for some inputs of [`ROWS`] rows: too much for a stack.
    static MEMORY: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
}

/// `out = scale * x W^T`, or `out += ..`, of up to [`ROWS`] rows and [`INPUTS`] `inputs`; `panels` are of `W`, one behind the other.
///
/// # Safety
///
/// The processor has AVX-512F, and `panels` begins at a line: 64 bytes.
pub(crate) unsafe fn product(
    mut out: MatMut<'_>,
    add: bool,
    x: Mat<'_>,
    inputs: usize,
    panels: &[f32],
    scale: f32,
) {
    let (rows, columns) = (out.rows, out.columns);
    assert!(rows <= ROWS && inputs <= INPUTS && x.column == 1);
    assert!(
        panels.len().is_multiple_of(LANES * inputs)
            && panels.len() >= columns.next_multiple_of(LANES) * inputs
    );
    debug_assert!(panels.as_ptr().addr().is_multiple_of(4 * LANES));
    let mut memory = MEMORY.take();
    memory.resize(ROWS * APART, 0.);
    for (row, to) in memory.chunks_exact_mut(APART).take(rows).enumerate() {
        to[..inputs].copy_from_slice(&x.data[row * x.row..][..inputs]);
    }
    let parts = rows.div_ceil(TOGETHER);
    for (panel, first) in panels.chunks(PANEL * inputs).zip((0..columns).step_by(PANEL)) {
        let another = first + PANEL < columns;
        for part in 0..parts {
            let (row, end) = (part * rows / parts, (part + 1) * rows / parts);
            let at = panel.as_ptr();
            let ahead = match part {
                // Rows of one part have no time to fetch another panel; a bit of this one.
                0 if parts == 1 => (at.wrapping_add(AHEAD * PANEL), LANES),
                0 | 1 if another => (at.wrapping_add(panel.len() + part * panel.len() / 2), 0),
                _ => (at, 0),
            };
            let to =
                Outputs { at: out.at(row, first), stride: out.stride, columns: columns - first, scale, add };
            // SAFETY: the processor is the caller's. `inputs` of the rows from `row` on were copied above, the panel has whole
            // lines of them for one vector or two, and `out` holds `end - row` rows of `columns - first` elements from there.
            unsafe {
                let rows = memory.as_ptr().add(row * APART);
                let wide = usize::from(panel.len() > LANES * inputs);
                KERNELS[wide][end - row - 1](rows, at, inputs, ahead, to);
            }
        }
    }
    MEMORY.set(memory);
}

/// Where a kernel writes, and what.
struct Outputs {
    at: *mut f32,
    stride: usize,
    /// How many there are, if they do not fill the vectors.
    columns: usize,
    scale: f32,
    add: bool,
}

/// `(rows, panel, inputs, (what to fetch meanwhile, to the line after it or 0), outputs)`.
type Kernel = unsafe fn(*const f32, *const f32, usize, (*const f32, usize), Outputs);

macro_rules! kernels {
    ($vectors:literal: $($rows:literal)*) => { [$(kernel::<$vectors, $rows>),*] };
}

/// `KERNELS[v - 1][r - 1]`: `v` vectors of outputs, `r` rows.
static KERNELS: [[Kernel; TOGETHER]; 2] =
    [kernels!(1: 1 2 3 4 5 6 7 8 9 10 11 12), kernels!(2: 1 2 3 4 5 6 7 8 9 10 11 12)];

/// # Safety
///
/// The processor has AVX-512F; `R` rows of `inputs` can be read, [`APART`] from each other; `V` vectors of each input of the panel, which begins at a line;
/// and the outputs can be written. What is fetched ahead need not be there.
#[target_feature(enable = "avx512f")]
unsafe fn kernel<const V: usize, const R: usize>(
    rows: *const f32,
    mut panel: *const f32,
    inputs: usize,
    (mut ahead, step): (*const f32, usize),
    to: Outputs,
) {
    // SAFETY: the caller's; lanes without an output are masked.
    unsafe {
        let mut sums = [[_mm512_setzero_ps(); V]; R];
        for input in 0..inputs {
            _mm_prefetch::<_MM_HINT_T1>(ahead.cast());
            _mm_prefetch::<_MM_HINT_T1>(ahead.wrapping_add(step).cast());
            ahead = ahead.wrapping_add(LANES + step);
            let weights: [__m512; V] = std::array::from_fn(|v| _mm512_load_ps(panel.add(v * LANES)));
            panel = panel.add(V * LANES);
            for (row, sums) in sums.iter_mut().enumerate() {
                let x = _mm512_set1_ps(*rows.add(row * APART + input));
                for (sum, weight) in sums.iter_mut().zip(weights) {
                    *sum = _mm512_fmadd_ps(x, weight, *sum);
                }
            }
        }
        let scale = _mm512_set1_ps(to.scale);
        for (row, sums) in sums.iter().enumerate() {
            for (v, sum) in sums.iter().enumerate() {
                let there = to.columns.saturating_sub(v * LANES).min(LANES);
                let mask = ((1u32 << there) - 1) as u16;
                let at = to.at.wrapping_add(row * to.stride + v * LANES);
                let sum = if to.add {
                    _mm512_fmadd_ps(scale, *sum, _mm512_mask_loadu_ps(_mm512_setzero_ps(), mask, at))
                } else {
                    _mm512_mul_ps(scale, *sum)
                };
                _mm512_mask_storeu_ps(at, mask, sum);
            }
        }
    }
}
