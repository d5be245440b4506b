use ndarray::{Array1, Array2, ArrayView2, Axis, s};

use crate::{
    Error, Representation, Result,
    frame::{SAFE, safe_scale, size_of},
    linalg::{add_product, eigen, product},
    mean::{Mean, read_batch, rounding, stack_widths},
    moments::{CHUNK, LIMIT},
    probe::check_labels,
    representation::{chunks, finite_rows, shape},
    spectral::RANK,
    state::{State, StateReader},
};

/// How far the features of one layer have collapsed onto their class means (Papyan, Han and Donoho 2020); each is 0 at full
/// collapse.
///
/// With class means `mu_c`, their `C` differences from the mean of all samples `m_c = mu_c - mu_G`, the within-class covariance
/// `S_W = 1/n sum_i (x_i - mu_(y_i)) (x_i - mu_(y_i))^T` and the between-class covariance `S_B = 1/C sum_c m_c m_c^T`:
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Collapse {
    /// Variability collapse, `tr(S_W S_B^+) / C` (the paper, figure 3). Directions between classes with less than 1e-10 of the
    /// variance of the largest one count as rounding.
    pub nc1: f64,
    /// Equal norms: standard deviation of `|m_c|` over their mean.
    pub nc2_norms: f64,
    /// Equal angles: mean of `|cos(m_c, m_c') + 1 / (C - 1)|` over pairs of classes.
    pub nc2_angles: f64,
}

/// Neural collapse of features `(n, d)` with a label for each sample.
///
/// Unchanged by a rotation, a shift or a scaling.
///
/// # Errors
///
/// [`Error::Labels`] and [`Error::Label`] for labels that do not fit, [`Error::Classes`] below 2 classes or when one has no samples,
/// [`Error::NotFinite`] for a NaN, [`Error::Degenerate`] when two class means coincide with the mean of all, so that there is nothing
/// between classes.
///
/// # Example
///
/// ```
/// use layerwise_similarity::neural_collapse;
/// use ndarray::array;
///
/// let x = array![[1., 0.1], [1., -0.1], [-1., 0.1], [-1., -0.1]];
/// let collapse = neural_collapse(&x, &[0, 0, 1, 1], 2)?;
/// assert!(collapse.nc1 < 1e-12); // what varies within classes is orthogonal to what is between them
/// assert!(collapse.nc2_norms < 1e-12 && collapse.nc2_angles < 1e-12);
/// # Ok::<(), layerwise_similarity::Error>(())
/// ```
pub fn neural_collapse(x: &dyn Representation, labels: &[usize], classes: usize) -> Result<Collapse> {
    // No measure of collapse depends on scale.
    accumulate(x, labels, classes, safe_scale(size_of(x)?))?.collapse()
}

/// The mean features of each class, `(C, d)`.
///
/// # Errors
///
/// As [`neural_collapse`]; [`Error::Magnitude`] above 1e60.
///
/// # Example
///
/// ```
/// use layerwise_similarity::class_means;
/// use ndarray::array;
///
/// let x = array![[1., 0.], [3., 0.], [0., 5.]];
/// assert_eq!(class_means(&x, &[0, 0, 1], 2)?, array![[2., 0.], [0., 5.]]);
/// # Ok::<(), layerwise_similarity::Error>(())
/// ```
pub fn class_means(x: &dyn Representation, labels: &[usize], classes: usize) -> Result<Array2<f64>> {
    accumulate(x, labels, classes, 1.)?.means()
}

fn accumulate(
    x: &dyn Representation,
    labels: &[usize],
    classes: usize,
    scale: f64,
) -> Result<ClassAccumulator> {
    let (n, width) = shape(x)?;
    if classes < 2 {
        return Err(Error::Classes { found: classes, expected: 2 });
    }
    check_labels(n, labels, classes)?;
    // Before room for them is made.
    if classes > n {
        let found = labels.iter().collect::<std::collections::HashSet<_>>().len();
        return Err(Error::Classes { found, expected: classes });
    }
    let mut sums = ClassAccumulator::new(width, classes)?;
    for rows in chunks(n, CHUNK) {
        let first = rows.start;
        let part = finite_rows(x, rows.clone())? * scale;
        sums.push(&part, &labels[rows]).map_err(|error| match error {
            Error::Magnitude { row, column, limit } => Error::Magnitude { row: first + row, column, limit },
            other => other,
        })?;
    }
    Ok(sums)
}

