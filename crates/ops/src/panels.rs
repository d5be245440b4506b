//! Products with a weight whose elements stand in the order in which micro-kernels read them.

#![allow(unsafe_code)] // Kernels for some processors only; lines are read as numbers.

use std::sync::OnceLock;

use rayon::prelude::*;

use crate::gemm::{Mat, MatMut, Threads, gemm};
#[cfg(target_arch = "x86_64")]
use crate::{avx512, fma};

/// A cache line, so that whole vectors are loaded from one.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Line([f32; LANES]);

pub(crate) const LANES: usize = 16;

/// Inputs of a block of panels: a panel and the rows it meets fit the second-level cache.
pub(crate) const INPUTS: usize = 512;

/// Rows that meet all panels before the next ones do.
pub(crate) const ROWS: usize = 96;

/// What multiplies panels on some kind of processor; nothing where kernels want both sides in panels.
#[derive(Clone, Copy)]
enum Kernel {
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "x86_64")]
    Fma,
}

impl Kernel {
    /// The best that this processor runs.
    fn detected() -> Option<Self> {
        static KERNEL: OnceLock<Option<Kernel>> = OnceLock::new();
        *KERNEL.get_or_init(|| Self::all().next())
    }

    /// All that this processor runs, the best first.
    #[cfg_attr(not(target_arch = "x86_64"), allow(unused_mut, reason = "there is none"))]
    fn all() -> impl Iterator<Item = Self> {
        let mut kernels = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx512f") {
                kernels.push(Self::Avx512);
            }
            if is_x86_feature_detected!("fma") {
                kernels.push(Self::Fma);
            }
        }
        kernels.into_iter()
    }

    /// Outputs of a panel.
    fn panel(self) -> usize {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => avx512::PANEL,
            #[cfg(target_arch = "x86_64")]
            Self::Fma => fma::PANEL,
        }
    }
}

/// A weight `(outputs, inputs)` in panels: blocks of [`INPUTS`], of them panels of some outputs, of them input by input.
pub(crate) struct Panels {
    kernel: Option<Kernel>,
    outputs: usize,
    inputs: usize,
    /// In panels, the last one filled up with zeros to whole lines; without a kernel, the rows of the weight as they are.
    lines: Vec<Line>,
}

impl Panels {
    /// Lays out `weight` `(outputs, inputs)`.
    pub(crate) fn new(weight: Mat<'_>, outputs: usize, inputs: usize, threads: Threads) -> Self {
        let mut panels = Self::empty();
        panels.fill(weight, outputs, inputs, threads);
        panels
    }

    /// No weight yet: memory to be filled again and again.
    pub(crate) fn empty() -> Self {
        Self { kernel: Kernel::detected(), outputs: 0, inputs: 0, lines: Vec::new() }
    }

    /// Lays out another weight in the same memory.
    pub(crate) fn fill(&mut self, weight: Mat<'_>, outputs: usize, inputs: usize, threads: Threads) {
        assert!(
            outputs > 0 && inputs > 0 && weight.holds(outputs, inputs),
            "panels: the weight is too short"
        );
        (self.outputs, self.inputs) = (outputs, inputs);
        let panel = self.kernel.map_or(LANES, Kernel::panel);
        self.lines.resize(outputs.div_ceil(LANES) * inputs, Line([0.; LANES]));
        if self.kernel.is_none() {
            return self.copy(weight);
        }
        let mut parts = Vec::new();
        let mut rest = self.lines.as_mut_slice();
        for input in (0..inputs).step_by(INPUTS) {
            let count = INPUTS.min(inputs - input);
            for output in (0..outputs).step_by(panel) {
                let outputs = panel.min(outputs - output);
                let (part, after) = rest.split_at_mut(count * outputs.div_ceil(LANES));
                parts.push((part, weight.from(output, input), outputs, count));
                rest = after;
            }
        }
        let fill = |(part, weight, outputs, inputs): (&mut [Line], Mat<'_>, usize, usize)| {
            for first in (0..outputs).step_by(LANES) {
                let (part, weight) = (&mut part[first / LANES..], weight.from(first, 0));
                fill_lanes(part, outputs.div_ceil(LANES), weight, LANES.min(outputs - first), inputs);
            }
        };
        match threads.count() {
            1 => parts.into_iter().for_each(fill),
            _ => parts.into_par_iter().for_each(fill),
        }
    }

