//! Cross-entropies of many exits under one head, without their logits.

use candle_core::{DType, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use crate::{
    gemm::{Mat, MatMut, Threads, gemm},
    half::is_half,
    host::{has_gpu_kernel, has_kernel, with_values},
    linear::{column_sums, start},
    many::{Backward, record},
    simd,
};

/// Logits in memory at once, above which [`multi_exit_linear_cross_entropy`] is what to call: 4 MiB of them. Fewer are computed as fast without it.
pub const MANY_LOGITS: usize = 1 << 20;

/// In errors.
const NAME: &str = "multi_exit_linear_cross_entropy";

/// Options of [`multi_exit_linear_cross_entropy`].
#[derive(Clone, Debug, PartialEq)]
pub struct MultiExit {
    /// What each exit's mean cross-entropy counts in the sum; an exit of weight 0 is summed up only.
    pub exit_weights: Vec<f64>,
    /// Rows with this target count nothing.
    pub ignore_index: Option<u32>,
    /// In `[0, 1)`: the target distribution is `(1 - e)` on the label plus `e / classes` everywhere.
    pub label_smoothing: f64,
    /// Rows whose logits are in memory at once; 512.
    pub chunk: usize,
}

impl Default for MultiExit {
    fn default() -> Self {
        Self { exit_weights: Vec::new(), ignore_index: None, label_smoothing: 0., chunk: 512 }
    }
}

/// What [`multi_exit_linear_cross_entropy`] tells.
#[derive(Clone, Debug)]
pub struct MultiExitLoss {
    /// `sum_l w_l CE_l`, a scalar on the graph.
    pub total: Tensor,
    /// Of each exit.
    pub exits: Vec<ExitSummary>,
}

/// Means over an exit's rows that are not ignored, each weighed as in the loss; NaN where there is none.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ExitSummary {
    /// Cross-entropy, `CE_l`.
    pub cross_entropy: f64,
    /// Share of rows whose largest logit is the target's.
    pub accuracy: f64,
    /// Largest probability.
    pub max_probability: f64,
    /// Largest probability less the second largest.
    pub margin: f64,
    /// Entropy of the probabilities, in nats.
    pub entropy: f64,
}