/// Class means and neural collapse of one layer, from labelled samples that come batch by batch; mergeable.
///
/// The memory is `(d + C) d` numbers of f64, whatever the number of samples.
///
/// # Example
///
/// ```
/// use layerwise_similarity::{ClassAccumulator, neural_collapse};
/// use ndarray::{array, s};
///
/// let (x, labels) = (array![[1., 0.2], [2., 0.1], [-1., 0.1], [-3., 1.]], [0, 0, 1, 1]);
/// let mut here = ClassAccumulator::new(2, 2)?;
/// here.push(&x.slice(s![..3, ..]), &labels[..3])?;
/// let mut there = ClassAccumulator::new(2, 2)?;
/// there.push(&x.slice(s![3.., ..]), &labels[3..])?;
/// here.merge(ClassAccumulator::from_bytes(&there.to_bytes())?)?;
/// assert!((here.collapse()?.nc1 - neural_collapse(&x, &labels, 2)?.nc1).abs() < 1e-9);
/// # Ok::<(), layerwise_similarity::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct ClassAccumulator {
    /// What all numbers are relative to.
    shift: Array1<f64>,
    /// Samples of each class.
    counts: Vec<usize>,
    /// Sum of each class, `(C, d)`.
    sums: Array2<f64>,
    /// `sum_i x_i x_i^T`, `(d, d)`.
    scatter: Array2<f64>,
    /// The largest number itself.
    largest: f64,
}

impl ClassAccumulator {
    /// For features of this width.
    ///
    /// # Errors
    ///
    /// [`Error::Width`] for a width of 0, [`Error::Classes`] below 2 classes.
    pub fn new(width: usize, classes: usize) -> Result<Self> {
        if width == 0 {
            return Err(Error::Width);
        }
        if classes < 2 {
            return Err(Error::Classes { found: classes, expected: 2 });
        }
        Ok(Self {
            shift: Array1::zeros(width),
            counts: vec![0; classes],
            sums: Array2::zeros((classes, width)),
            scatter: Array2::zeros((width, width)),
            largest: 0.,
        })
    }

    /// Adds the next samples, `(rows, width)`, with their labels. When it fails, nothing was added.
    ///
    /// # Errors
    ///
    /// [`Error::Labels`], [`Error::Label`], [`Error::Widths`], [`Error::NotFinite`] or, above 1e60, [`Error::Magnitude`].
    pub fn push(&mut self, x: &dyn Representation, labels: &[usize]) -> Result<()> {
        let read = read_batch(&[x], stack_widths(&[self.shift.len()])?, LIMIT);
        let mut xs = read.map_err(crate::pairwise::without_layer)?.swap_remove(0);
        check_labels(xs.nrows(), labels, self.counts.len())?;
        self.largest = self.largest.max(crate::frame::largest(xs.view()));
        if self.samples() == 0 {
            let mut mean = Mean::new(xs.ncols());
            mean.push(xs.view());
            self.shift = &mean.shift + &mean.offset();
        }
        xs -= &self.shift;
        for (x, &label) in xs.rows().into_iter().zip(labels) {
            let mut sum = self.sums.row_mut(label);
            sum += &x;
            self.counts[label] += 1;
        }
        add_product(self.scatter.view_mut(), xs.t(), xs.view());
        Ok(())
    }

