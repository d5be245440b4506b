//! The aligned loss of a large vocabulary: logits of some rows at a time, never those of an exit.

use candle_core::{DType, Result, Tensor};

use super::{
    blas::{accumulate, plain, product, transposed, wide_product},
    columns::column_sums,
    cross_entropy::{Held, answer},
    launch::{Fresh, Input, by_type, grid, launch, room},
    record::{Backward, record},
};

/// What every exit is held against: the rows that count.
pub(crate) struct Counted {
    /// Which they are, if not all.
    pub(crate) rows: Option<Vec<u32>>,
    /// Theirs.
    pub(crate) targets: Vec<u32>,
    /// Theirs, above 0.
    pub(crate) weights: Vec<f32>,
    /// Of each exit: what a row of weight 1 counts in the whole; 0 where nothing is learned.
    pub(crate) slopes: Vec<f32>,
    pub(crate) smoothing: f32,
    /// Rows whose logits are in memory at once.
    pub(crate) chunk: usize,
}

/// What exits say, and the gradients of the whole.
pub(crate) struct Done {
    /// Of each exit, weighed sums: cross-entropy, right answers, largest probability, margin, entropy.
    pub(crate) sums: Vec<[f64; 5]>,
    gradients: Vec<Option<Tensor>>,
}

/// Of features `(exits x rows, width)`, weight, and bias if there is one. Gradients are there when the sums are, and only those that are wanted.
pub(crate) fn multi_exit(inputs: &[&Tensor], counted: &Counted) -> Result<Done> {
    let wanted: Vec<bool> = inputs.iter().map(|xs| xs.track_op()).collect();
    let inputs: Vec<Tensor> = inputs.iter().map(|xs| xs.detach().contiguous()).collect::<Result<_>>()?;
    let (features, weight, bias) = (&inputs[0], &inputs[1], inputs.get(2));
    let ((classes, width), device) = (weight.dims2()?, weight.device());
    let exits = counted.slopes.len();
    let rows = features.dim(0)? / exits;
    let picked = counted.rows.as_ref().map(|rows| Tensor::new(rows.as_slice(), device)).transpose()?;
    let targets = Tensor::new(counted.targets.as_slice(), device)?;
    let weights = Tensor::new(counted.weights.as_slice(), device)?;
    let count = counted.targets.len();

    let dw = wanted[1].then(|| Tensor::zeros((classes, width), DType::F32, device)).transpose()?;
    let mut db =
        (wanted.get(2) == Some(&true)).then(|| Tensor::zeros(classes, DType::F32, device)).transpose()?;
    let (mut says, mut dx) = (Vec::new(), Vec::new());
    for (exit, &slope) in counted.slopes.iter().enumerate() {
        let of_exit = features.narrow(0, exit * rows, rows)?;
        let of_exit = match &picked {
            Some(picked) => of_exit.index_select(picked, 0)?,
            None => of_exit,
        };
        let mut by_rows = Vec::new();
        for first in (0..count).step_by(counted.chunk) {
            let part = |xs: &Tensor| xs.narrow(0, first, counted.chunk.min(count - first));
            let x = part(&of_exit)?;
            let z = wide_product(plain(&x), transposed(weight), 1.)?.tensor();
            let held = Held {
                targets: &part(&targets)?,
                weights: &part(&weights)?,
                smoothing: counted.smoothing,
                learns: slope != 0. && wanted.contains(&true),
            };
            let (said, by_logits) = by_type!(weight.dtype(), answer(&held, &z, bias))?;
            says.push(said.tensor());
            let Some(by_logits) = by_logits.map(Fresh::tensor) else { continue };
            if let Some(dw) = &dw {
                accumulate(dw, transposed(&by_logits), plain(&x), slope)?;
            }
            if let Some(db) = &mut db {
                *db = (&*db + (column_sums(&by_logits, classes)? * f64::from(slope))?)?;
            }
            if wanted[0] {
                by_rows.push(product(plain(&by_logits), plain(weight), slope)?.tensor());
            }
        }
        if wanted[0] {
            let nothing = || Tensor::zeros((rows, width), features.dtype(), device);
            dx.push(match (by_rows.is_empty(), &picked) {
                (true, _) => nothing()?,
                (false, Some(picked)) => nothing()?.index_add(picked, &Tensor::cat(&by_rows, 0)?, 0)?,
                (false, None) => Tensor::cat(&by_rows, 0)?,
            });
        }
    }
    let dx = wanted[0].then(|| Tensor::cat(&dx, 0)).transpose()?;
    let narrow = |xs: Option<Tensor>| xs.map(|xs| xs.to_dtype(weight.dtype())).transpose();
    let gradients = [dx, narrow(dw)?, narrow(db)?].into_iter().take(inputs.len()).collect();
    Ok(Done { sums: sums(&Tensor::cat(&says, 0)?, &weights, exits)?, gradients })
}

/// The whole as a scalar on the graph.
pub(crate) fn recorded(inputs: &[&Tensor], total: f32, done: Done) -> Result<Tensor> {
    let total = Fresh::copy(&Tensor::new(total, inputs[0].device())?)?;
    record(inputs, total, Gradients(done.gradients))
}

struct Gradients(Vec<Option<Tensor>>);

impl Backward for Gradients {
    fn name(&self) -> &'static str {
        "multi-exit linear cross-entropy"
    }

    fn backward(&self, _: &[&Tensor], _: &Tensor, gradient: &Tensor) -> Result<Vec<Option<Tensor>>> {
        // To ask whether this is 1 would wait for the GPU.
        let scaled = |xs: &Tensor| {
            xs.to_dtype(DType::F32)?.broadcast_mul(&gradient.to_dtype(DType::F32)?)?.to_dtype(xs.dtype())
        };
        self.0.iter().map(|xs| xs.as_ref().map(scaled).transpose()).collect()
    }
}

/// Of each exit, over its rows.
fn sums(says: &Tensor, weights: &Tensor, exits: usize) -> Result<Vec<[f64; 5]>> {
    let count = weights.elem_count() as u64;
    let inputs = [Input::of(says)?, Input::of(weights)?];
    let (device, says, weights) = (inputs[0].device()?, inputs[0].view::<f32>()?, inputs[1].view::<f32>()?);
    let mut sums = room::<f64>(&device, 5 * exits)?;
    launch!(device, CROSS_ENTROPY, "sum_up", grid((exits, 1), (256, 1))?, arguments =>
        arguments.arg(&says).arg(&weights).arg(&mut sums).arg(&count));
    let sums = Fresh::new(sums, &device, (exits, 5)).tensor().to_vec2::<f64>()?;
    Ok(sums.into_iter().map(|sums| std::array::from_fn(|i| sums[i])).collect())
}