/// `sum_l w_l CE_l`, where `CE_l` is the mean cross-entropy of `x_l W^T + b` against the same targets for every exit `l`.
///
/// `features` are `x_l` `(rows, width)`, one an exit; `weight` is `(classes, width)`, `bias` `(classes)`, `targets` `(rows)`, u32, and
/// `row_weights` `(rows)` if rows are to count differently; they are constants. The logits of `chunk` rows are in memory at a time, never those of an exit; gradients
/// are there when the loss is, and only for inputs that are on a graph. Walking back through a multiple of the sum scales copies of them.
///
/// A NaN among a row's logits makes the loss NaN. A row that is ignored or weighs 0 counts nothing, whatever its logits are.
///
/// # Errors
///
/// When shapes differ, there is not one weight an exit, or a target is neither below `classes` nor the ignored index; the error names its row.
///
/// # Example
///
/// ```
/// use candle_core::{Device::Cpu, Tensor};
/// use layerwise_ops::{MultiExit, multi_exit_linear_cross_entropy};
///
/// let exits = [Tensor::new(&[[0f32, 0.]], &Cpu)?, Tensor::new(&[[9f32, 0.]], &Cpu)?];
/// let head = Tensor::new(&[[1f32, 0.], [0., 1.]], &Cpu)?;
/// let config = MultiExit { exit_weights: vec![1. / 3., 2. / 3.], ..Default::default() };
/// let loss = multi_exit_linear_cross_entropy(&exits, &head, None, &Tensor::new(&[0u32], &Cpu)?, None, &config)?;
/// assert!((loss.exits[0].cross_entropy - 2f64.ln()).abs() < 1e-6 && loss.exits[1].cross_entropy < 1e-3);
/// assert!((loss.total.to_scalar::<f32>()? - 0.2311).abs() < 1e-3);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn multi_exit_linear_cross_entropy(
    features: &[Tensor],
    weight: &Tensor,
    bias: Option<&Tensor>,
    targets: &Tensor,
    row_weights: Option<&Tensor>,
    config: &MultiExit,
) -> Result<MultiExitLoss> {
    let shape = Sizes::of(features, weight, bias, targets, row_weights, config)?;
    let inputs: Vec<&Tensor> = features.iter().chain([weight]).chain(bias).collect();
    let on_gpu_as_they_are = has_gpu_kernel(inputs.iter().copied());
    if !on_gpu_as_they_are && inputs.iter().any(|xs| is_half(xs)) {
        let wide = |xs: &Tensor| xs.to_dtype(DType::F32);
        let features: Vec<Tensor> = features.iter().map(wide).collect::<Result<_>>()?;
        let bias = bias.map(wide).transpose()?;
        return multi_exit_linear_cross_entropy(
            &features,
            &wide(weight)?,
            bias.as_ref(),
            targets,
            row_weights,
            config,
        );
    }
    let ids = targets.to_vec1::<u32>()?;
    let wrong = |&id: &u32| id as usize >= shape.classes && config.ignore_index != Some(id);
    if let Some(row) = ids.iter().position(wrong) {
        let (id, classes) = (ids[row], shape.classes);
        bail!("{NAME}: row {row} has label {id}, there are {classes} classes")
    }
    if ids.is_empty() {
        let nothing = Sums::default().over(0.);
        return Ok(MultiExitLoss {
            total: Tensor::new(f32::NAN, weight.device())?,
            exits: vec![nothing; features.len()],
        });
    }
    #[cfg(feature = "cuda")]
    if on_gpu_as_they_are {
        let row_weights = row_weights_of(row_weights, &ids, config)?;
        return on_gpu(&inputs, features.len(), &ids, &row_weights, config);
    }
    if !inputs.iter().all(|xs| has_kernel(xs)) {
        return crate::plain::multi_exit_linear_cross_entropy(
            features,
            weight,
            bias,
            targets,
            row_weights,
            config,
        );
    }
    let row_weights = row_weights_of(row_weights, &ids, config)?;
    let inputs: Vec<Tensor> = inputs.iter().map(|xs| xs.contiguous()).collect::<Result<_>>()?;
    let inputs: Vec<&Tensor> = inputs.iter().collect();
    let rows = Rows { ids: &ids, weights: &row_weights, total: sum(&row_weights), config };
    let tracked: Vec<bool> = inputs.iter().map(|xs| xs.track_op()).collect();
    let done = with_values(&inputs, |values| {
        let (features, head) = values.split_at(features.len());
        Ok(Chunks { features, weight: head[0], bias: head.get(1).copied(), shape, tracked: &tracked }
            .run(&rows))
    })?;
    let summary = |sums: &Sums| sums.over(rows.total);
    let exits: Vec<ExitSummary> = done.sums.iter().map(summary).collect();
    let total = weighed(&exits, config);
    let mut gradients = Vec::with_capacity(inputs.len());
    for (gradient, input) in done.gradients.into_iter().zip(&inputs) {
        let tensor = |gradient| Tensor::from_vec(gradient, input.shape(), input.device());
        gradients.push(gradient.map(tensor).transpose()?);
    }
    let total = record(&inputs, vec![total as f32], &Shape::from(()), Gradients(gradients))?;
    Ok(MultiExitLoss { total, exits })
}

