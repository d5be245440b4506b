use std::{
    cell::{Cell, RefCell},
    rc::Rc,
};

use argmin::{
    core::{
        CostFunction, Error as SolverError, Executor, Gradient, KV,
        observers::{Observe, ObserverMode},
    },
    solver::{linesearch::MoreThuenteLineSearch, quasinewton::LBFGS},
};
use ndarray::{Array1, Array2, ArrayView2, Axis};

use crate::{
    Centring, Error, Representation, Result,
    frame::Frame,
    linalg::product,
    mean::ROWS,
    representation::{chunks, finite_rows, shape},
};

/// How a linear probe is fitted.
#[derive(Clone, Debug, PartialEq)]
pub struct ProbeConfig {
    /// Weight of `|W|^2 / 2` beside the mean cross-entropy; positive, so that there is one solution. 1e-4 (ours; the paper does not
    /// say). Where classes can be separated, the smaller it is the longer the weights and the more steps are needed.
    pub l2: f64,
    /// Most steps of L-BFGS; 500.
    pub iterations: usize,
    /// The fit ends when the gradient, for features of unit variance, is shorter than this; 1e-6.
    pub tolerance: f64,
}

/// Most weights and biases of a probe.
const WEIGHTS: usize = 1 << 31;

impl Default for ProbeConfig {
    fn default() -> Self {
        Self { l2: 1e-4, iterations: 500, tolerance: 1e-6 }
    }
}

/// A linear classifier on frozen features.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Probe {
    /// `(C, d)`.
    pub weights: Array2<f64>,
    /// `(C)`, with sum 0.
    pub bias: Array1<f64>,
    /// The minimised objective.
    pub loss: f64,
    /// Steps taken.
    pub iterations: usize,
    /// Whether the gradient met the tolerance.
    pub converged: bool,
}

/// Fits a linear probe (Alain and Bengio 2016; the paper, figure 3): what a fresh linear classifier can read from a layer.
///
/// ```text
/// min_(W, b)  1/n sum_i CE(W x_i + b, y_i) + l2/2 |W|_F^2
/// ```
///
/// `x` is `(n, d)`. All samples at once, by L-BFGS on features of zero mean and unit variance, which changes the path and not the
/// solution. Score it on other samples than those it was fitted on.
///
/// # Errors
///
/// [`Error::Labels`] and [`Error::Label`] for labels that do not fit, [`Error::Classes`] below 2 classes, [`Error::Setting`] for
/// numbers that are not positive and above 2^31 weights, [`Error::NotFinite`] for a NaN, [`Error::Convergence`] when no step could be
/// taken.
///
/// # Example
///
/// ```
/// use layerwise_similarity::{ProbeConfig, fit_probe};
/// use ndarray::array;
///
/// let (x, labels) = (array![[0.], [1.], [4.], [5.]], [0, 0, 1, 1]);
/// let probe = fit_probe(&x, &labels, 2, &ProbeConfig::default())?;
/// assert_eq!(probe.predict(&array![[-1.], [2.], [3.]])?, [0, 0, 1]);
/// assert_eq!(probe.accuracy(&x, &labels)?, 1.);
/// # Ok::<(), layerwise_similarity::Error>(())
/// ```
pub fn fit_probe(
    x: &dyn Representation,
    labels: &[usize],
    classes: usize,
    config: &ProbeConfig,
) -> Result<Probe> {
    for (name, value) in [("l2", config.l2), ("tolerance", config.tolerance)] {
        if !(value > 0. && value.is_finite()) {
            return Err(Error::Setting { name, value, expected: "a positive number" });
        }
    }
    if config.iterations == 0 {
        return Err(Error::Setting { name: "iterations", value: 0., expected: "at least 1" });
    }
    if classes < 2 {
        return Err(Error::Classes { found: classes, expected: 2 });
    }
    let (n, width) = shape(x)?;
    if classes > WEIGHTS / (width + 1) {
        let expected = "at most 2^31 weights: classes * (width + 1)";
        return Err(Error::Setting { name: "classes", value: classes as f64, expected });
    }
    check_labels(n, labels, classes)?;
    let frame = Frame::new(x, Centring::Samples)?;
    let mut xs = frame.all()?;
    let deviation = xs.map_axis(Axis(0), |feature| (feature.dot(&feature) / n as f64).sqrt());
    // Weights of features of unit variance are those of the features themselves, times their deviation.
    let mut factor = deviation.mapv(|deviation| frame.scale() / deviation);
    for (mut feature, factor) in xs.columns_mut().into_iter().zip(&mut factor) {
        // Features that do not vary, or so little that no weight the penalty allows could use them, keep weight 0.
        if *factor < 1e60 {
            feature *= *factor / frame.scale();
        } else {
            feature.fill(0.);
            *factor = 1.;
        }
    }
    let objective = Objective {
        penalty: factor.mapv(|factor| config.l2 * factor * factor),
        xs,
        labels,
        classes,
        evaluations: Cell::new(config.iterations.saturating_mul(20).saturating_add(20)),
        last: RefCell::default(),
        best: RefCell::default(),
    };
    let failed = |_| Error::Convergence("linear probe");
    let solver = LBFGS::new(MoreThuenteLineSearch::new(), 10)
        .with_tolerance_grad(config.tolerance)
        .and_then(|solver| solver.with_tolerance_cost(0.))
        .map_err(failed)?;
    let start = vec![0.; classes * (width + 1)];
    let steps = Steps::default();
    // Near the solution the search may find nothing lower along its direction, which is an error to the solver; the best point
    // that it has seen stays with us.
    let _ = Executor::new(&objective, solver)
        .configure(|state| state.param(start).max_iters(config.iterations as u64))
        .add_observer(steps.clone(), ObserverMode::Always)
        .timer(false)
        .run();
    let best = objective.best.take().ok_or(Error::Convergence("linear probe"))?;
    let (weights, bias) = objective.parts(&best.param);
    let weights = &weights * &factor;
    let bias = &bias - &weights.dot(&(frame.mean() / frame.scale()));
    Ok(Probe {
        bias: &bias - bias.sum() / classes as f64,
        weights,
        loss: best.cost,
        iterations: steps.0.get(),
        converged: best.slope() <= config.tolerance,
    })
}

