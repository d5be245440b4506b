use std::ops::Range;

#[cfg(feature = "candle")]
use candle_core::Device;
use ndarray::{Array1, Array2, ArrayView2, ArrayViewMut2, Axis, s};
use rayon::prelude::*;

use crate::{
    Error, Estimator, Measure, Representation, Result,
    error::in_layer,
    frame::{SAFE, largest},
    linalg::add_product,
    mean::{Mean, read_batch, rounding, stack_widths},
    pairwise::{all_pairs, matrix, ordered_pairs, pairs_between},
    spectral::spectral,
    state::{State, StateReader},
};
#[cfg(feature = "candle")]
use crate::{away::Away, on_device::gpu_of};

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
/// Where the layers of a batch are tensors on an NVIDIA GPU, the products `X^T Y` are made there, and stay there until scores are asked
/// for; all else, and what the GPU has no room for, is the host's. That differs by rounding. It has not run on a GPU yet.
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
/// here.merge(MomentAccumulator::from_bytes(&there.to_bytes()?)?)?;
///
/// let measure = Measure::Cka(Estimator::Debiased);
/// let whole = pairwise(&layers, measure)?;
/// assert!((here.pairwise(measure)? - whole).iter().all(|difference| difference.abs() < 1e-9));
/// # Ok::<(), layerwise_similarity::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct MomentAccumulator {
    layers: Vec<Layer>,
    /// All layers with themselves first, then the pairs that were asked for, `i < j`, in order.
    pairs: Vec<Pair>,
    /// `X^T Y` of each layer with itself and with all its partners, side by side: `(d, sum of widths)`; of a layer with itself, the
    /// upper triangle.
    bands: Vec<Array2<f64>>,
    /// The part of them that is on a GPU.
    #[cfg(feature = "candle")]
    pub(crate) away: Away,
    /// Layers of the left stack, when two are compared.
    left: Option<usize>,
    samples: usize,
    /// Samples that wait for a product that is worth its while, all layers side by side; the first `waiting` rows.
    pending: Array2<f64>,
    waiting: usize,
}

/// Samples of one product: enough that reading and writing the sums of all pairs costs little beside it.
pub(crate) const CHUNK: usize = 1024;

/// The largest number whose fourth powers can be added up.
pub(crate) const LIMIT: f64 = 1e60;

