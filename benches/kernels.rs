//! Single operations, by the bytes or the arithmetic that they cannot do without: `copy` is the bandwidth that they are held against, `product` the arithmetic.
//!
//! `train/` is forward and backward, from a gradient of ones, which is written, too. On a GPU (`LAYERWISE_DEVICE`) with the activations of a ViT-S and 256 images, in f32 and
//! bf16; otherwise of 8 images.

mod cases;

use anyhow::Result;
use candle_core::{D, DType, Tensor, Var};
use criterion::{BenchmarkGroup, BenchmarkId, Throughput, measurement::WallTime};
use layerwise::ops::{
    Attention, CrossEntropy, Dropout, attention, backward, certainty, cross_entropy, dropout, embedding,
    gelu, init, layer_norm, linear, select_rows, softmax, sum_of_squares,
};

use crate::cases::{Numbers, criterion, device, finished};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const WIDTH: usize = 384;
const HEADS: usize = 6;
const TOKENS: usize = 197;
const CLASSES: usize = 1000;

fn main() -> Result<()> {
    layerwise_example_common::in_pool(None, bench)
}

fn bench() -> Result<()> {
    let mut criterion = criterion(20, (1, 2));
    let mut group = criterion.benchmark_group("kernels");
    let numbers: &[Numbers] =
        if device()?.is_cuda() { &[Numbers::F32, Numbers::Bf16] } else { &[Numbers::F32] };
    for &numbers in numbers {
        Kernels::new(numbers)?.all(&mut group)?;
    }
    group.finish();
    criterion.final_summary();
    Ok(())
}

/// What is read and written, in numbers of the type, or multiplied and added.
enum Moves {
    Numbers(usize),
    Operations(usize),
}

struct Kernels {
    dtype: DType,
    samples: usize,
    /// `(samples, tokens, width)`.
    xs: Var,
    /// `(width)`.
    scale: Var,
    shift: Var,
    /// `(width, width)`.
    weight: Var,
    /// `(rows, classes)`.
    logits: Var,
    /// `(classes, width)`.
    table: Var,
    ids: Tensor,
}

impl Kernels {
    fn new(numbers: Numbers) -> Result<Self> {
        numbers.choose();
        let (device, dtype, mut rng) = (device()?, numbers.dtype(), init::rng(0));
        let samples = if device.is_cuda() { 256 } else { 8 };
        let mut random = |dims: &[usize]| -> Result<Var> {
            Ok(Var::from_tensor(&init::normal(&mut rng, dims, 1., device)?.to_dtype(dtype)?)?)
        };
        let rows = samples * TOKENS;
        Ok(Self {
            xs: random(&[samples, TOKENS, WIDTH])?,
            scale: random(&[WIDTH])?,
            shift: random(&[WIDTH])?,
            weight: random(&[WIDTH, WIDTH])?,
            logits: random(&[rows / 8, CLASSES])?,
            table: random(&[CLASSES, WIDTH])?,
            ids: Tensor::from_iter((0..rows as u32).map(|i| i * 7 % CLASSES as u32), device)?,
            dtype,
            samples,
        })
    }