impl Probe {
    /// The class of each sample, `(n)`.
    ///
    /// # Errors
    ///
    /// [`Error::Widths`] for features of another width, [`Error::NotFinite`] for a NaN.
    pub fn predict(&self, x: &dyn Representation) -> Result<Vec<usize>> {
        let (n, width) = shape(x)?;
        if width != self.weights.ncols() {
            return Err(Error::Widths { left: self.weights.ncols(), right: width });
        }
        let mut classes = Vec::with_capacity(n);
        for rows in chunks(n, ROWS) {
            let logits = product(finite_rows(x, rows)?.view(), self.weights.t()) + &self.bias;
            classes.extend(logits.rows().into_iter().map(|row| {
                let larger = |best: usize, (class, logit): (usize, &f64)| {
                    if *logit > row[best] { class } else { best }
                };
                row.iter().enumerate().fold(0, larger)
            }));
        }
        Ok(classes)
    }

    /// The share of samples whose class is their label.
    ///
    /// # Errors
    ///
    /// As [`predict`](Self::predict); [`Error::Labels`] and [`Error::Label`] for labels that do not fit.
    pub fn accuracy(&self, x: &dyn Representation, labels: &[usize]) -> Result<f64> {
        check_labels(shape(x)?.0, labels, self.weights.nrows())?;
        let right = self.predict(x)?.iter().zip(labels).filter(|(class, label)| class == label).count();
        Ok(right as f64 / labels.len() as f64)
    }
}

pub(crate) fn check_labels(samples: usize, labels: &[usize], classes: usize) -> Result<()> {
    if labels.len() != samples {
        return Err(Error::Labels { labels: labels.len(), samples });
    }
    match labels.iter().enumerate().find(|(_, label)| **label >= classes) {
        Some((row, &label)) => Err(Error::Label { row, label, classes }),
        None => Ok(()),
    }
}