/// What each row weighs; nothing where its target is ignored.
fn row_weights_of(weights: Option<&Tensor>, ids: &[u32], config: &MultiExit) -> Result<Vec<f32>> {
    let mut weights = match weights {
        Some(weights) => weights.to_dtype(DType::F32)?.to_vec1::<f32>()?,
        None => vec![1.; ids.len()],
    };
    for (row, (weight, id)) in weights.iter_mut().zip(ids).enumerate() {
        if !weight.is_finite() || *weight < 0. {
            bail!("{NAME}: row {row} weighs {weight}, expected a finite number, at least 0")
        }
        if config.ignore_index == Some(*id) {
            *weight = 0.;
        }
    }
    Ok(weights)
}

/// The sum of the exits' cross-entropies, each times its weight; one of weight 0 may be NaN.
fn weighed(exits: &[ExitSummary], config: &MultiExit) -> f64 {
    let exits = exits.iter().zip(&config.exit_weights).filter(|(_, weight)| **weight != 0.);
    exits.map(|(exit, weight)| weight * exit.cross_entropy).sum()
}

/// The same by kernels of CUDA.
#[cfg(feature = "cuda")]
fn on_gpu(
    inputs: &[&Tensor],
    exits: usize,
    ids: &[u32],
    row_weights: &[f32],
    config: &MultiExit,
) -> Result<MultiExitLoss> {
    use crate::cuda::{Counted, multi_exit, recorded};

    let total = sum(row_weights);
    let rows: Vec<u32> =
        (0..).zip(row_weights).filter(|(_, weight)| **weight != 0.).map(|(row, _)| row).collect();
    if rows.is_empty() {
        let nothing = Sums::default().over(0.);
        let loss = Tensor::new(f32::NAN, inputs[0].device())?;
        return Ok(MultiExitLoss { total: loss, exits: vec![nothing; exits] });
    }
    let counted = Counted {
        targets: rows.iter().map(|&row| ids[row as usize]).collect(),
        weights: rows.iter().map(|&row| row_weights[row as usize]).collect(),
        slopes: config.exit_weights.iter().map(|weight| (weight / total) as f32).collect(),
        smoothing: config.label_smoothing as f32,
        chunk: config.chunk,
        rows: (rows.len() < ids.len()).then_some(rows),
    };
    let features = Tensor::cat(&inputs[..exits], 0)?;
    let inputs: Vec<&Tensor> = [&features].into_iter().chain(inputs[exits..].iter().copied()).collect();
    let done = multi_exit(&inputs, &counted)?;
    let exits: Vec<ExitSummary> = done.sums.iter().map(|sums| Sums(*sums).over(total)).collect();
    Ok(MultiExitLoss { total: recorded(&inputs, weighed(&exits, config) as f32, done)?, exits })
}

fn sum(weights: &[f32]) -> f64 {
    weights.iter().map(|&weight| f64::from(weight)).sum()
}

#[derive(Clone, Copy)]
struct Sizes {
    width: usize,
    classes: usize,
}

impl Sizes {
    fn of(
        features: &[Tensor],
        weight: &Tensor,
        bias: Option<&Tensor>,
        targets: &Tensor,
        row_weights: Option<&Tensor>,
        config: &MultiExit,
    ) -> Result<Self> {
        let (classes, width) = weight.dims2()?;
        let rows = targets.dims1()?;
        let fits = features.iter().all(|xs| xs.dims() == [rows, width])
            && bias.is_none_or(|bias| bias.dims() == [classes])
            && row_weights.is_none_or(|weights| weights.dims() == [rows]);
        if !fits {
            let features: Vec<&[usize]> = features.iter().map(Tensor::dims).collect();
            bail!(
                "{NAME}: features {features:?}, weight {:?}, bias {:?}, targets {:?}, row weights {:?}",
                weight.dims(),
                bias.map(Tensor::dims),
                targets.dims(),
                row_weights.map(Tensor::dims)
            )
        }
        if features.is_empty() || features.len() != config.exit_weights.len() {
            bail!("{NAME}: {} exits, {} weights", features.len(), config.exit_weights.len())
        }
        if let Some(weight) = config.exit_weights.iter().find(|weight| !weight.is_finite()) {
            bail!("{NAME}: an exit's weight is {weight}, expected a finite number")
        }
        if !(0. ..1.).contains(&config.label_smoothing) {
            bail!("{NAME}: label smoothing is {}, expected [0, 1)", config.label_smoothing)
        }
        if config.chunk == 0 {
            bail!("{NAME}: chunk is 0, expected at least 1")
        }
        Ok(Self { width, classes })
    }
}

