//! A sublayer of a transformer block, `x + drop(last(middle(first(norm(x)))))` or `norm(x + drop(last(middle(first(x)))))`, as one
//! operation.
//!
//! Rows go through all of it a few at a time, so that what lies between stays in the cache. For the backward pass only the
//! result of the first linear maps is kept, and that of the middle if it is dear; norms are computed again.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{Device::Cpu, Result, Tensor};
use rayon::prelude::*;

use crate::{
    Affine, Dropout, Norm, NormPlace,
    dropout::Keep,
    gemm::{Mat, MatMut, Threads, gemm},
    heads,
    host::with_values,
    layer_norm,
    linear::{column_sums, start, weight_gradient},
    many::{Backward, record},
    panels::Panels,
    simd,
};

/// Rows that go through a sublayer together.
const ROWS: usize = 96;

/// With fewer rows than this on each thread, threads share the outputs of one product: each reads a part of the weights.
const FEW: usize = 64;

/// How often threads that share the products of a sublayer meet.
const SHARED: usize = 8;

/// What stands between the first linear maps, whose results stand side by side, and the last.
pub(crate) trait Middle: Send + Sync + 'static {
    fn name(&self) -> &'static str;

    /// Rows that belong together: the tokens of a sample, or 1.
    fn group(&self) -> usize;

    /// Whether the backward pass wants the result, or computes it again.
    const KEPT: bool;

    /// `middle` from `projected`, both of the rows from `first` on.
    fn forward(
        &self,
        first: usize,
        projected: &[f32],
        middle: &mut [f32],
        scratch: &mut heads::Scratch,
        threads: Threads,
    );

    /// The result once more, where it is not [`KEPT`](Middle::KEPT). `projected` may be replaced by what
    /// [`backward`](Middle::backward) needs.
    fn again(&self, _projected: &mut [f32]) -> Vec<f32> {
        Vec::new()
    }

    /// The gradient of `projected` from that of the result.
    fn backward(&self, projected: Vec<f32>, gradient: Vec<f32>) -> Vec<f32>;
}

/// Weights, input and middle of a sublayer.
pub(crate) struct Sublayer<M> {
    middle: M,
    xs: Tensor,
    norm: LayerNorm,
    first: Vec<Linear>,
    last: Linear,
    keep: Option<Keep>,
    kept: Mutex<Option<Kept>>,
}

/// What one pass leaves for the backward pass.
struct Kept {
    projected: Vec<f32>,
    /// Empty unless [`Middle::KEPT`].
    middle: Vec<f32>,
    /// What goes into a norm that stands last; empty if it stands first.
    sum: Vec<f32>,
}

struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
    eps: f32,
    place: NormPlace,
}

struct Linear {
    weight: Tensor,
    bias: Option<Tensor>,
    packed: Option<Arc<Panels>>,
    trains: bool,
}

/// Values of everything that goes into a sublayer; of linear maps weight and bias.
struct Slices<'a> {
    x: &'a [f32],
    weight: &'a [f32],
    bias: &'a [f32],
    first: Vec<(&'a [f32], Option<&'a [f32]>)>,
    last: (&'a [f32], Option<&'a [f32]>),
}

/// A linear map for products: the weight in panels, and the bias.
#[derive(Clone, Copy)]
struct Map<'a> {
    panels: &'a Panels,
    bias: Option<&'a [f32]>,
}

/// The result of a sublayer; its inputs are f32 on the CPU.
pub(crate) fn sublayer<M: Middle>(
    middle: M,
    xs: &Tensor,
    norm: &Norm<'_>,
    first: &[&Affine<'_>],
    last: &Affine<'_>,
    dropout: Option<Dropout>,
) -> Result<Tensor> {
    let affines = first.iter().copied().chain([last]);
    let inputs: Vec<&Tensor> =
        [xs].into_iter().chain(norm.tensors()).chain(affines.flat_map(Affine::tensors)).collect();
    let sublayer = Sublayer {
        middle,
        xs: xs.detach().contiguous()?,
        norm: LayerNorm {
            weight: norm.weight.detach().contiguous()?,
            bias: norm.bias.detach().contiguous()?,
            eps: norm.eps as f32,
            place: norm.place,
        },
        first: first.iter().map(|affine| Linear::new(affine)).collect::<Result<_>>()?,
        last: Linear::new(last)?,
        keep: dropout.map(Keep::new).transpose()?,
        kept: Mutex::new(None),
    };
    let keep = inputs.iter().any(|xs| xs.track_op());
    let (ys, kept) = sublayer.forward(keep)?;
    *sublayer.kept.lock().unwrap_or_else(PoisonError::into_inner) = Some(kept);
    record(&inputs, ys, xs.shape(), sublayer)
}

/// Memory for some rows at a time.
#[derive(Default)]
struct Scratch {
    normed: Vec<f32>,
    projected: Vec<f32>,
    middle: Vec<f32>,
    heads: heads::Scratch,
}

/// Some rows on their way: what they are, what they become, and what is kept of them.
struct Part<'a> {
    x: &'a [f32],
    y: &'a mut [f32],
    projected: Option<&'a mut [f32]>,
    middle: Option<&'a mut [f32]>,
    sum: Option<&'a mut [f32]>,
}