/// The objective in weights of features of unit variance; parameters are the weights, row by row, then the bias.
struct Objective<'a> {
    /// Centred, of unit variance.
    xs: Array2<f64>,
    labels: &'a [usize],
    classes: usize,
    /// What `|W|^2` weighs in these coordinates.
    penalty: Array1<f64>,
    /// How often it may be evaluated: a line search without success does not end by itself.
    evaluations: Cell<usize>,
    /// The solver asks for cost and gradient of the same point one after the other.
    last: RefCell<Option<Point>>,
    best: RefCell<Option<Point>>,
}

/// Counts the steps: a search that fails does not say how many it took.
#[derive(Clone, Default)]
struct Steps(Rc<Cell<usize>>);

impl<I> Observe<I> for Steps {
    fn observe_iter(&mut self, _state: &I, _kv: &KV) -> Result<(), SolverError> {
        self.0.set(self.0.get() + 1);
        Ok(())
    }
}

#[derive(Clone)]
struct Point {
    param: Vec<f64>,
    cost: f64,
    gradient: Vec<f64>,
}

impl Point {
    /// Lower, or as low to rounding and flatter.
    fn is_better(&self, other: &Self) -> bool {
        let rounding = 4. * f64::EPSILON * other.cost.abs();
        match self.cost - other.cost {
            less if less < -rounding => true,
            more if more > rounding => false,
            _ => self.slope() < other.slope(),
        }
    }

    /// Length of the gradient.
    fn slope(&self) -> f64 {
        self.gradient.iter().map(|x| x * x).sum::<f64>().sqrt()
    }
}

impl Objective<'_> {
    fn parts(&self, param: &[f64]) -> (Array2<f64>, Array1<f64>) {
        let (weights, bias) = param.split_at(self.classes * self.xs.ncols());
        let weights = ArrayView2::from_shape((self.classes, self.xs.ncols()), weights);
        (weights.expect("as many as there are parameters").to_owned(), Array1::from_vec(bias.to_vec()))
    }

    fn at<T>(&self, param: &[f64], read: impl FnOnce(&Point) -> T) -> Result<T, SolverError> {
        let known = self.last.borrow().as_ref().is_some_and(|point| point.param == param);
        if !known {
            let left = self.evaluations.get().checked_sub(1);
            self.evaluations.set(left.ok_or_else(|| SolverError::msg("no lower point"))?);
            let point = self.evaluate(param);
            if !point.cost.is_finite() {
                return Err(SolverError::msg("no finite loss"));
            }
            let mut best = self.best.borrow_mut();
            if best.as_ref().is_none_or(|best| point.is_better(best)) {
                *best = Some(point.clone());
            }
            self.last.replace(Some(point));
        }
        Ok(read(self.last.borrow().as_ref().expect("just evaluated")))
    }

    fn evaluate(&self, param: &[f64]) -> Point {
        let (weights, bias) = self.parts(param);
        let n = self.labels.len() as f64;
        // Turned into probabilities minus the labels' one-hot rows.
        let mut errors = product(self.xs.view(), weights.t()) + &bias;
        let mut cost = 0.;
        for (mut row, &label) in errors.rows_mut().into_iter().zip(self.labels) {
            let largest = row.fold(f64::NEG_INFINITY, |largest, x| largest.max(*x));
            let logit = row[label];
            row.mapv_inplace(|x| (x - largest).exp());
            let sum = row.sum();
            cost += sum.ln() + largest - logit;
            row /= sum;
            row[label] -= 1.;
        }
        let penalised = &weights * &self.penalty;
        cost = cost / n + 0.5 * (&weights * &penalised).sum();
        let for_weights = product(errors.t(), self.xs.view()) / n + penalised;
        let for_bias = errors.sum_axis(Axis(0)) / n;
        let gradient = for_weights.iter().chain(&for_bias).copied().collect();
        Point { param: param.to_vec(), cost, gradient }
    }
}

impl CostFunction for &Objective<'_> {
    type Param = Vec<f64>;
    type Output = f64;

    fn cost(&self, param: &Vec<f64>) -> Result<f64, SolverError> {
        self.at(param, |point| point.cost)
    }
}

impl Gradient for &Objective<'_> {
    type Param = Vec<f64>;
    type Gradient = Vec<f64>;

    fn gradient(&self, param: &Vec<f64>) -> Result<Vec<f64>, SolverError> {
        self.at(param, |point| point.gradient.clone())
    }
}
