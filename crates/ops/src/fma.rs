//! Products with panels on processors with FMA and without AVX-512: the micro-kernels of `gemm-f32`.

#![allow(unsafe_code)] // They take raw pointers; bounds are checked before they are called.

use gemm_f32::microkernel::fma::f32::UKR;

use crate::{
    gemm::{Mat, MatMut},
    panels::LANES,
};

/// Numbers of a vector.
const VECTOR: usize = 8;

/// Outputs of a panel: `UKR[v - 1][r - 1]` multiplies `v` vectors of outputs by `r` rows.
pub(crate) const PANEL: usize = VECTOR * UKR.len();

/// `out = scale * x W^T`, or `out += ..`, of `inputs`; `panels` are of `W`, one behind the other.
///
/// # Safety
///
/// The processor has FMA.
pub(crate) unsafe fn product(
    mut out: MatMut<'_>,
    add: bool,
    x: Mat<'_>,
    inputs: usize,
    panels: &[f32],
    scale: f32,
) {
    let (rows, columns) = (out.rows, out.columns);
    assert!(x.column == 1 && x.holds(rows, inputs));
    assert!(panels.len() >= columns.next_multiple_of(LANES) * inputs);
    for (panel, first) in panels.chunks(PANEL * inputs).zip((0..columns).step_by(PANEL)) {
        let columns = PANEL.min(columns - first);
        let kernels = &UKR[columns.div_ceil(VECTOR) - 1];
        for row in (0..rows).step_by(kernels.len()) {
            let rows = kernels.len().min(rows - row);
            // SAFETY: the processor is the caller's. A kernel writes `rows` times `columns` elements of `out`, which holds them; reads
            // `columns` in whole vectors, of `inputs`, of the panel, which has whole lines; and `rows` rows of `x`, which holds them.
            unsafe {
                kernels[rows - 1](
                    columns,
                    rows,
                    inputs,
                    out.at(row, first),
                    panel.as_ptr(),
                    x.data.as_ptr().add(row * x.row),
                    out.stride as isize,
                    1,
                    (panel.len() / inputs) as isize,
                    1,
                    x.row as isize,
                    1.,
                    scale,
                    // 0: what is in `out` counts nothing; 1: it is added to.
                    u8::from(add),
                    false,
                    false,
                    false,
                    std::ptr::null(),
                );
            }
        }
    }
}