impl<M: Middle> Sublayer<M> {
    fn forward(&self, keep: bool) -> Result<(Vec<f32>, Kept)> {
        with_values(&self.tensors(), |values| Ok(self.forward_on(&self.slices(values), keep)))
    }

    /// The input, the norm's weight and bias, and those of the linear maps.
    fn tensors(&self) -> Vec<&Tensor> {
        let mut tensors = vec![&self.xs, &self.norm.weight, &self.norm.bias];
        for linear in self.first.iter().chain([&self.last]) {
            tensors.push(&linear.weight);
            tensors.extend(&linear.bias);
        }
        tensors
    }

    /// Values of the [`tensors`](Self::tensors), by what they are.
    fn slices<'a>(&self, values: &[&'a [f32]]) -> Slices<'a> {
        let mut next = values[3..].iter().copied();
        let mut linear = |linear: &Linear| {
            let weight = next.next().unwrap_or_default();
            (weight, linear.bias.as_ref().and_then(|_| next.next()))
        };
        let first = self.first.iter().map(&mut linear).collect();
        Slices { x: values[0], weight: values[1], bias: values[2], first, last: linear(&self.last) }
    }

    fn forward_on(&self, slices: &Slices<'_>, keep: bool) -> (Vec<f32>, Kept) {
        let Slices { x, weight, bias, .. } = *slices;
        let linears = self.first.iter().chain([&self.last]).zip(slices.first.iter().chain([&slices.last]));
        let panels: Vec<_> = linears.map(|(linear, (weight, bias))| (linear.panels(weight), *bias)).collect();
        let maps: Vec<Map<'_>> = panels.iter().map(|(panels, bias)| Map { panels, bias: *bias }).collect();
        let (width, inner, outer) = (weight.len(), self.inner(), self.last.inputs());
        let rows = x.len() / width;
        let after = self.norm.place == NormPlace::After;
        let kept = |wanted: bool, width: usize| vec![0.; if keep && wanted { rows * width } else { 0 }];
        let mut y = vec![0.; x.len()];
        let mut kept =
            Kept { projected: kept(true, inner), middle: kept(M::KEPT, outer), sum: kept(after, width) };

        let weights = width * inner + width * outer;
        let (part, threads) = share(rows, self.middle.group(), weights);
        let parts = x
            .chunks(part * width)
            .zip(y.chunks_mut(part * width))
            .zip(optional(&mut kept.projected, part * inner))
            .zip(optional(&mut kept.middle, part * outer))
            .zip(optional(&mut kept.sum, part * width));
        let parts: Vec<_> = parts
            .map(|((((x, y), projected), middle), sum)| Part { x, y, projected, middle, sum })
            .enumerate()
            .collect();
        let run = |scratch: &mut Scratch, (i, part_of): (usize, Part<'_>)| {
            self.part(i * part, part_of, &maps, (weight, bias), scratch, threads);
        };
        match threads {
            Threads::One => parts.into_par_iter().for_each_init(Scratch::default, run),
            Threads::All => {
                let mut scratch = Scratch::default();
                parts.into_iter().for_each(|part| run(&mut scratch, part));
            }
        }
        (y, kept)
    }

    #[allow(clippy::too_many_arguments, reason = "weights that are ready, once for all parts")]
    fn part(
        &self,
        first_row: usize,
        part: Part<'_>,
        maps: &[Map<'_>],
        (weight, bias): (&[f32], &[f32]),
        scratch: &mut Scratch,
        threads: Threads,
    ) {
        let Part { x, y, projected, middle, sum } = part;
        let Some((last, first)) = maps.split_last() else { return };
        let (width, inner, outer) = (weight.len(), self.inner(), self.last.inputs());
        let rows = x.len() / width;
        scratch.normed.resize(x.len(), 0.);
        let input = match self.norm.place {
            NormPlace::After => x,
            NormPlace::Before => {
                layer_norm::rows(x, weight, bias, self.norm.eps, &mut scratch.normed, threads);
                &scratch.normed
            }
        };
        let projected = projected.unwrap_or_else(|| sized(&mut scratch.projected, rows * inner));
        let mut column = 0;
        for map in first {
            let (outputs, _) = map.panels.shape();
            let mut out = MatMut::new(&mut projected[column..], outputs, inner);
            let add = start(&mut out, map.bias);
            map.panels.product(out, add, Mat::rows(input, width), 1., threads);
            column += outputs;
        }
        let middle = middle.unwrap_or_else(|| sized(&mut scratch.middle, rows * outer));
        self.middle.forward(first_row, projected, middle, &mut scratch.heads, threads);

        let mut out = MatMut::rows(y, width);
        let add = match (&self.keep, last.bias) {
            (None, bias) => {
                for (i, x) in x.chunks_exact(width).enumerate() {
                    let row = out.row(i);
                    row.copy_from_slice(x);
                    if let Some(bias) = bias {
                        simd::add(row, bias);
                    }
                }
                true
            }
            (Some(_), bias) => start(&mut out, bias),
        };
        last.panels.product(out, add, Mat::rows(middle, outer), 1., threads);
        if let Some(keep) = &self.keep {
            keep.apply(y, first_row * width);
            simd::add(y, x);
        }
        if self.norm.place == NormPlace::After {
            scratch.normed.copy_from_slice(y);
            layer_norm::rows(&scratch.normed, weight, bias, self.norm.eps, y, threads);
            if let Some(sum) = sum {
                sum.copy_from_slice(&scratch.normed);
            }
        }
    }

    /// Width of the first maps' results side by side.
    fn inner(&self) -> usize {
        self.first.iter().map(Linear::outputs).sum()
    }

    /// The result of the norm where it stands first, of all rows.
    fn normed(&self, x: &[f32], weight: &[f32], bias: &[f32]) -> Vec<f32> {
        let mut normed = vec![0.; x.len()];
        layer_norm::rows(x, weight, bias, self.norm.eps, &mut normed, Threads::All);
        normed
    }
}