/// What is kept of a layer; all of `x - shift`.
#[derive(Clone, Debug, PartialEq)]
struct Layer {
    /// Where it stands among all layers side by side.
    first: usize,
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
    /// Where `X^T Y` starts in the band of `i`.
    column: usize,
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
        let mut total = 0;
        let layer = |&width: &usize| {
            let layer = Layer {
                first: total,
                shift: Array1::zeros(width),
                sum: Array1::zeros(width),
                squares: 0.,
                largest: 0.,
            };
            total += width;
            layer
        };
        let layers = stack_widths(widths)?.iter().map(layer).collect();
        let mut band_widths = vec![0; widths.len()];
        let pair = |(i, j): (usize, usize)| {
            let column = band_widths[i];
            band_widths[i] += widths[j];
            Pair { i, j, column, u: Array1::zeros(widths[i]), v: Array1::zeros(widths[j]), products: 0. }
        };
        let mut others: Vec<_> =
            pairs.iter().map(|&(i, j)| (i.min(j), i.max(j))).filter(|(i, j)| i < j).collect();
        others.sort_unstable();
        others.dedup();
        let pairs = (0..widths.len()).map(|l| (l, l)).chain(others).map(pair).collect();
        let bands = widths.iter().zip(&band_widths).map(|(&rows, &columns)| Array2::zeros((rows, columns)));
        Ok(Self {
            layers,
            pairs,
            bands: bands.collect(),
            #[cfg(feature = "candle")]
            away: Away::default(),
            left,
            samples: 0,
            pending: Array2::zeros((0, total)),
            waiting: 0,
        })
    }

    /// Adds the next samples: their representation in every layer, `(rows, width)` each. When it fails, nothing was added.
    ///
    /// # Errors
    ///
    /// [`Error::Layers`], or [`Error::Layer`] around [`Error::Rows`], [`Error::Widths`], [`Error::NotFinite`] or, above 1e60,
    /// [`Error::Magnitude`]; [`Error::Candle`] when sums cannot be read back from a GPU that tensors were on before these.
    pub fn push<R: Representation>(&mut self, batch: &[R]) -> Result<()> {
        let read = read_batch(batch, &self.widths(), LIMIT)?;
        #[cfg(feature = "candle")]
        self.products_on(gpu_of(batch))?;
        self.push_checked(&read);
        Ok(())
    }

    /// Makes the products of the next chunks there; on the host, if nowhere.
    #[cfg(feature = "candle")]
    pub(crate) fn products_on(&mut self, device: Option<Device>) -> Result<()> {
        self.away.go_to(device, &mut self.bands)
    }

    /// Full chunks are added at the same places of the sequence of samples whatever the size of the batches: their sums, too,
    /// are the same to the last bit.
    pub(crate) fn push_checked(&mut self, batch: &[Array2<f64>]) {
        let rows = batch[0].nrows();
        if self.pending.is_empty() {
            self.pending = Array2::zeros((CHUNK, self.pending.ncols()));
        }
        let mut start = 0;
        while start < rows {
            let end = rows.min(start + CHUNK - self.waiting);
            let free = self.waiting..self.waiting + end - start;
            for (layer, xs) in self.layers.iter().zip(batch) {
                let columns = layer.columns();
                self.pending.slice_mut(s![free.clone(), columns]).assign(&xs.slice(s![start..end, ..]));
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
        let mut views = Vec::new();
        let mut rest = self.pending.slice_mut(s![..n, ..]);
        for layer in &self.layers {
            let (xs, after) = rest.split_at(Axis(1), layer.sum.len());
            views.push(xs);
            rest = after;
        }
        let layers = self.layers.par_iter_mut().zip(views);
        // `|x_i|^2`, one row a layer.
        let squared: Vec<Array1<f64>> = layers.map(|(layer, xs)| layer.add(xs, first)).collect();
        let rows: Vec<_> = squared.iter().map(|squared| squared.view()).collect();
        let norms = ndarray::stack(Axis(1), &rows).expect("as many samples in each layer");
        let (layers, pending) = (&self.layers, self.pending.slice(s![..n, ..]));
        let xs = |layer: &Layer| pending.slice_move(s![.., layer.columns()]);
        let weighted = layers.par_iter().map(|layer| {
            let mut weighted = Array2::zeros((layer.sum.len(), norms.ncols()));
            add_product(weighted.view_mut(), xs(layer).t(), norms.view());
            weighted
        });
        let weighted: Vec<Array2<f64>> = weighted.collect();
        for pair in &mut self.pairs {
            let (i, j) = (pair.i, pair.j);
            pair.u += &weighted[i].column(j);
            pair.v += &weighted[j].column(i);
            pair.products += squared[i].dot(&squared[j]);
        }
        #[cfg(feature = "candle")]
        let uploaded = self.away.upload(pending);
        let mut blocks = Vec::new();
        for (i, band) in self.bands.iter_mut().enumerate() {
            let partners = self.pairs.iter().filter(|pair| pair.i == i);
            let columns: Vec<Range<usize>> = partners.map(|pair| layers[pair.j].columns()).collect();
            #[cfg(feature = "candle")]
            if let Some(xs) = &uploaded
                && self.away.add(i, xs, &columns)
            {
                continue;
            }
            blocks_of(layers[i].columns(), &columns, band.view_mut(), &mut blocks);
        }
        blocks.into_par_iter().for_each(|Block { left, right, sums }| {
            add_product(sums, pending.slice(s![.., left]).t(), pending.slice(s![.., right]));
        });
    }

    /// Adds all that waits, and all that is on a GPU, to the sums.
    fn settle(&mut self) -> Result<()> {
        self.flush();
        #[cfg(feature = "candle")]
        self.away.come_home(&mut self.bands)?;
        Ok(())
    }

    /// Adds what another accumulator, for the same layers and pairs, has seen. Order does not matter beyond rounding.
    ///
    /// # Errors
    ///
    /// [`Error::Mismatch`] when it was made for others, [`Error::Candle`] when sums cannot be read back from a GPU.
    pub fn merge(&mut self, mut other: Self) -> Result<()> {
        let keys = |all: &Self| all.pairs.iter().map(|pair| (pair.i, pair.j)).collect::<Vec<_>>();
        if self.widths() != other.widths() || keys(self) != keys(&other) || self.left != other.left {
            return Err(Error::Mismatch { what: "their layers or pairs" });
        }
        self.settle()?;
        other.settle()?;
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
        for (ours, theirs) in self.bands.iter_mut().zip(&other.bands) {
            *ours += theirs;
        }
        for (ours, theirs) in self.pairs.iter_mut().zip(&other.pairs) {
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
        for pair in &mut self.pairs {
            let (x, y) = (&layers[pair.i], &layers[pair.j]);
            let cross = self.bands[pair.i].slice_mut(s![.., pair.column..pair.column + y.sum.len()]);
            pair.translate(cross, (x, y), (&moves[pair.i], &moves[pair.j]), n);
        }
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
    /// [`Error::Unsupported`] for a measure that is no function of moments, [`Error::Setting`] for a parameter of it that is out of
    /// range, [`Error::Samples`] when there are too few, [`Error::Layer`] around [`Error::Degenerate`] for a layer that does not tell
    /// samples apart or, below 1e-60, [`Error::Tiny`]; [`Error::Candle`] when sums cannot be read back from a GPU.
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
        measure.check()?;
        self.settle()?;
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
                let hsic: Vec<_> = self.pairs.par_iter().map(|pair| self.hsic(pair, estimator)).collect();
                let itself = hsic[..self.layers.len()].iter().enumerate();
                let roots =
                    itself.map(|(layer, &(hsic, terms))| in_layer(layer, estimator.root(hsic, terms)));
                let roots = roots.collect::<Result<Vec<_>>>()?;
                let score = |&(i, j)| estimator.cka(hsic[self.place(i, j)].0, roots[i] * roots[j]);
                Ok(pairs.iter().map(score).collect())
            }
            measure => spectral(measure, self.layers.len(), pairs, &|i, j| self.scatter(i, j), features),
        }
    }

    /// The largest absolute value of each layer.
    pub(crate) fn sizes(&self) -> impl Iterator<Item = f64> {
        let waiting = self.pending.slice(s![..self.waiting, ..]);
        self.layers
            .iter()
            .map(move |layer| layer.largest.max(largest(waiting.slice(s![.., layer.columns()]))))
    }

    /// A layer whose samples differ by more than rounding.
    fn tells_apart(&self, layer: usize) -> Result<()> {
        let Layer { sum, largest, .. } = &self.layers[layer];
        let squares = self.layers[layer].squares_about(&self.mean(layer), self.samples);
        let noise = (self.samples * sum.len()) as f64 * rounding(*largest).powi(2);
        if *largest > 0. && *largest < SAFE.start {
            return Err(Error::Tiny { largest: *largest });
        }
        if squares > noise { Ok(()) } else { Err(Error::Degenerate { spread: squares }) }
    }

    /// Relative to the shift.
    fn mean(&self, layer: usize) -> Array1<f64> {
        &self.layers[layer].sum / self.samples as f64
    }

    /// The sums of a pair about the means: `X^T Y`, and the others.
    fn centred(&self, pair: &Pair) -> (Array2<f64>, Pair) {
        let mut centred = pair.clone();
        let (i, j) = (pair.i, pair.j);
        let mut cross = self.cross(pair).to_owned();
        let layers = (&self.layers[i], &self.layers[j]);
        centred.translate(cross.view_mut(), layers, (&self.mean(i), &self.mean(j)), self.samples);
        if i == j {
            cross = both_triangles(cross.view());
        }
        (cross, centred)
    }

    fn hsic(&self, pair: &Pair, estimator: Estimator) -> (f64, f64) {
        let (cross, centred) = self.centred(pair);
        let squares = |l: usize| self.layers[l].squares_about(&self.mean(l), self.samples);
        let trace = cross.iter().map(|c| c * c).sum();
        let hsic = estimator.hsic(trace, centred.products, (squares(pair.i), squares(pair.j)), self.samples);
        (hsic, centred.products)
    }

    /// `X^T Y` of the centred features of a pair.
    fn scatter(&self, i: usize, j: usize) -> Array2<f64> {
        let (cross, _) = self.centred(&self.pairs[self.place(i, j)]);
        if i <= j { cross } else { cross.reversed_axes() }
    }

    fn cross(&self, pair: &Pair) -> ArrayView2<'_, f64> {
        self.bands[pair.i].slice(s![.., pair.column..pair.column + pair.v.len()])
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

    /// The state as a safetensors file, whose metadata come in any order: equal states can have different bytes.
    ///
    /// # Errors
    ///
    /// [`Error::Candle`] when sums cannot be read back from a GPU.
    pub fn to_bytes(&mut self) -> Result<Vec<u8>> {
        self.settle()?;
        let mut state = State::new("moments", self.samples);
        let layers = self.layers.len();
        let stacks = self.left.map_or(layers.to_string(), |left| format!("{left} {}", layers - left));
        state.note("stacks", stacks);
        for (i, layer) in self.layers.iter().enumerate() {
            state.add(format!("shift.{i}"), layer.shift.view());
            state.add(format!("sum.{i}"), layer.sum.view());
            state.add_numbers(format!("scalars.{i}"), &[layer.squares, layer.largest]);
        }
        for pair in &self.pairs {
            let name = format!("{}-{}", pair.i, pair.j);
            state.add(format!("cross.{name}"), self.cross(pair));
            state.add(format!("u.{name}"), pair.u.view());
            state.add(format!("v.{name}"), pair.v.view());
            state.add_numbers(format!("products.{name}"), &[pair.products]);
        }
        Ok(state.into_bytes())
    }

    /// Reads a state that [`to_bytes`](Self::to_bytes) wrote.
    ///
    /// # Errors
    ///
    /// [`Error::State`] for anything else.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let state = StateReader::new("moments", bytes)?;
        let mut widths = Vec::new();
        let stacks: Result<Vec<usize>, _> = state.text("stacks")?.split(' ').map(str::parse).collect();
        let (layers, left) = match stacks.as_deref() {
            Ok(&[layers]) => (layers, None),
            Ok(&[left, right]) if left > 0 && right > 0 => (left.saturating_add(right), Some(left)),
            _ => return Err(Error::State("stacks are not one or two numbers of layers".into())),
        };
        // Before anything is allocated by the sizes that the file claims.
        let others = match left {
            None => layers.checked_mul(layers.saturating_sub(1)).map(|both| both / 2),
            Some(left) => left.checked_mul(layers - left),
        };
        let tensors = || others?.checked_add(layers)?.checked_mul(4)?.checked_add(layers.checked_mul(3)?);
        state.holds(tensors().unwrap_or(usize::MAX))?;
        for i in 0..layers {
            widths.push(state.vector(&format!("shift.{i}"), None, LIMIT)?.len());
        }
        let pairs = match left {
            None => all_pairs(widths.len()),
            Some(left) => pairs_between(left, widths.len() - left),
        };
        let itself = (0..widths.len()).map(|l| (l, l));
        for (i, j) in itself.chain(pairs.iter().copied()) {
            state.matrix_shape(&format!("cross.{i}-{j}"), (widths[i], widths[j]))?;
        }
        let mut all = Self::of_pairs(&widths, &pairs, left).map_err(|e| Error::State(e.to_string()))?;
        let n = state.samples();
        all.samples = n;
        // What samples up to the limit can add up to, around any of them.
        let most = |widths: f64, power: i32| n as f64 * widths * (2. * LIMIT).powi(power);
        for (i, layer) in all.layers.iter_mut().enumerate() {
            let width = widths[i];
            let scalars = state.vector(&format!("scalars.{i}"), Some(2), most(width as f64, 2).max(LIMIT))?;
            *layer = Layer {
                first: layer.first,
                shift: state.vector(&format!("shift.{i}"), Some(width), LIMIT)?,
                sum: state.vector(&format!("sum.{i}"), Some(width), most(1., 1))?,
                squares: scalars[0],
                largest: scalars[1],
            };
        }
        for pair in &mut all.pairs {
            let (i, j) = (pair.i, pair.j);
            let name = format!("{i}-{j}");
            let (x, y) = (widths[i] as f64, widths[j] as f64);
            let cross = state.matrix(&format!("cross.{name}"), (widths[i], widths[j]), most(1., 2))?;
            all.bands[i].slice_mut(s![.., pair.column..pair.column + widths[j]]).assign(&cross);
            pair.u = state.vector(&format!("u.{name}"), Some(widths[i]), most(y, 3))?;
            pair.v = state.vector(&format!("v.{name}"), Some(widths[j]), most(x, 3))?;
            pair.products = state.vector(&format!("products.{name}"), Some(1), most(x * y, 4))?[0];
        }
        Ok(all)
    }
}