    /// Without a kernel: the rows of the weight, without gaps.
    fn copy(&mut self, weight: Mat<'_>) {
        let inputs = self.inputs;
        // SAFETY: a `Line` is 16 f32 and nothing else.
        let values = unsafe {
            std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast::<f32>(), self.lines.len() * LANES)
        };
        for (output, row) in values.chunks_exact_mut(inputs).take(self.outputs).enumerate() {
            let from = &weight.data[output * weight.row..];
            match weight.column {
                1 => row.copy_from_slice(&from[..inputs]),
                step => row.iter_mut().enumerate().for_each(|(input, x)| *x = from[input * step]),
            }
        }
    }

    /// `(outputs, inputs)` of the weight.
    pub(crate) fn shape(&self) -> (usize, usize) {
        (self.outputs, self.inputs)
    }

    fn values(&self) -> &[f32] {
        // SAFETY: a `Line` is 16 f32 and nothing else.
        unsafe { std::slice::from_raw_parts(self.lines.as_ptr().cast(), self.lines.len() * LANES) }
    }

    /// `out = scale * x W^T`, or `out += ..` with `add`; `x` is `(out.rows, inputs)` with neighbouring columns. `out` may have
    /// fewer columns than the weight has outputs: the first ones.
    pub(crate) fn product(&self, mut out: MatMut<'_>, add: bool, x: Mat<'_>, scale: f32, threads: Threads) {
        let inputs = self.inputs;
        let (rows, outputs) = (out.rows, out.columns);
        if rows == 0 || outputs == 0 {
            return;
        }
        assert!(outputs <= self.outputs && x.column == 1 && x.holds(rows, inputs), "product: shapes");
        let Some(kernel) = self.kernel else {
            let weight = Mat::rows(self.values(), inputs).t();
            return gemm(out, add, x, weight, inputs, scale, threads);
        };
        let threads = threads.worth(rows * outputs * inputs).count();
        let panel = kernel.panel();
        if threads == 1 {
            return self.block(kernel, out, add, x, scale, 0);
        }
        // Rows where there are enough for a few blocks each, so that none waits for long; otherwise outputs, by panels.
        let (rows, columns) = match rows >= 2 * threads * ROWS {
            true => (rows.div_ceil(2 * threads).next_multiple_of(6), outputs),
            // A few parts for each thread, as large as can be: each copies its rows once.
            false => (rows, outputs.div_ceil(4 * threads).next_multiple_of(panel)),
        };
        let across = outputs.div_ceil(columns);
        let blocks: Vec<_> = out.reborrow().blocks(rows, columns).enumerate().collect();
        blocks.into_par_iter().for_each(|(i, block)| {
            self.block(kernel, block, add, x.from(i / across * rows, 0), scale, i % across * columns);
        });
    }

    /// A block of the product: all of its rows, and the outputs from `first`, which begins a panel.
    #[cfg_attr(
        not(target_arch = "x86_64"),
        allow(unused_mut, unused_variables, reason = "there is no kernel")
    )]
    fn block(&self, kernel: Kernel, out: MatMut<'_>, add: bool, x: Mat<'_>, scale: f32, first: usize) {
        let (values, columns) = (self.values(), out.columns);
        let whole = self.outputs.next_multiple_of(LANES);
        for (start, mut out) in (0..).step_by(ROWS).zip(out.blocks(ROWS, columns)) {
            for input in (0..self.inputs).step_by(INPUTS) {
                let count = INPUTS.min(self.inputs - input);
                let (add, x) = (add || input > 0, x.from(start, input));
                let panels = &values[whole * input + first * count..][..(whole - first) * count];
                match kernel {
                    // SAFETY: chosen where the processor has it (`Kernel::all`), and panels are whole `Line`s.
                    #[cfg(target_arch = "x86_64")]
                    Kernel::Avx512 => unsafe {
                        avx512::product(out.reborrow(), add, x, count, panels, scale);
                    },
                    // SAFETY: as above.
                    #[cfg(target_arch = "x86_64")]
                    Kernel::Fma => unsafe { fma::product(out.reborrow(), add, x, count, panels, scale) },
                }
            }
        }
    }
}