impl<M: Middle> Backward for Sublayer<M> {
    fn name(&self) -> &'static str {
        self.middle.name()
    }

    fn backward(&self, gradient: &Tensor) -> Result<Vec<Option<Tensor>>> {
        let taken = self.kept.lock().unwrap_or_else(PoisonError::into_inner).take();
        // Memory is free as soon as it is used; whoever goes back twice pays for another forward pass.
        let kept = match taken {
            Some(kept) => kept,
            None => self.forward(true)?.1,
        };
        let mut tensors = self.tensors();
        tensors.push(gradient);
        with_values(&tensors, |values| {
            let (g, values) = values.split_last().ok_or_else(|| candle_core::Error::msg("no gradient"))?;
            self.backward_on(&self.slices(values), g, kept)
        })
    }
}

impl<M: Middle> Sublayer<M> {
    /// Gradients of the inputs, from that of the result.
    fn backward_on(&self, slices: &Slices<'_>, g: &[f32], kept: Kept) -> Result<Vec<Option<Tensor>>> {
        let Slices { x, weight, bias, .. } = *slices;
        let Kept { mut projected, middle, sum } = kept;
        let (width, inner, outer) = (weight.len(), self.inner(), self.last.inputs());
        let rows = x.len() / width;

        // Through the norm that stands last, to the sum; from there one way goes straight to `x`.
        let (mut dx, mut d_norm) = match self.norm.place {
            NormPlace::Before => (g.to_vec(), None),
            NormPlace::After => {
                let mut dx = vec![0.; x.len()];
                let d_norm = layer_norm::backward(&sum, weight, g, self.norm.eps, &mut dx);
                (dx, Some(d_norm))
            }
        };
        drop(sum);
        let dropped = self.keep.map(|keep| keep.applied(&dx));
        let d_update = dropped.as_deref().unwrap_or(&dx);
        let mut middle = if M::KEPT { middle } else { self.middle.again(&mut projected) };
        let d_last = self.last.gradients(Mat::rows(d_update, width), Mat::rows(&middle, outer), rows)?;
        let d_last_bias = column_sums(d_update, width);
        let out = MatMut::rows(&mut middle, outer);
        let last = Mat::rows(slices.last.0, outer);
        gemm(out, false, Mat::rows(d_update, width), last, width, 1., Threads::All);
        drop(dropped);
        let d_projected = self.middle.backward(projected, middle);

        let normed = match self.norm.place {
            NormPlace::Before => Some(self.normed(x, weight, bias)),
            NormPlace::After => None,
        };
        let input = Mat::rows(normed.as_deref().unwrap_or(x), width);
        let mut d_bias = column_sums(&d_projected, inner).into_iter();
        let mut d_normed = vec![0.; if normed.is_some() { x.len() } else { 0 }];
        let mut d_first = Vec::new();
        let mut column = 0;
        for (linear, (map, _)) in self.first.iter().zip(&slices.first) {
            let g = Mat::rows(&d_projected, inner).from(0, column);
            d_first.push(linear.gradients(g, input, rows)?);
            let d_bias: Vec<f32> = d_bias.by_ref().take(linear.outputs()).collect();
            d_first.extend(linear.bias.as_ref().map(|_| d_bias).map(vector).transpose()?.map(Some));
            let (out, add) = match &normed {
                Some(_) => (&mut d_normed, column > 0),
                None => (&mut dx, true),
            };
            let out = MatMut::rows(out, width);
            gemm(out, add, g, Mat::rows(map, width), linear.outputs(), 1., Threads::All);
            column += linear.outputs();
        }
        if normed.is_some() {
            d_norm = Some(layer_norm::backward(x, weight, &d_normed, self.norm.eps, &mut dx));
        }
        let (d_weight, d_bias) = d_norm.unwrap_or_default();
        let mut gradients = vec![
            Some(Tensor::from_vec(dx, self.xs.shape(), &Cpu)?),
            Some(vector(d_weight)?),
            Some(vector(d_bias)?),
        ];
        gradients.extend(d_first);
        gradients.push(d_last);
        if self.last.bias.is_some() {
            gradients.push(Some(vector(d_last_bias)?));
        }
        Ok(gradients)
    }
}