    /// Adds what another accumulator, of the same width and classes, has seen.
    ///
    /// # Errors
    ///
    /// [`Error::Mismatch`] when it was made for others.
    pub fn merge(&mut self, mut other: Self) -> Result<()> {
        if self.sums.dim() != other.sums.dim() {
            return Err(Error::Mismatch { what: "width or classes" });
        }
        if self.samples() == 0 {
            *self = other;
            return Ok(());
        }
        // Around our shift.
        let by = &self.shift - &other.shift;
        let (n, sum) = (other.samples() as f64, other.sums.sum_axis(Axis(0)));
        add_outer(&mut other.scatter, &(&by * n - &sum), &by);
        add_outer(&mut other.scatter, &(-&by), &sum);
        for (mut sum, &count) in other.sums.rows_mut().into_iter().zip(&other.counts) {
            sum.scaled_add(-(count as f64), &by);
        }
        self.sums += &other.sums;
        self.scatter += &other.scatter;
        self.largest = self.largest.max(other.largest);
        for (ours, theirs) in self.counts.iter_mut().zip(&other.counts) {
            *ours += theirs;
        }
        Ok(())
    }

    /// Samples seen.
    #[must_use]
    pub fn samples(&self) -> usize {
        self.counts.iter().sum()
    }

    /// The mean features of each class, `(C, d)`.
    ///
    /// # Errors
    ///
    /// [`Error::Classes`] when a class has no samples.
    pub fn means(&self) -> Result<Array2<f64>> {
        Ok(self.shifted_means()? + &self.shift)
    }

    /// Variability collapse and the geometry of the class means.
    ///
    /// # Errors
    ///
    /// [`Error::Classes`] when a class has no samples, [`Error::Degenerate`] when there is nothing between classes,
    /// [`Error::Tiny`] below 1e-60.
    pub fn collapse(&self) -> Result<Collapse> {
        let means = self.shifted_means()?;
        let between = self.between(&means)?;
        let (classes, n) = (means.nrows() as f64, self.samples() as f64);
        let counts = Array1::from_iter(self.counts.iter().map(|&count| count as f64));
        // S_W = 1/n (sum_i x_i x_i^T - sum_c n_c mu_c mu_c^T)
        let weighted = &means * &counts.insert_axis(Axis(1));
        let within = (&self.scatter - &product(weighted.t(), means.view())) / n;
        // With M of rows m_c and M M^T = U D U^T: S_B^+ = C M^T U D^-2 U^T M.
        let gram = product(between.view(), between.t());
        let (values, vectors) = eigen(&gram)?;
        let rank = values.iter().take_while(|&&value| value > RANK * values[0]).count();
        let directions = product(vectors.slice(s![.., ..rank]).t(), between.view());
        let turned = product(directions.view(), within.view());
        let along = (&turned * &directions).sum_axis(Axis(1));
        let nc1 = (&along / &values.slice(s![..rank]).mapv(|value| value * value)).sum();

        let norms = gram.diag().mapv(f64::sqrt);
        let mean = norms.sum() / classes;
        let deviation = (norms.mapv(|norm| (norm - mean).powi(2)).sum() / classes).sqrt();
        let mut angles = 0.;
        for (i, j) in crate::pairwise::all_pairs(means.nrows()).into_iter().filter(|(i, j)| i < j) {
            let lengths = norms[i] * norms[j];
            let cosine = if lengths > 0. { gram[[i, j]] / lengths } else { 0. };
            angles += (cosine + 1. / (classes - 1.)).abs();
        }
        Ok(Collapse {
            // What rounding leaves below 0 of a trace that is 0.
            nc1: nc1.max(0.),
            nc2_norms: deviation / mean,
            nc2_angles: angles / (classes * (classes - 1.) / 2.),
        })
    }