/// What every exit is held against.
struct Rows<'a> {
    ids: &'a [u32],
    weights: &'a [f32],
    /// Sum of the weights.
    total: f64,
    config: &'a MultiExit,
}

/// Sums over an exit's rows, each times its weight.
#[derive(Clone, Copy, Default)]
struct Sums([f64; 5]);

impl Sums {
    fn add(&mut self, other: &Self) {
        self.0.iter_mut().zip(other.0).for_each(|(sum, x)| *sum += x);
    }

    fn over(&self, total: f64) -> ExitSummary {
        let [cross_entropy, accuracy, max_probability, margin, entropy] = self.0.map(|sum| sum / total);
        ExitSummary { cross_entropy, accuracy, max_probability, margin, entropy }
    }
}

struct Done {
    /// Of each exit.
    sums: Vec<Sums>,
    /// Of features, weight and bias; `None` where none is wanted.
    gradients: Vec<Option<Vec<f32>>>,
}

/// A row of an exit that counts.
#[derive(Clone, Copy)]
struct Counted {
    exit: usize,
    row: usize,
    /// Derivative of the whole by this row's cross-entropy; 0 where no gradient is wanted.
    slope: f32,
}

struct Chunks<'a> {
    features: &'a [&'a [f32]],
    weight: &'a [f32],
    bias: Option<&'a [f32]>,
    shape: Sizes,
    /// Of features, weight and bias: whether a gradient is wanted.
    tracked: &'a [bool],
}

impl Chunks<'_> {
    fn run(&self, rows: &Rows<'_>) -> Done {
        let Sizes { width, classes } = self.shape;
        let exits = self.features.len();
        let (of_features, of_head) = self.tracked.split_at(exits);
        let (dw_wanted, db_wanted) = (of_head[0], of_head.get(1) == Some(&true));
        let gradient = |(tracked, length): (bool, usize)| tracked.then(|| vec![0f32; length]);
        let lengths = self.features.iter().map(|xs| xs.len());
        let mut dx: Vec<Option<Vec<f32>>> = of_features.iter().copied().zip(lengths).map(gradient).collect();
        let mut dw = gradient((dw_wanted, classes * width));
        let mut db = gradient((db_wanted, classes));
        let mut sums = vec![Sums::default(); exits];

        let counted = self.counted(rows);
        let chunk = rows.config.chunk.min(counted.len());
        let (mut x, mut z) = (vec![0.; chunk * width], vec![0.; chunk * classes]);
        for part in counted.chunks(chunk.max(1)) {
            let (x, z) = (&mut x[..part.len() * width], &mut z[..part.len() * classes]);
            for (to, at) in x.chunks_exact_mut(width).zip(part) {
                to.copy_from_slice(&self.features[at.exit][at.row * width..][..width]);
            }
            let mut out = MatMut::rows(z, classes);
            let add = start(&mut out, self.bias);
            let weight = Mat::rows(self.weight, width);
            gemm(out, add, Mat::rows(x, width), weight.t(), width, 1., Threads::All);
            let seen: Vec<Sums> = z
                .par_chunks_exact_mut(classes)
                .zip(part)
                .map(|(z, at)| row(z, rows.ids[at.row] as usize, rows.weights[at.row], at.slope, rows.config))
                .collect();
            part.iter().zip(&seen).for_each(|(at, seen)| sums[at.exit].add(seen));
            // From here on `z` holds the derivatives by the logits.
            if part.iter().all(|at| at.slope == 0.) {
                continue;
            }
            let g = Mat::rows(z, classes);
            // What nothing is learned from may be anything, and 0 times a NaN is one.
            let idle = x.chunks_exact_mut(width).zip(part).filter(|(_, at)| at.slope == 0.);
            idle.for_each(|(x, _)| x.fill(0.));
            if let Some(dw) = &mut dw {
                gemm(MatMut::rows(dw, width), true, g.t(), Mat::rows(x, width), part.len(), 1., Threads::All);
            }
            if let Some(db) = &mut db {
                simd::add(db, &column_sums(z, classes));
            }
            if part.iter().any(|at| dx[at.exit].is_some()) {
                // In place of the features, which are done with.
                gemm(MatMut::rows(x, width), false, Mat::rows(z, classes), weight, classes, 1., Threads::All);
                for (from, at) in x.chunks_exact(width).zip(part) {
                    if let Some(dx) = &mut dx[at.exit] {
                        dx[at.row * width..][..width].copy_from_slice(from);
                    }
                }
            }
        }
        Done { sums, gradients: dx.into_iter().chain([dw]).chain(self.bias.map(|_| db)).collect() }
    }

    /// Exit by exit the rows that count. A gradient of the head wants every exit's rows, one of a feature only its own.
    fn counted(&self, rows: &Rows<'_>) -> Vec<Counted> {
        let (of_features, of_head) = self.tracked.split_at(self.features.len());
        let head = of_head.contains(&true);
        let weights = rows.config.exit_weights.iter().zip(of_features).enumerate();
        let of_exit = |(exit, (weight, own)): (usize, (&f64, &bool))| {
            let slope = if head || *own { weight / rows.total } else { 0. };
            let counts = rows.weights.iter().enumerate().filter(|(_, weight)| **weight != 0.);
            counts.map(move |(row, weight)| Counted { exit, row, slope: (slope * f64::from(*weight)) as f32 })
        };
        weights.flat_map(of_exit).collect()
    }
}

