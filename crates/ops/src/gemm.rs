//! Matrix products on slices with strides.

#![allow(unsafe_code)] // gemm takes raw pointers; the one function here checks their bounds.

/// A matrix in a slice: element `(i, j)` stands at `i * row + j * column`.
#[derive(Clone, Copy)]
pub(crate) struct Mat<'a> {
    pub(crate) data: &'a [f32],
    pub(crate) row: usize,
    pub(crate) column: usize,
}

impl<'a> Mat<'a> {
    pub(crate) fn new(data: &'a [f32], row: usize, column: usize) -> Self {
        Self { data, row, column }
    }

    /// The transpose, in place.
    pub(crate) fn t(self) -> Self {
        Self { data: self.data, row: self.column, column: self.row }
    }

    fn holds(&self, rows: usize, columns: usize) -> bool {
        (rows - 1) * self.row + (columns - 1) * self.column < self.data.len()
    }
}

/// Whether one product may use all threads of the rayon pool that it is called in, or runs inside a task that is parallel
/// already. Threads share rows and columns out and never cut a sum, so the result does not depend on their number.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Threads {
    All,
    One,
}

/// `out = scale * lhs rhs`, or `out += ..` with `add`; `out` is `(m, n)` in row order, `lhs` `(m, k)`, `rhs` `(k, n)`.
pub(crate) fn gemm(
    (m, n, k): (usize, usize, usize),
    out: &mut [f32],
    add: bool,
    lhs: Mat<'_>,
    rhs: Mat<'_>,
    scale: f32,
    threads: Threads,
) {
    if m == 0 || n == 0 {
        return;
    }
    if k == 0 {
        if !add {
            out.fill(0.);
        }
        return;
    }
    assert!(m * n <= out.len() && lhs.holds(m, k) && rhs.holds(k, n), "gemm: a slice is too short");
    // Not candle's `get_num_threads`: it parses /proc/cpuinfo at every call unless RAYON_NUM_THREADS is set.
    let parallelism = match (threads, rayon::current_num_threads()) {
        (Threads::All, threads) if threads > 1 => gemm::Parallelism::Rayon(threads),
        _ => gemm::Parallelism::None,
    };
    // SAFETY: the largest index of each operand is below its length (asserted above), the smallest is 0, and `out` is
    // borrowed mutably, so it overlaps neither operand.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.as_mut_ptr(),
            1,
            n as isize,
            add,
            lhs.data.as_ptr(),
            lhs.column as isize,
            lhs.row as isize,
            rhs.data.as_ptr(),
            rhs.column as isize,
            rhs.row as isize,
            1.,
            scale,
            false,
            false,
            false,
            parallelism,
        );
    }
}
