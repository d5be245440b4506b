//! Matrix products on slices with strides.

#![allow(unsafe_code)] // Products take raw pointers; the types here check and keep their bounds.

use std::marker::PhantomData;

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

    /// Rows of `width` without gaps.
    pub(crate) fn rows(data: &'a [f32], width: usize) -> Self {
        Self::new(data, width, 1)
    }

    /// The transpose, in place.
    pub(crate) fn t(self) -> Self {
        Self { data: self.data, row: self.column, column: self.row }
    }

    /// The matrix without its first rows and columns.
    pub(crate) fn from(self, row: usize, column: usize) -> Self {
        Self { data: &self.data[row * self.row + column * self.column..], ..self }
    }

    pub(crate) fn holds(&self, rows: usize, columns: usize) -> bool {
        (rows - 1) * self.row + (columns - 1) * self.column < self.data.len()
    }
}

/// The matrix that a product writes: row `i` stands at `i * stride`. Blocks of it can be written by several threads.
pub(crate) struct MatMut<'a> {
    pointer: *mut f32,
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    pub(crate) stride: usize,
    borrow: PhantomData<&'a mut [f32]>,
}

// SAFETY: a `MatMut` is the only way to its elements while it lives, as a mutable slice is; blocks are disjoint.
unsafe impl Send for MatMut<'_> {}

impl<'a> MatMut<'a> {
    /// The first `columns` of rows of `stride` each.
    pub(crate) fn new(data: &'a mut [f32], columns: usize, stride: usize) -> Self {
        assert!(columns <= stride && stride > 0, "a row of {columns} in {stride}");
        let rows = (data.len() + stride - columns) / stride;
        Self { pointer: data.as_mut_ptr(), rows, columns, stride, borrow: PhantomData }
    }

    /// Rows of `width` without gaps.
    pub(crate) fn rows(data: &'a mut [f32], width: usize) -> Self {
        Self::new(data, width, width)
    }

    /// The same matrix, for a while.
    pub(crate) fn reborrow(&mut self) -> MatMut<'_> {
        MatMut { borrow: PhantomData, ..*self }
    }

    /// Blocks of `rows` times `columns`, the last ones smaller, row of blocks by row of blocks.
    pub(crate) fn blocks(self, rows: usize, columns: usize) -> impl Iterator<Item = MatMut<'a>> {
        let down = (0..self.rows).step_by(rows.max(1));
        down.flat_map(move |i| (0..self.columns).step_by(columns.max(1)).map(move |j| (i, j))).map(
            move |(i, j)| MatMut {
                pointer: self.pointer.wrapping_add(i * self.stride + j),
                rows: rows.min(self.rows - i),
                columns: columns.min(self.columns - j),
                stride: self.stride,
                borrow: PhantomData,
            },
        )
    }

    /// Where element `(i, j)` stands.
    pub(crate) fn at(&mut self, i: usize, j: usize) -> *mut f32 {
        self.pointer.wrapping_add(i * self.stride + j)
    }

    /// Row `i`.
    pub(crate) fn row(&mut self, i: usize) -> &mut [f32] {
        assert!(i < self.rows, "row {i} of {}", self.rows);
        // SAFETY: the row lies within the slice that `new` got, and nothing else borrows it.
        unsafe { std::slice::from_raw_parts_mut(self.pointer.add(i * self.stride), self.columns) }
    }
}

/// Whether one product may use all threads of the rayon pool that it is called in, or runs inside a task that is parallel
/// already. Threads share rows and columns out and never cut a sum, so the result does not depend on their number.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Threads {
    All,
    One,
}

/// Multiplications that take as long as waking another thread.
pub(crate) const WAKE: usize = 48 * 48 * 256;

impl Threads {
    /// One for so few multiplications that waking another would take longer.
    pub(crate) fn worth(self, multiplications: usize) -> Self {
        if multiplications < WAKE { Self::One } else { self }
    }

    /// How many there are.
    ///
    /// Not candle's `get_num_threads`: it parses /proc/cpuinfo at every call unless `RAYON_NUM_THREADS` is set.
    pub(crate) fn count(self) -> usize {
        match self {
            Self::All => rayon::current_num_threads(),
            Self::One => 1,
        }
    }
}

/// `lhs rhs`, `(m, n)`, in memory that is not zeroed first; `lhs` is `(m, k)`, `rhs` `(k, n)`.
pub(crate) fn gemm_new(
    (m, n, k): (usize, usize, usize),
    lhs: Mat<'_>,
    rhs: Mat<'_>,
    threads: Threads,
) -> Vec<f32> {
    let mut out = Vec::with_capacity(m * n);
    let all = MatMut { pointer: out.as_mut_ptr(), rows: m, columns: n, stride: n, borrow: PhantomData };
    gemm(all, false, lhs, rhs, k, 1., threads);
    // SAFETY: the memory is there, and the product has written every element. It does not add, so it has read none; gemm may
    // have lent the memory to itself as a slice on the way, of plain numbers of which every pattern of bits is one.
    unsafe { out.set_len(m * n) };
    out
}

/// `out = scale * lhs rhs`, or `out += ..` with `add`; `lhs` is `(out.rows, k)`, `rhs` `(k, out.columns)`.
pub(crate) fn gemm(
    mut out: MatMut<'_>,
    add: bool,
    lhs: Mat<'_>,
    rhs: Mat<'_>,
    k: usize,
    scale: f32,
    threads: Threads,
) {
    let (m, n) = (out.rows, out.columns);
    if m == 0 || n == 0 {
        return;
    }
    if k == 0 {
        if !add {
            for (i, j) in (0..m).flat_map(|i| (0..n).map(move |j| (i, j))) {
                // SAFETY: the element lies within the slice that `new` got, and nothing else borrows it.
                unsafe { out.at(i, j).write(0.) };
            }
        }
        return;
    }
    assert!(lhs.holds(m, k) && rhs.holds(k, n), "gemm: a slice is too short");
    let parallelism = match threads.count() {
        1 => gemm::Parallelism::None,
        threads => gemm::Parallelism::Rayon(threads),
    };
    // SAFETY: the largest index of each operand is below its length (asserted above), the smallest is 0, and nothing else
    // borrows the elements of `out`, so it overlaps neither operand.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.at(0, 0),
            1,
            out.stride as isize,
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