/// What a row of logits says, and in its place the derivatives by them.
fn row(z: &mut [f32], target: usize, weight: f32, slope: f32, config: &MultiExit) -> Sums {
    let classes = z.len() as f32;
    let (hit, smoothing) = (z[target], config.label_smoothing as f32);
    let mean = if smoothing > 0. { simd::sum(z) / classes } else { 0. };
    let simd::Peaks { max, second } = simd::peaks(z);
    // Of equal logits the first is the answer.
    let right = hit == max && !z[..target].contains(&max);
    let (sum, along) = simd::exponentials(z, max);
    let log_sum = sum.ln();
    // Differences first: all logits may be far from 0.
    let cross_entropy = log_sum + (1. - smoothing) * (max - hit) + smoothing * (max - mean);
    if slope == 0. {
        // Nothing is to be learned from this row, though from others of its chunk perhaps.
        z.fill(0.);
    } else {
        simd::scale(z, slope / sum, slope * smoothing / classes);
        z[target] -= slope * (1. - smoothing);
    }
    let largest = 1. / sum;
    let values = [
        cross_entropy,
        f32::from(right),
        largest,
        largest * (1. - (second - max).exp()),
        log_sum - along / sum,
    ];
    Sums(values.map(|value| f64::from(weight) * f64::from(value)))
}

/// Gradients that were computed with the loss.
struct Gradients(Vec<Option<Tensor>>);

impl Backward for Gradients {
    fn name(&self) -> &'static str {
        "multi-exit linear cross-entropy"
    }

    fn backward(&self, gradient: &Tensor) -> Result<Vec<Option<Tensor>>> {
        let factor = f64::from(gradient.to_scalar::<f32>()?);
        let scaled = |gradient: &Tensor| if factor == 1. { Ok(gradient.clone()) } else { gradient * factor };
        self.0.iter().map(|gradient| gradient.as_ref().map(scaled).transpose()).collect()
    }
}