    /// Self-duality: `| W / |W|_F - M / |M|_F |_F` of the classifier's weights `W`, `(C, d)`, and the centred class means. In `[0, 2]`.
    ///
    /// Unchanged by a scaling of either, a shift of the features, and a rotation of both.
    ///
    /// # Errors
    ///
    /// As [`collapse`](Self::collapse); [`Error::Rows`] or [`Error::Widths`] when the weights have another shape,
    /// [`Error::NotFinite`] for a NaN in them, [`Error::Degenerate`] when they are 0.
    pub fn nc3(&self, weights: ArrayView2<'_, f64>) -> Result<f64> {
        let between = self.between(&self.shifted_means()?)?;
        crate::representation::same_rows(between.nrows(), weights.nrows())?;
        if between.ncols() != weights.ncols() {
            return Err(Error::Widths { left: between.ncols(), right: weights.ncols() });
        }
        if let Some(((row, column), _)) = weights.indexed_iter().find(|(_, x)| !x.is_finite()) {
            return Err(Error::NotFinite { row, column });
        }
        let size = crate::frame::largest(weights);
        if size == 0. {
            return Err(Error::Degenerate { spread: 0. });
        }
        let norm = |xs: &Array2<f64>| xs.iter().map(|x| x * x).sum::<f64>().sqrt();
        let weights = &weights / size;
        Ok(norm(&(&weights / norm(&weights) - &between / norm(&between))))
    }

    /// The state as a safetensors file, whose metadata come in any order: equal states can have different bytes.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut state = State::new("class", self.samples());
        let counts: Vec<String> = self.counts.iter().map(usize::to_string).collect();
        state.note("counts", counts.join(" "));
        state.add("shift".into(), self.shift.view());
        state.add("sums".into(), self.sums.view());
        state.add("scatter".into(), self.scatter.view());
        state.add_numbers("largest".into(), &[self.largest]);
        state.into_bytes()
    }

    /// Reads a state that [`to_bytes`](Self::to_bytes) wrote.
    ///
    /// # Errors
    ///
    /// [`Error::State`] for anything else.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let state = StateReader::new("class", bytes)?;
        let counts: Result<Vec<usize>, _> =
            state.text("counts")?.split_whitespace().map(str::parse).collect();
        let counts = counts.map_err(|e| Error::State(format!("counts: {e}")))?;
        if counts.len() < 2
            || counts.iter().try_fold(0usize, |sum, &n| sum.checked_add(n)) != Some(state.samples())
        {
            return Err(Error::State(
                "counts that do not add up to the samples of two classes or more".into(),
            ));
        }
        let shift = state.vector("shift", None, LIMIT)?;
        let width = shift.len();
        // What samples up to the limit can add up to, around any of them.
        let most = |power| state.samples() as f64 * (2. * LIMIT).powi(power);
        Ok(Self {
            sums: state.matrix("sums", (counts.len(), width), most(1))?,
            scatter: state.matrix("scatter", (width, width), most(2))?,
            largest: state.vector("largest", Some(1), LIMIT)?[0],
            shift,
            counts,
        })
        .and_then(|all| state.holds(4).map(|()| all))
    }

    /// Relative to the shift.
    fn shifted_means(&self) -> Result<Array2<f64>> {
        let found = self.counts.iter().filter(|count| **count > 0).count();
        if found < self.counts.len() {
            return Err(Error::Classes { found, expected: self.counts.len() });
        }
        let counts = Array1::from_iter(self.counts.iter().map(|&count| count as f64));
        Ok(&self.sums / &counts.insert_axis(Axis(1)))
    }

    /// `m_c`, as rows.
    fn between(&self, means: &Array2<f64>) -> Result<Array2<f64>> {
        let between = means - &(self.sums.sum_axis(Axis(0)) / self.samples() as f64);
        let largest = crate::frame::largest(between.view());
        if self.largest > 0. && self.largest < SAFE.start {
            return Err(Error::Tiny { largest: self.largest });
        }
        if largest > rounding(self.largest) {
            Ok(between)
        } else {
            Err(Error::Degenerate { spread: largest })
        }
    }
}

/// `a += x y^T`.
fn add_outer(a: &mut Array2<f64>, x: &Array1<f64>, y: &Array1<f64>) {
    for (mut row, x) in a.rows_mut().into_iter().zip(x) {
        row.scaled_add(*x, y);
    }
}