impl Layer {
    fn columns(&self) -> Range<usize> {
        self.first..self.first + self.sum.len()
    }

    /// Adds samples, of which it leaves `x - shift` in place; their `|x_i|^2`. Of the first ones the mean becomes the shift.
    fn add(&mut self, mut xs: ArrayViewMut2<'_, f64>, first: bool) -> Array1<f64> {
        if first {
            let mut mean = Mean::new(xs.ncols());
            mean.push(xs.view());
            self.shift = &mean.shift + &mean.offset();
        }
        let mut squared = Array1::zeros(xs.nrows());
        for (mut x, squared) in xs.rows_mut().into_iter().zip(&mut squared) {
            self.largest = self.largest.max(largest(x.view()));
            x -= &self.shift;
            self.sum += &x;
            *squared = x.dot(&x);
        }
        self.squares += squared.sum();
        squared
    }

    /// `sum_i |x_i - by|^2`.
    fn squares_about(&self, by: &Array1<f64>, n: usize) -> f64 {
        self.squares - 2. * by.dot(&self.sum) + n as f64 * by.dot(by)
    }
}

impl Pair {
    /// The sums of `x - dx` and `y - dy`, exactly, from those of `x` and `y`.
    fn translate(
        &mut self,
        mut cross: ArrayViewMut2<'_, f64>,
        (x, y): (&Layer, &Layer),
        (dx, dy): (&Array1<f64>, &Array1<f64>),
        n: usize,
    ) {
        let n = n as f64;
        let (along, across) = if self.i == self.j {
            let whole = both_triangles(cross.view());
            (whole.dot(dy), whole.dot(dx))
        } else {
            (cross.dot(dy), cross.t().dot(dx))
        };
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
        for (mut row, (&s, &d)) in cross.rows_mut().into_iter().zip(x.sum.iter().zip(dx)) {
            // -s_x d_y - d_x s_y + n d_x d_y
            row.scaled_add(n * d - s, dy);
            row.scaled_add(-d, &y.sum);
        }
    }
}

