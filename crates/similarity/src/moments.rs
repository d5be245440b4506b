use ndarray::{Array1, Array2, ArrayViewMut2, Axis, CowArray, Ix2, s};
use rayon::prelude::*;

use crate::{
    Error, Measure, Representation, Result,
    error::in_layer,
    linalg::add_product,
    mean::{Mean, read_batch, rounding, stack_widths},
    pairwise::{all_pairs, matrix, ordered_pairs, pairs_between},
    spectral::spectral,
    state::{State, StateReader},
};

/// Linear CKA (biased and debiased), CCA, SVCCA, PWCCA and Procrustes of all pairs of layers, in one pass over samples that come
/// batch by batch.
///
/// All these measures are functions of the second moments `X^T Y` of centred features; the debiased estimate also needs third and
/// fourth moments of the lengths of samples, which cost little. With `u = sum_i x_i |y_i|^2`, `v = sum_i y_i |x_i|^2`,
/// `a = sum_i |x_i|^2`, `b = sum_i |y_i|^2` and `ab = sum_i |x_i|^2 |y_i|^2`, the three sums of Song's `HSIC_1` over Gram matrices
/// with zeroed diagonals are `|X^T Y|^2 - ab`, `|sum_i x_i|^2 - a` and so on: no `n x n` matrix appears, and the batch size is
/// no part of the result.
///
/// The memory is one `d x d'` matrix of f64 a pair, whatever the number of samples: 430 MB for all pairs of 13 layers of width 768.
/// Sums are taken around the mean of the first samples, so that a large common offset costs no digits.
///
/// [`merge`](Self::merge) joins what several threads or machines have seen, and [`to_bytes`](Self::to_bytes) carries it there.
///
/// # Example
///
/// ```
/// use layerwise_similarity::{Estimator, Measure, MomentAccumulator, pairwise};
/// use ndarray::{Array2, s};
///
/// let layers = [0.3, 0.5].map(|f| Array2::from_shape_fn((40, 6), |(i, j)| (f * (i * i + 3 * j) as f64).sin()));
/// let part = |from: usize, to: usize| layers.each_ref().map(|layer| layer.slice(s![from..to, ..]));
///
/// let mut here = MomentAccumulator::new(&[6, 6])?;
/// here.push(&part(0, 7))?;
/// let mut there = MomentAccumulator::new(&[6, 6])?;
/// there.push(&part(7, 40))?;
/// here.merge(MomentAccumulator::from_bytes(&there.to_bytes())?)?;
///
/// let measure = Measure::Cka(Estimator::Debiased);
/// let whole = pairwise(&layers, measure)?;
/// assert!((here.pairwise(measure)? - whole).iter().all(|difference| difference.abs() < 1e-9));
/// # Ok::<(), layerwise_similarity::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct MomentAccumulator {
    layers: Vec<Layer>,
    /// All layers with themselves first, then the pairs that were asked for, `i < j`.
    pairs: Vec<Pair>,
    /// Layers of the left stack, when two are compared.
    left: Option<usize>,
    samples: usize,
    /// Samples that wait for a product that is worth its while; the first `waiting` rows.
    pending: Vec<Array2<f64>>,
    waiting: usize,
}

/// Samples of one product: enough that reading and writing the sums of all pairs costs little beside it.
pub(crate) const CHUNK: usize = 1024;

/// The largest number whose fourth powers can be added up.
pub(crate) const LIMIT: f64 = 1e60;

/// What is kept of a layer; all of `x - shift`.
#[derive(Clone, Debug, PartialEq)]
struct Layer {
    shift: Array1<f64>,
    /// `sum_i x_i`.
    sum: Array1<f64>,
    /// `sum_i |x_i|^2`.
    squares: f64,
    /// Of the numbers themselves, before the shift.
    largest: f64,
}

/// What is kept of a pair of layers; all of `x - shift` and `y - shift`.
#[derive(Clone, Debug, PartialEq)]
struct Pair {
    i: usize,
    j: usize,
    /// `X^T Y`, `(d, d')`; of a layer with itself, the upper triangle.
    cross: Array2<f64>,
    /// `u = sum_i x_i |y_i|^2`.
    u: Array1<f64>,
    /// `v = sum_i y_i |x_i|^2`.
    v: Array1<f64>,
    /// `sum_i |x_i|^2 |y_i|^2`.
    products: f64,
}

impl MomentAccumulator {
    /// For all pairs of a stack of layers of these widths.
    ///
    /// # Errors
    ///
    /// [`Error::TooFewLayers`] without layers, [`Error::Width`] for a width of 0.
    pub fn new(widths: &[usize]) -> Result<Self> {
        Self::of_pairs(widths, &all_pairs(widths.len()), None)
    }