impl Linear {
    fn new(affine: &Affine<'_>) -> Result<Self> {
        Ok(Self {
            weight: affine.weight.detach().contiguous()?,
            bias: affine.bias.map(|bias| bias.detach().contiguous()).transpose()?,
            packed: affine.packed.map(|packed| packed.0.clone()),
            trains: affine.weight.track_op(),
        })
    }

    fn outputs(&self) -> usize {
        self.weight.dims()[0]
    }

    fn inputs(&self) -> usize {
        self.weight.dims()[1]
    }

    /// The weight in panels.
    fn panels(&self, weight: &[f32]) -> Arc<Panels> {
        self.packed.clone().unwrap_or_else(|| {
            let weight = Mat::rows(weight, self.inputs());
            Arc::new(Panels::new(weight, self.outputs(), self.inputs(), Threads::All))
        })
    }

    /// The weight's gradient from that of the result, `g`, and the input.
    fn gradients(&self, g: Mat<'_>, x: Mat<'_>, rows: usize) -> Result<Option<Tensor>> {
        if !self.trains {
            return Ok(None);
        }
        let dw = weight_gradient(g, x, rows, (self.outputs(), self.inputs()));
        Ok(Some(Tensor::from_vec(dw, self.weight.shape(), &Cpu)?))
    }
}

fn vector(values: Vec<f32>) -> Result<Tensor> {
    let n = values.len();
    Tensor::from_vec(values, n, &Cpu)
}

/// Whether threads share the sublayers of a transformer block: not where there is so little work that one does it faster alone.
#[must_use]
pub fn threads_share_block(samples: usize, tokens: usize, width: usize) -> bool {
    let rows = samples * tokens;
    rayon::current_num_threads() > 1 && share(rows, tokens.max(1), 4 * width * width) != (rows, Threads::One)
}

/// Rows of a part, and who works on it: a thread where there is enough for all, else all of them on one part after the other;
/// or this thread alone, where there is little. A row is multiplied by so many `weights`.
///
/// Threads that share each product of a part meet after each: that takes more to be worth it than parts of their own, and where some
/// products are shared and others not, a thread falls asleep over the latter and is woken for the former.
fn share(rows: usize, group: usize, weights: usize) -> (usize, Threads) {
    if Threads::All.worth(rows * weights) == Threads::One {
        return (rows, Threads::One);
    }
    let threads = rayon::current_num_threads();
    let groups = rows / group;
    let at_once = ROWS.div_ceil(group).min(groups.div_ceil(threads));
    let enough = groups >= threads && at_once * group >= FEW;
    if !enough && Threads::All.worth(rows * weights / SHARED) == Threads::One {
        return (rows, Threads::One);
    }
    match enough || threads == 1 {
        true => {
            // As many parts for each thread, of about that size.
            let rounds = ((groups + threads * at_once / 2) / (threads * at_once)).max(1);
            (groups.div_ceil(rounds * threads) * group, Threads::One)
        }
        false => (ROWS.div_ceil(group) * group, Threads::All),
    }
}

/// Parts of what is kept, or nothing for as long as one asks.
fn optional(kept: &mut [f32], part: usize) -> impl Iterator<Item = Option<&mut [f32]>> {
    kept.chunks_mut(part).map(Some).chain(std::iter::repeat_with(|| None))
}

fn sized(scratch: &mut Vec<f32>, len: usize) -> &mut [f32] {
    scratch.resize(len, 0.);
    scratch
}