/// A share of the sums, written by one thread: columns `left` and `right` of all layers side by side.
struct Block<'a> {
    left: Range<usize>,
    right: Range<usize>,
    sums: ArrayViewMut2<'a, f64>,
}

/// Blocks of the band of a layer, at columns `own`: narrow ones of the upper triangle of the layer with itself, large ones of its
/// partners, of which those that stand side by side are taken as one.
fn blocks_of<'a>(
    own: Range<usize>,
    partners: &[Range<usize>],
    band: ArrayViewMut2<'a, f64>,
    blocks: &mut Vec<Block<'a>>,
) {
    const TRIANGLE: usize = 192;
    const ROWS: usize = 1024;
    const COLUMNS: usize = 2048;
    let (itself, mut rest) = band.split_at(Axis(1), own.len());
    for (mut sums, first) in cut(itself, Axis(1), TRIANGLE) {
        let rows = first + sums.ncols();
        sums.slice_collapse(s![..rows, ..]);
        let (left, right) = (own.start..own.start + rows, own.start + first..own.start + rows);
        blocks.push(Block { left, right, sums });
    }
    for run in runs(&partners[1..]) {
        let (sums, after) = rest.split_at(Axis(1), run.len());
        rest = after;
        for (sums, column) in cut(sums, Axis(1), COLUMNS) {
            let right = run.start + column..run.start + column + sums.ncols();
            for (sums, row) in cut(sums, Axis(0), ROWS) {
                let left = own.start + row..own.start + row + sums.nrows();
                blocks.push(Block { left, right: right.clone(), sums });
            }
        }
    }
}

/// Columns of which those that stand side by side are taken as one.
pub(crate) fn runs(columns: &[Range<usize>]) -> Vec<Range<usize>> {
    let mut runs: Vec<Range<usize>> = Vec::new();
    for columns in columns {
        match runs.last_mut() {
            Some(run) if run.end == columns.start => run.end = columns.end,
            _ => runs.push(columns.clone()),
        }
    }
    runs
}

/// Nearly equal parts of at most `size`, and where they start.
fn cut(xs: ArrayViewMut2<'_, f64>, axis: Axis, size: usize) -> Vec<(ArrayViewMut2<'_, f64>, usize)> {
    let length = xs.len_of(axis);
    let size = length.div_ceil(length.div_ceil(size));
    let (mut parts, mut rest, mut first) = (Vec::new(), xs, 0);
    while first < length {
        let (part, after) = rest.split_at(axis, size.min(length - first));
        rest = after;
        parts.push((part, first));
        first += size;
    }
    parts
}

/// A symmetric matrix from its upper triangle.
fn both_triangles(upper: ArrayView2<'_, f64>) -> Array2<f64> {
    Array2::from_shape_fn(upper.dim(), |(i, j)| upper[[i.min(j), i.max(j)]])
}