    fn all(&self, group: &mut BenchmarkGroup<'_, WallTime>) -> Result<()> {
        let Self { xs, scale, shift, weight, logits, table, ids, samples, .. } = self;
        let (n, rows) = (xs.elem_count(), samples * TOKENS);
        let of_logits = logits.elem_count();
        let labels = Tensor::zeros(logits.dim(0)?, DType::U32, device()?)?;
        let odd = Tensor::from_iter((0..*samples as u32 / 2).map(|i| 2 * i + 1), device()?)?;
        let full = Attention::full(HEADS);
        let scores = samples * HEADS * TOKENS * TOKENS;
        let constant = xs.as_detached_tensor();
        let frozen = logits.as_detached_tensor();
        let products = 2 * rows * WIDTH * WIDTH;

        self.one(group, "copy", Moves::Numbers(2 * n), || Ok(constant.copy()?))?;
        let square = Tensor::ones((4096, 4096), self.dtype, device()?)?;
        let of_square = Moves::Operations(2 * 4096usize.pow(3));
        self.one(group, "product", of_square, || Ok(linear(&square, &square, None)?))?;
        self.one(group, "linear", Moves::Operations(products), || {
            Ok(linear(&constant, &weight.as_detached_tensor(), None)?)
        })?;
        self.train(group, "linear", Moves::Operations(3 * products), || {
            Ok(linear(xs, weight, Some(shift))?)
        })?;
        let [scale_of, shift_of] = [scale, shift].map(Var::as_detached_tensor);
        self.one(group, "layer_norm", Moves::Numbers(2 * n), || {
            Ok(layer_norm(&constant, &scale_of, &shift_of, 1e-6)?)
        })?;
        // Gradients of scale and shift read both once more.
        self.train(group, "layer_norm", Moves::Numbers(8 * n), || Ok(layer_norm(xs, scale, shift, 1e-6)?))?;
        self.one(group, "gelu", Moves::Numbers(2 * n), || Ok(gelu(&constant)?))?;
        self.train(group, "gelu", Moves::Numbers(6 * n), || Ok(gelu(xs)?))?;
        let keep = Dropout { p: 0.1, seed: 1 };
        self.one(group, "dropout", Moves::Numbers(2 * n), || Ok(dropout(&constant, keep)?))?;
        self.one(group, "softmax", Moves::Numbers(2 * of_logits), || Ok(softmax(&frozen)?))?;
        self.one(group, "attention", Moves::Operations(4 * scores * WIDTH / HEADS), || {
            Ok(attention(&constant, &constant, &constant, &full)?)
        })?;
        // Scores are computed again.
        self.train(group, "attention", Moves::Operations(14 * scores * WIDTH / HEADS), || {
            Ok(attention(xs, xs, xs, &full)?)
        })?;
        self.one(group, "embedding", Moves::Numbers(2 * n), || {
            Ok(embedding(ids, &table.as_detached_tensor())?)
        })?;
        self.train(group, "embedding", Moves::Numbers(4 * n), || Ok(embedding(ids, table)?))?;
        self.one(group, "select_rows", Moves::Numbers(n), || Ok(select_rows(&constant, &odd)?))?;
        self.one(group, "certainty", Moves::Numbers(of_logits), || Ok(certainty(&frozen)?))?;
        self.train(group, "cross_entropy", Moves::Numbers(3 * of_logits), || {
            Ok(cross_entropy(logits, &labels, None, &CrossEntropy::default())?)
        })?;
        self.one(group, "sum_of_squares", Moves::Numbers(n), || {
            sum_of_squares([&constant])?;
            Ok(constant.narrow(D::Minus1, 0, 1)?)
        })
    }

    fn one(
        &self,
        group: &mut BenchmarkGroup<'_, WallTime>,
        name: &str,
        moves: Moves,
        f: impl Fn() -> Result<Tensor>,
    ) -> Result<()> {
        // What fails is said once, and here.
        finished(&f)?;
        group.throughput(match moves {
            Moves::Numbers(count) => Throughput::Bytes((count * self.dtype.size_in_bytes()) as u64),
            Moves::Operations(count) => Throughput::Elements(count as u64),
        });
        let id = BenchmarkId::new(name, self.dtype.as_str());
        group.bench_function(id, |bencher| bencher.iter(|| finished(&f).expect("it ran before")));
        Ok(())
    }

    fn train(
        &self,
        group: &mut BenchmarkGroup<'_, WallTime>,
        name: &str,
        moves: Moves,
        f: impl Fn() -> Result<Tensor>,
    ) -> Result<()> {
        self.one(group, &format!("train/{name}"), moves, || {
            let y = f()?;
            backward(&y)?;
            Ok(y)
        })
    }
}