    /// For the pairs of a layer of one stack and a layer of another; batches are the layers of the first, then those of the
    /// second.
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new).
    pub fn between(left: &[usize], right: &[usize]) -> Result<Self> {
        stack_widths(left)?;
        stack_widths(right)?;
        let widths = [left, right].concat();
        Self::of_pairs(&widths, &pairs_between(left.len(), right.len()), Some(left.len()))
    }

    pub(crate) fn of_pairs(widths: &[usize], pairs: &[(usize, usize)], left: Option<usize>) -> Result<Self> {
        let layer = |&width: &usize| Layer {
            shift: Array1::zeros(width),
            sum: Array1::zeros(width),
            squares: 0.,
            largest: 0.,
        };
        let pair = |(i, j): (usize, usize)| Pair {
            i,
            j,
            cross: Array2::zeros((widths[i], widths[j])),
            u: Array1::zeros(widths[i]),
            v: Array1::zeros(widths[j]),
            products: 0.,
        };
        let layers = stack_widths(widths)?.iter().map(layer).collect();
        let mut others: Vec<_> =
            pairs.iter().map(|&(i, j)| (i.min(j), i.max(j))).filter(|(i, j)| i < j).collect();
        others.sort_unstable();
        others.dedup();
        let pairs = (0..widths.len()).map(|l| (l, l)).chain(others).map(pair).collect();
        Ok(Self { layers, pairs, left, samples: 0, pending: Vec::new(), waiting: 0 })
    }

    /// Adds the next samples: their representation in every layer, `(rows, width)` each. When it fails, nothing was added.
    ///
    /// # Errors
    ///
    /// [`Error::Layers`], or [`Error::Layer`] around [`Error::Rows`], [`Error::Widths`], [`Error::NotFinite`] or, above 1e60,
    /// [`Error::Magnitude`].
    pub fn push<R: Representation>(&mut self, batch: &[R]) -> Result<()> {
        let batch = read_batch(batch, &self.widths(), LIMIT)?;
        self.push_checked(&batch);
        Ok(())
    }

    /// Full chunks are added at the same places of the sequence of samples whatever the size of the batches: their sums, too,
    /// are the same to the last bit.
    pub(crate) fn push_checked(&mut self, batch: &[Array2<f64>]) {
        let rows = batch[0].nrows();
        if self.pending.is_empty() {
            self.pending = self.layers.iter().map(|layer| Array2::zeros((CHUNK, layer.sum.len()))).collect();
        }
        let mut start = 0;
        while start < rows {
            let end = rows.min(start + CHUNK - self.waiting);
            let free = self.waiting..self.waiting + end - start;
            for (pending, xs) in self.pending.iter_mut().zip(batch) {
                pending.slice_mut(s![free.clone(), ..]).assign(&xs.slice(s![start..end, ..]));
            }
            (self.waiting, start) = (free.end, end);
            if self.waiting == CHUNK {
                self.flush();
            }
        }
    }

    /// Adds the samples that wait to the sums.
    fn flush(&mut self) {
        let n = std::mem::take(&mut self.waiting);
        if n == 0 {
            return;
        }
        let first = self.samples == 0;
        self.samples += n;
        let squared: Vec<Array1<f64>> = self
            .layers
            .par_iter_mut()
            .zip(&mut self.pending)
            .map(|(layer, xs)| {
                let mut xs = xs.slice_mut(s![..n, ..]);
                layer.largest = layer.largest.max(crate::frame::largest(xs.view()));
                if first {
                    let mut mean = Mean::new(xs.ncols());
                    mean.push(xs.view());
                    layer.shift = &mean.shift + &mean.offset();
                }
                xs -= &layer.shift;
                layer.sum += &xs.sum_axis(Axis(0));
                let squared = xs.map_axis(Axis(1), |row| row.dot(&row));
                layer.squares += squared.sum();
                squared
            })
            .collect();
        // `|x_i|^2`, one column a layer.
        let views: Vec<_> = squared.iter().map(|squared| squared.view()).collect();
        let norms = ndarray::stack(Axis(1), &views).expect("as many samples in each layer");
        let xs: Vec<_> = self.pending.iter().map(|xs| xs.slice(s![..n, ..])).collect();
        let weighted: Vec<Array2<f64>> = xs
            .par_iter()
            .map(|xs| {
                let mut weighted = Array2::zeros((xs.ncols(), norms.ncols()));
                add_product(weighted.view_mut(), xs.t(), norms.view());
                weighted
            })
            .collect();
        for pair in &mut self.pairs {
            let (i, j) = (pair.i, pair.j);
            pair.u += &weighted[i].column(j);
            pair.v += &weighted[j].column(i);
            pair.products += squared[i].dot(&squared[j]);
        }
        let strips: Vec<_> = self.pairs.iter_mut().flat_map(Pair::strips).collect();
        strips.into_par_iter().for_each(|Strip { i, j, rows, first, sums }| {
            let right = xs[j].slice(s![.., first..first + sums.ncols()]);
            add_product(sums, xs[i].slice(s![.., ..rows]).t(), right);
        });
    }

    /// Adds what another accumulator, for the same layers and pairs, has seen. Order does not matter beyond rounding.
    ///
    /// # Errors
    ///
    /// [`Error::Mismatch`] when it was made for others.
    pub fn merge(&mut self, mut other: Self) -> Result<()> {
        let keys = |all: &Self| all.pairs.iter().map(|pair| (pair.i, pair.j)).collect::<Vec<_>>();
        if self.widths() != other.widths() || keys(self) != keys(&other) || self.left != other.left {
            return Err(Error::Mismatch { what: "their layers or pairs" });
        }
        self.flush();
        other.flush();
        if self.samples == 0 || other.samples == 0 {
            if self.samples == 0 {
                *self = other;
            }
            return Ok(());
        }
        // Around our shift.
        let moves: Vec<_> =
            self.layers.iter().zip(&other.layers).map(|(ours, theirs)| &ours.shift - &theirs.shift).collect();
        other.translate(&moves);
        for (ours, theirs) in self.layers.iter_mut().zip(&other.layers) {
            ours.sum += &theirs.sum;
            ours.squares += theirs.squares;
            ours.largest = ours.largest.max(theirs.largest);
        }
        for (ours, theirs) in self.pairs.iter_mut().zip(&other.pairs) {
            ours.cross += &theirs.cross;
            ours.u += &theirs.u;
            ours.v += &theirs.v;
            ours.products += theirs.products;
        }
        self.samples += other.samples;
        Ok(())
    }

    /// All sums as of `x - moves`.
    fn translate(&mut self, moves: &[Array1<f64>]) {
        let (layers, n) = (&self.layers, self.samples);
        self.pairs.par_iter_mut().for_each(|pair| {
            pair.translate((&layers[pair.i], &layers[pair.j]), (&moves[pair.i], &moves[pair.j]), n);
        });
        for (layer, by) in self.layers.iter_mut().zip(moves) {
            layer.squares = layer.squares_about(by, n);
            layer.sum -= &(by * n as f64);
            layer.shift += by;
        }
    }

    /// Samples seen.
    #[must_use]
    pub fn samples(&self) -> usize {
        self.samples + self.waiting
    }

    /// The measure of all pairs: `(L, L)`, or `(L, L')` [between](Self::between) two stacks.
    ///
    /// # Errors
    ///
    /// [`Error::Unsupported`] for a measure that is no function of moments, [`Error::Samples`] when there are too few,
    /// [`Error::Layer`] around [`Error::Degenerate`] for a layer that does not tell samples apart.
    pub fn pairwise(&mut self, measure: Measure) -> Result<Array2<f64>> {
        let layers = self.layers.len();
        let (shape, first, pairs) = match self.left {
            None if measure.is_symmetric() => ((layers, layers), 0, all_pairs(layers)),
            None => ((layers, layers), 0, ordered_pairs(layers)),
            Some(left) => ((left, layers - left), left, pairs_between(left, layers - left)),
        };
        Ok(matrix(shape, first, &pairs, &self.scores(&pairs, measure)?))
    }

    /// The measure of each of `pairs`, which must be among those of the accumulator.
    fn scores(&mut self, pairs: &[(usize, usize)], measure: Measure) -> Result<Vec<f64>> {
        self.scores_of(pairs, measure, &|_| None)
    }

    /// The same of layers that are given in coordinates, with the `(rank, width)` matrix back to features for each of them.
    pub(crate) fn scores_of<'a>(
        &mut self,
        pairs: &[(usize, usize)],
        measure: Measure,
        features: &(dyn Fn(usize) -> Option<&'a Array2<f64>> + Sync),
    ) -> Result<Vec<f64>> {
        self.flush();
        let needed = match measure {
            Measure::Cka(estimator) => estimator.samples(),
            Measure::Cca
            | Measure::Svcca { .. }
            | Measure::Pwcca
            | Measure::Procrustes
            | Measure::ProcrustesDistance => 2,
            _ => {
                return Err(Error::Unsupported { measure: measure.name(), what: "form as moments" });
            }
        };
        if self.samples < needed {
            return Err(Error::Samples { samples: self.samples, needed });
        }
        for layer in 0..self.layers.len() {
            in_layer(layer, self.tells_apart(layer))?;
        }
        match measure {
            Measure::Cka(estimator) => {
                let hsic: Vec<f64> = self.pairs.par_iter().map(|pair| self.hsic(pair, estimator)).collect();
                let roots = self.pairs[..self.layers.len()].iter().zip(&hsic).map(|(pair, &hsic)| {
                    // Debiased, a difference of sums: where theory says 0 only rounding is left.
                    let root = estimator.root(hsic, self.centred(pair).products);
                    in_layer(pair.i, root)
                });
                let roots = roots.collect::<Result<Vec<_>>>()?;
                let score = |&(i, j)| estimator.cka(hsic[self.place(i, j)], roots[i] * roots[j]);
                Ok(pairs.iter().map(score).collect())
            }
            measure => spectral(measure, self.layers.len(), pairs, &|i, j| self.scatter(i, j), features),
        }
    }

    /// A layer whose samples differ by more than rounding.
    fn tells_apart(&self, layer: usize) -> Result<()> {
        let Layer { sum, largest, .. } = &self.layers[layer];
        let squares = self.layers[layer].squares_about(&self.mean(layer), self.samples);
        let noise = (self.samples * sum.len()) as f64 * rounding(*largest).powi(2);
        if squares > noise { Ok(()) } else { Err(Error::Degenerate { spread: squares }) }
    }

    /// Relative to the shift.
    fn mean(&self, layer: usize) -> Array1<f64> {
        &self.layers[layer].sum / self.samples as f64
    }

    /// The sums of a pair about the means.
    fn centred(&self, pair: &Pair) -> Pair {
        let mut centred = pair.clone();
        let (i, j) = (pair.i, pair.j);
        centred.translate((&self.layers[i], &self.layers[j]), (&self.mean(i), &self.mean(j)), self.samples);
        centred
    }

    fn hsic(&self, pair: &Pair, estimator: crate::Estimator) -> f64 {
        let centred = self.centred(pair);
        let squares = |l: usize| self.layers[l].squares_about(&self.mean(l), self.samples);
        let trace = centred.whole().iter().map(|c| c * c).sum();
        estimator.hsic(trace, centred.products, (squares(pair.i), squares(pair.j)), self.samples)
    }

    /// `X^T Y` of the centred features of a pair.
    fn scatter(&self, i: usize, j: usize) -> Array2<f64> {
        let centred = self.centred(&self.pairs[self.place(i, j)]);
        let cross = if i == j { centred.whole().into_owned() } else { centred.cross };
        if i <= j { cross } else { cross.reversed_axes() }
    }

    /// Where a pair stands among ours.
    fn place(&self, i: usize, j: usize) -> usize {
        if i == j {
            return i;
        }
        let key = (i.min(j), i.max(j));
        let others = &self.pairs[self.layers.len()..];
        let found = others.binary_search_by_key(&key, |pair| (pair.i, pair.j));
        self.layers.len() + found.expect("a pair that the accumulator was made for")
    }

    fn widths(&self) -> Vec<usize> {
        self.layers.iter().map(|layer| layer.sum.len()).collect()
    }

    /// The state as a safetensors file.
    #[must_use]
    pub fn to_bytes(&mut self) -> Vec<u8> {
        self.flush();
        let mut state = State::new("moments", self.samples);
        state.note("layers", self.layers.len().to_string());
        state.note("left", self.left.unwrap_or(0).to_string());
        for (i, layer) in self.layers.iter().enumerate() {
            state.add(format!("shift.{i}"), &layer.shift);
            state.add(format!("sum.{i}"), &layer.sum);
            state.add_numbers(format!("scalars.{i}"), &[layer.squares, layer.largest]);
        }
        for pair in &self.pairs {
            let name = format!("{}-{}", pair.i, pair.j);
            state.add(format!("cross.{name}"), &pair.cross);
            state.add(format!("u.{name}"), &pair.u);
            state.add(format!("v.{name}"), &pair.v);
            state.add_numbers(format!("products.{name}"), &[pair.products]);
        }
        state.into_bytes()
    }

    /// Reads a state that [`to_bytes`](Self::to_bytes) wrote.
    ///
    /// # Errors
    ///
    /// [`Error::State`] for anything else.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let state = StateReader::new("moments", bytes)?;
        let mut widths = Vec::new();
        for i in 0..state.number("layers")? {
            widths.push(state.vector(&format!("shift.{i}"), None)?.len());
        }
        let left = match state.number("left")? {
            0 => None,
            left if left < widths.len() => Some(left),
            left => return Err(Error::State(format!("left is {left} of {} layers", widths.len()))),
        };
        let pairs = match left {
            None => all_pairs(widths.len()),
            Some(left) => pairs_between(left, widths.len() - left),
        };
        // Before anything is allocated by the sizes that the file claims.
        for &(i, j) in &pairs {
            state.matrix_shape(&format!("cross.{i}-{j}"), (widths[i], widths[j]))?;
        }
        let mut all = Self::of_pairs(&widths, &pairs, left).map_err(|e| Error::State(e.to_string()))?;
        all.samples = state.samples();
        for (i, layer) in all.layers.iter_mut().enumerate() {
            let width = Some(widths[i]);
            let scalars = state.vector(&format!("scalars.{i}"), Some(2))?;
            *layer = Layer {
                shift: state.vector(&format!("shift.{i}"), width)?,
                sum: state.vector(&format!("sum.{i}"), width)?,
                squares: scalars[0],
                largest: scalars[1],
            };
        }
        for pair in &mut all.pairs {
            let (i, j) = (pair.i, pair.j);
            let name = format!("{i}-{j}");
            pair.cross = state.matrix(&format!("cross.{name}"), (widths[i], widths[j]))?;
            pair.u = state.vector(&format!("u.{name}"), Some(widths[i]))?;
            pair.v = state.vector(&format!("v.{name}"), Some(widths[j]))?;
            pair.products = state.vector(&format!("products.{name}"), Some(1))?[0];
        }
        Ok(all)
    }
}