/// Up to 16 outputs of a panel: every `step`-th line from the first on, one an input.
fn fill_lanes(lines: &mut [Line], step: usize, weight: Mat<'_>, outputs: usize, inputs: usize) {
    const ZEROS: [f32; LANES] = [0.; LANES];
    if weight.row == 1 {
        for input in 0..inputs {
            let line = &mut lines[input * step].0;
            line[..outputs].copy_from_slice(&weight.data[input * weight.column..][..outputs]);
            line[outputs..].fill(0.);
        }
        return;
    }
    // Tiles of 16 by 16, so that each line of the weight is read once.
    let tiles = if weight.column == 1 { inputs / LANES } else { 0 };
    for tile in 0..tiles {
        let rows: [&[f32; LANES]; LANES] = std::array::from_fn(|lane| {
            let from = lane * weight.row + tile * LANES;
            if lane < outputs { weight.data[from..].first_chunk().unwrap_or(&ZEROS) } else { &ZEROS }
        });
        for i in 0..LANES {
            lines[(tile * LANES + i) * step].0 = rows.map(|row| row[i]);
        }
    }
    for input in tiles * LANES..inputs {
        lines[input * step].0 = std::array::from_fn(|lane| {
            if lane < outputs { weight.data[lane * weight.row + input * weight.column] } else { 0. }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(n: usize) -> Vec<f32> {
        (0..n).map(|i| ((i * 7919 + 13) % 101) as f32 / 50. - 1.).collect()
    }

    /// Every kernel that the processor has, and none, over ragged shapes; weights as they are and transposed.
    #[test]
    fn products_agree_with_gemm() {
        let kernels: Vec<_> = Kernel::all().map(Some).chain([None]).collect();
        for (rows, outputs, inputs) in [
            (1, 1, 1),
            (5, 17, 3),
            (7, 64, 33),
            (12, 40, 20),
            (13, 33, 513),
            (26, 100, 64),
            (65, 192, 48),
            (200, 70, 600),
            (97, 130, 1030),
            (3, 10, 1536),
            (400, 33, 20),
        ] {
            let (x, w, start) = (numbers(rows * inputs), numbers(outputs * inputs), numbers(rows * outputs));
            let weight = Mat::rows(&w, inputs);
            let transposed: Vec<f32> = (0..w.len()).map(|i| w[i % outputs * inputs + i / outputs]).collect();
            for add in [false, true] {
                let mut want = start.clone();
                let (out, x) = (MatMut::rows(&mut want, outputs), Mat::rows(&x, inputs));
                gemm(out, add, x, weight.t(), inputs, 1., Threads::One);
                for kernel in &kernels {
                    for weight in [weight, Mat::rows(&transposed, outputs).t()] {
                        let mut panels = Panels { kernel: *kernel, ..Panels::empty() };
                        panels.fill(weight, outputs, inputs, Threads::One);
                        for threads in [Threads::One, Threads::All] {
                            let mut got = start.clone();
                            panels.product(MatMut::rows(&mut got, outputs), add, x, 1., threads);
                            for (got, want) in got.iter().zip(&want) {
                                assert!((got - want).abs() < 1e-5 * inputs as f32, "{got} {want}");
                            }
                        }
                    }
                }
            }
        }
    }

    /// Fewer columns than the weight has outputs, rows with gaps between them, no rows.
    #[test]
    fn only_what_is_asked_for_is_written() {
        let (outputs, inputs) = (70, 20);
        let w = numbers(outputs * inputs);
        for kernel in Kernel::all().map(Some).chain([None]) {
            let mut panels = Panels { kernel, ..Panels::empty() };
            panels.fill(Mat::rows(&w, inputs), outputs, inputs, Threads::One);
            for (rows, columns) in [(0, 5), (1, 1), (3, 5), (2, 16), (14, 40), (5, 33)] {
                let (x, stride) = (numbers(rows * inputs), columns + 7);
                for add in [false, true] {
                    let start: Vec<f32> = numbers(rows * stride);
                    let (mut got, mut want) = (start.clone(), start);
                    let out = MatMut::new(&mut want, columns, stride);
                    gemm(
                        out,
                        add,
                        Mat::rows(&x, inputs),
                        Mat::rows(&w, inputs).t(),
                        inputs,
                        2.,
                        Threads::One,
                    );
                    let out = MatMut::new(&mut got, columns, stride);
                    panels.product(out, add, Mat::rows(&x, inputs), 2., Threads::One);
                    for (at, (got, want)) in got.iter().zip(&want).enumerate() {
                        let close = (got - want).abs() < 1e-4;
                        assert!(
                            if at % stride < columns { close } else { got == want },
                            "{rows} {columns} {at}"
                        );
                    }
                }
            }
        }
    }

    /// What is said of a row depends on no other, to the last bit.
    #[test]
    fn rows_do_not_know_each_other() {
        let (rows, outputs, inputs) = (100, 70, 600);
        let (x, w) = (numbers(rows * inputs), numbers(outputs * inputs));
        for kernel in Kernel::all() {
            let mut panels = Panels { kernel: Some(kernel), ..Panels::empty() };
            panels.fill(Mat::rows(&w, inputs), outputs, inputs, Threads::One);
            let product = |x: &[f32]| {
                let mut out = vec![0.; x.len() / inputs * outputs];
                panels.product(
                    MatMut::rows(&mut out, outputs),
                    false,
                    Mat::rows(x, inputs),
                    0.5,
                    Threads::One,
                );
                out
            };
            let all = product(&x);
            for count in [1, 5, 12, 13, 31] {
                let some: Vec<f32> = x.chunks(count * inputs).flat_map(product).collect();
                assert!(some == all, "{count} rows at once");
            }
        }
    }

    /// A weight that is filled into the memory of a larger one leaves nothing of it behind.
    #[test]
    fn memory_is_filled_again() {
        let mut panels = Panels::new(Mat::rows(&[5.; 40 * 30], 30), 40, 30, Threads::One);
        panels.fill(Mat::rows(&[1., 2., 3., 4., 5., 6.], 3), 2, 3, Threads::One);
        let mut out = [0.; 2];
        panels.product(MatMut::rows(&mut out, 2), false, Mat::rows(&[1., 10., 100.], 3), 1., Threads::One);
        assert_eq!(out, [321., 654.]);
    }
}