impl Layer {
    /// `sum_i |x_i - by|^2`.
    fn squares_about(&self, by: &Array1<f64>, n: usize) -> f64 {
        self.squares - 2. * by.dot(&self.sum) + n as f64 * by.dot(by)
    }
}

/// Columns `first..` of the sums of a pair, and how many rows of them are needed.
struct Strip<'a> {
    i: usize,
    j: usize,
    rows: usize,
    first: usize,
    sums: ArrayViewMut2<'a, f64>,
}

impl Pair {
    /// Shares of the sums, written independently; of a layer with itself narrow ones, without what is below the diagonal.
    fn strips(&mut self) -> impl Iterator<Item = Strip<'_>> {
        let (i, j, all) = (self.i, self.j, self.cross.nrows());
        let width = if i == j { 192 } else { 512 };
        let strips = self.cross.ncols().div_ceil(width);
        let width = self.cross.ncols().div_ceil(strips);
        let parts = self.cross.axis_chunks_iter_mut(Axis(1), width).enumerate();
        parts.map(move |(strip, mut sums)| {
            let first = strip * width;
            let rows = if i == j { first + sums.ncols() } else { all };
            sums.slice_collapse(s![..rows, ..]);
            Strip { i, j, rows, first, sums }
        })
    }

    /// `X^T Y`, both triangles.
    fn whole(&self) -> CowArray<'_, f64, Ix2> {
        if self.i != self.j {
            return self.cross.view().into();
        }
        let mut cross = self.cross.clone();
        for row in 1..cross.nrows() {
            for column in 0..row {
                cross[[row, column]] = cross[[column, row]];
            }
        }
        cross.into()
    }

    /// The sums of `x - dx` and `y - dy`, exactly, from those of `x` and `y`.
    fn translate(&mut self, (x, y): (&Layer, &Layer), (dx, dy): (&Array1<f64>, &Array1<f64>), n: usize) {
        let n = n as f64;
        let cross = self.whole();
        let (along, across) = (cross.dot(dy), cross.t().dot(dx));
        drop(cross);
        let (alpha, beta) = (dx.dot(dx), dy.dot(dy));
        let (xs, ys) = (dx.dot(&x.sum), dy.dot(&y.sum));
        self.products += -2. * (dy.dot(&self.v) + dx.dot(&self.u))
            + beta * x.squares
            + alpha * y.squares
            + 4. * dx.dot(&along)
            - 2. * (beta * xs + alpha * ys)
            + n * alpha * beta;
        self.u += &(&along * -2. + &x.sum * beta - dx * (y.squares - 2. * ys + n * beta));
        self.v += &(&across * -2. + &y.sum * alpha - dy * (x.squares - 2. * xs + n * alpha));
        for (mut row, (&s, &d)) in self.cross.rows_mut().into_iter().zip(x.sum.iter().zip(dx)) {
            // -s_x d_y - d_x s_y + n d_x d_y
            row.scaled_add(n * d - s, dy);
            row.scaled_add(-d, &y.sum);
        }
    }
}
