//! What accumulators compute on a GPU: candle's operations in f64, which take tensors of any device.

use std::ops::Range;

use candle_core::{D, DType, Device, Tensor};
use ndarray::{Array1, Array2};

use crate::{
    Error, Representation, Result,
    frame::Centre,
    mean::{LARGEST, Mean, rounding},
    representation::chunks,
};

/// Samples of one product: few enough that what lies between takes little memory.
const ROWS: usize = 1024;

/// The layers of a batch, where all of them are tensors on the same NVIDIA GPU.
pub(crate) fn on_one_gpu<R: Representation>(batch: &[R]) -> Option<Vec<&Tensor>> {
    let layers = batch.iter().map(Representation::tensor).collect::<Option<Vec<_>>>()?;
    let device = layers.first()?.device();
    let same = device.is_cuda() && layers.iter().all(|xs| xs.device().same_device(device));
    same.then_some(layers)
}

/// The GPU that all layers of a batch are on.
pub(crate) fn gpu_of<R: Representation>(batch: &[R]) -> Option<Device> {
    Some(on_one_gpu(batch)?.first()?.device().clone())
}

/// The sums of the cosines of each two layers, `(L, L)`, over the samples of a batch; `None` for one that the host has to look at,
/// because it has no samples, a wrong shape or a bad number.
pub(crate) fn cosines(layers: &[&Tensor], centres: &[Centre], width: usize) -> Result<Option<Array2<f64>>> {
    let Some(samples) = samples_of(layers, &vec![width; centres.len()]) else { return Ok(None) };
    let mut sums = Array2::zeros((layers.len(), layers.len()));
    for rows in chunks(samples, ROWS) {
        match cosines_of(layers, centres, rows).map_err(failed)? {
            Some(more) => sums += &more,
            None => return Ok(None),
        }
    }
    Ok(Some(sums))
}

/// The mean of each layer of a batch; `None` as for [`cosines`].
pub(crate) fn means(layers: &[&Tensor], widths: &[usize]) -> Result<Option<Vec<Mean>>> {
    if samples_of(layers, widths).is_none() {
        return Ok(None);
    }
    let means = layers.iter().map(|xs| mean(xs)).collect::<candle_core::Result<Vec<_>>>().map_err(failed)?;
    // A NaN stays in a sum, and an infinity is the largest.
    let good = |mean: &Mean| {
        mean.sum.iter().all(|sum| sum.is_finite()) && mean.largest.iter().all(|&largest| largest <= LARGEST)
    };
    Ok(means.iter().all(good).then_some(means))
}

pub(crate) fn failed(error: candle_core::Error) -> Error {
    Error::Candle(error.to_string())
}

/// How many samples there are, where each layer has as many, at least one, and the width that is expected.
fn samples_of(layers: &[&Tensor], widths: &[usize]) -> Option<usize> {
    let (samples, _) = Representation::dims(*layers.first()?).ok()?;
    let fits = |(xs, &width): (&&Tensor, &usize)| Representation::dims(*xs) == Ok((samples, width));
    let fit = samples > 0 && layers.len() == widths.len() && layers.iter().zip(widths).all(fits);
    fit.then_some(samples)
}

fn cosines_of(
    layers: &[&Tensor],
    centres: &[Centre],
    rows: Range<usize>,
) -> candle_core::Result<Option<Array2<f64>>> {
    let rows = layers.iter().map(|xs| wide(&xs.narrow(0, rows.start, rows.len())?));
    let xs = Tensor::stack(&rows.collect::<candle_core::Result<Vec<_>>>()?, 1)?; // (n, L, d)
    if !all_at_most(&xs, LARGEST)? {
        return Ok(None);
    }
    let xs = unit_rows(&centred(&xs, centres)?)?;
    let cosines = xs.matmul(&xs.transpose(1, 2)?)?.clamp(-1., 1.)?; // (n, L, L)
    to_array(&cosines.sum(0)?).map(Some)
}

/// [`Mean`] of all samples of a layer, around the first of them.
fn mean(xs: &Tensor) -> candle_core::Result<Mean> {
    let samples = xs.dim(0)?;
    let xs = wide(xs)?;
    let shift = xs.narrow(0, 0, 1)?;
    let sum = xs.broadcast_sub(&shift)?.sum_keepdim(0)?;
    let largest = xs.abs()?.max_keepdim(0)?;
    let read = to_array(&Tensor::cat(&[shift, sum, largest], 0)?)?;
    let row = |i: usize| read.row(i).to_owned();
    Ok(Mean { samples, shift: row(0), sum: row(1), largest: row(2) })
}

/// In f64, in order, and without a memory of where it came from.
fn wide(xs: &Tensor) -> candle_core::Result<Tensor> {
    xs.detach().to_dtype(DType::F64)?.contiguous()
}

/// Whether no number is larger; a NaN is not at most anything, though a maximum would pass it over.
fn all_at_most(xs: &Tensor, limit: f64) -> candle_core::Result<bool> {
    let at_most = xs.abs()?.le(limit)?.min(D::Minus1)?.flatten_all()?.min(0)?;
    Ok(at_most.to_scalar::<u8>()? == 1)
}

/// [`Centre::apply`] to all layers, `(n, L, d)`; their centres are of one kind.
fn centred(xs: &Tensor, centres: &[Centre]) -> candle_core::Result<Tensor> {
    let of_means = |of: &dyn Fn(&Mean) -> Array1<f64>| {
        let means = centres.iter().filter_map(|centre| match centre {
            Centre::Columns(mean) => Some(of(mean)),
            _ => None,
        });
        let values: Vec<f64> = means.flatten().collect();
        Tensor::from_vec(values, (centres.len(), xs.dim(2)?), xs.device())
    };
    let (centred, rounding) = match centres.first() {
        Some(Centre::Columns(_)) => {
            let (shift, offset) = (of_means(&|mean| mean.shift.clone())?, of_means(&Mean::offset)?);
            let centred = xs.broadcast_sub(&shift)?.broadcast_sub(&offset)?;
            (centred, of_means(&|mean| mean.largest.mapv(rounding))?)
        }
        Some(Centre::Rows) => {
            // Around the first value first, so that a large offset costs no digits.
            let around = xs.broadcast_sub(&xs.narrow(2, 0, 1)?)?;
            let centred = around.broadcast_sub(&around.mean_keepdim(2)?)?;
            (centred, largest(xs)?.affine(rounding(1.), 0.)?)
        }
        Some(Centre::Nothing) | None => return Ok(xs.clone()),
    };
    let noise = centred.abs()?.broadcast_le(&rounding)?;
    noise.where_cond(&centred.zeros_like()?, &centred)
}

/// Scales each row to length 1; rows of length 0 stay 0.
fn unit_rows(xs: &Tensor) -> candle_core::Result<Tensor> {
    // Scaled first, so that squares neither overflow nor vanish.
    let xs = xs.broadcast_div(&or_one(&largest(xs)?)?)?;
    let norms = xs.sqr()?.sum_keepdim(D::Minus1)?.sqrt()?;
    xs.broadcast_div(&or_one(&norms)?)
}

/// The largest absolute value of each row.
fn largest(xs: &Tensor) -> candle_core::Result<Tensor> {
    xs.abs()?.max_keepdim(D::Minus1)
}

/// 1 in place of 0, to divide by.
fn or_one(xs: &Tensor) -> candle_core::Result<Tensor> {
    xs + xs.eq(0.)?.to_dtype(DType::F64)?
}

fn to_array(xs: &Tensor) -> candle_core::Result<Array2<f64>> {
    let (shape, values) = (xs.dims2()?, xs.flatten_all()?.to_vec1()?);
    Array2::from_shape_vec(shape, values).map_err(candle_core::Error::wrap)
}

#[cfg(test)]
pub(crate) mod tests {
    use candle_core::{DType, Device, Tensor, Var};
    use ndarray::{Array2, array};

    use crate::{
        Centring, CosAccumulator, Error, MeanAccumulator, Representation, Result, error::in_layer,
        frame::size_of,
    };

    use super::failed;

    const CENTRINGS: [Centring; 3] = [Centring::Samples, Centring::Features, Centring::None];

    /// Of sums of numbers up to 1, in two orders.
    const TOLERANCE: f64 = 1e-12;

    /// Whatever there is: the operations are the same.
    pub(crate) fn devices() -> Vec<Device> {
        [Ok(Device::Cpu), Device::new_cuda(0)].into_iter().flatten().collect()
    }

    /// Numbers in (-1, 1) without a pattern.
    pub(crate) fn noise(seed: u64, n: usize, width: usize) -> Array2<f64> {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(1);
        Array2::from_shape_simple_fn((n, width), || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 11) as f64 / (1u64 << 52) as f64 - 1.
        })
    }

    fn tensor(xs: &Array2<f64>, dtype: DType, device: &Device) -> candle_core::Result<Tensor> {
        Tensor::from_iter(xs.iter().copied(), device)?.reshape(xs.dim())?.to_dtype(dtype)
    }

    fn tensors(layers: &[Array2<f64>], dtype: DType, device: &Device) -> Result<Vec<Tensor>> {
        layers.iter().map(|xs| tensor(xs, dtype, device)).collect::<candle_core::Result<_>>().map_err(failed)
    }

    fn means_of<R: Representation>(layers: &[R]) -> Result<MeanAccumulator> {
        let widths = layers.iter().map(|xs| Ok(xs.dims()?.1)).collect::<Result<Vec<_>>>()?;
        let mut means = MeanAccumulator::new(&widths)?;
        means.push(layers)?;
        Ok(means)
    }

    fn empty<R: Representation>(layers: &[R], centring: Centring) -> Result<CosAccumulator> {
        match centring {
            Centring::Samples => CosAccumulator::centred(means_of(layers)?),
            other => CosAccumulator::uncentred(layers.len(), layers[0].dims()?.1, other),
        }
    }

    fn close(what: &str, got: &Array2<f64>, want: &Array2<f64>, tolerance: f64) {
        assert_eq!(got.dim(), want.dim(), "{what}");
        for ((at, got), want) in got.indexed_iter().zip(want) {
            assert!((got - want).abs() <= tolerance, "{what} {at:?}: {got}, want {want}");
        }
    }

    /// Tensors give the means and, in every centring, the cosines that the host finds in them.
    fn agree(what: &str, tensors: &[Tensor]) -> Result<()> {
        let there: Vec<_> = tensors.iter().collect();
        // On the host, where a GPU would not show.
        let here = tensors.iter().map(|xs| xs.to_device(&Device::Cpu));
        let here = here.collect::<candle_core::Result<Vec<_>>>().map_err(failed)?;
        for centring in CENTRINGS {
            let (mut got, mut want) = (empty(&here, centring)?, empty(&here, centring)?);
            want.push(&here)?;
            assert!(got.push_on_device(&there)?, "{what}");
            assert_eq!(got.samples(), want.samples());
            close(&format!("{what}, {centring:?}"), &got.pairwise()?, &want.pairwise()?, TOLERANCE);
        }
        let want = means_of(&here)?;
        let mut got = MeanAccumulator::new(&want.means().iter().map(|mean| mean.len()).collect::<Vec<_>>())?;
        assert!(got.push_on_device(&there)?, "{what}");
        assert_eq!(got.samples(), want.samples());
        for ((got, want), xs) in got.means().iter().zip(want.means()).zip(&here) {
            let size = size_of(xs)?;
            for (got, want) in got.iter().zip(want) {
                assert!((got - want).abs() <= TOLERANCE * size, "{what}: a mean of {got}, want {want}");
            }
        }
        Ok(())
    }

    /// Layers that resemble each other.
    fn stack(layers: usize, n: usize, width: usize) -> Vec<Array2<f64>> {
        let base = noise(1, n, width);
        (0..layers as u64).map(|l| &base * (l as f64 + 0.5) + noise(l + 2, n, width)).collect()
    }

    #[test]
    fn shapes() -> Result<()> {
        for device in devices() {
            for (layers, n, width) in [(1, 1, 1), (2, 3, 1), (5, 1, 7), (3, 1024, 8), (4, 2500, 33)] {
                let what = format!("{layers} layers of {n} x {width}");
                agree(&what, &tensors(&stack(layers, n, width), DType::F64, &device)?)?;
            }
        }
        Ok(())
    }

    #[test]
    fn types_of_numbers() -> Result<()> {
        for device in devices() {
            for dtype in [DType::F64, DType::F32, DType::F16, DType::BF16] {
                agree(&format!("{dtype:?}"), &tensors(&stack(3, 70, 12), dtype, &device)?)?;
            }
        }
        Ok(())
    }

    /// Far from 0, rows of zeros and of one number, and sizes whose squares have no f64.
    #[test]
    fn numbers_of_every_size() -> Result<()> {
        let mut far = stack(3, 40, 9);
        far.iter_mut().for_each(|xs| *xs += 1e6);
        let very_far = stack(3, 40, 9).into_iter().map(|xs| 1e15 + 100. * xs).collect();
        // All the same, but for rounding.
        let same = noise(9, 40, 9).mapv(|x| 1. + (3. * x).trunc().max(-1.) * f64::EPSILON);
        let mut zeros = stack(3, 40, 9);
        for (l, xs) in zeros.iter_mut().enumerate() {
            xs.row_mut(l).fill(0.);
            xs.row_mut(7).fill(0.);
            xs.row_mut(8).fill(0.1 + l as f64);
        }
        let sized = |size: f64| stack(3, 40, 9).into_iter().map(|xs| xs * size).collect::<Vec<_>>();
        let mut rows = stack(3, 40, 9);
        for xs in &mut rows {
            for (i, mut row) in xs.rows_mut().into_iter().enumerate() {
                row *= 10f64.powi(14 * i as i32 - 300);
            }
        }
        let constant = vec![Array2::from_elem((6, 4), 0.1); 2];
        let cases = [
            ("far", far),
            ("very far", very_far),
            ("the same", vec![same; 2]),
            ("zeros", zeros),
            ("tiny", sized(1e-300)),
            ("without all their digits", sized(1e-315)),
            ("huge", sized(1e279)),
            ("every row its own size", rows),
            ("constant", constant),
        ];
        for device in devices() {
            for (what, layers) in &cases {
                agree(what, &tensors(layers, DType::F64, &device)?)?;
            }
        }
        Ok(())
    }

    #[test]
    fn tensors_that_are_not_in_order_or_are_trained() -> Result<()> {
        for device in devices() {
            let make = || {
                let [x, y] = [noise(1, 20, 6), noise(2, 20, 6)];
                let transposed =
                    tensor(&x.t().as_standard_layout().into_owned(), DType::F64, &device)?.t()?;
                let wider =
                    Tensor::cat(&[tensor(&y, DType::F64, &device)?, tensor(&x, DType::F64, &device)?], 1)?;
                let trained = Var::from_tensor(&tensor(&y, DType::F64, &device)?)?;
                Ok([transposed, wider.narrow(1, 3, 6)?, trained.as_tensor().clone()])
            };
            agree("a view", &make().map_err(failed)?)?;
        }
        Ok(())
    }

    /// Batches of the host and of a device, each with a part of the samples.
    #[test]
    fn parts_meet() -> Result<()> {
        let layers = stack(3, 90, 5);
        let part = |from: usize, to: usize| -> Vec<_> {
            layers.iter().map(|xs| xs.slice(ndarray::s![from..to, ..]).to_owned()).collect()
        };
        for device in devices() {
            let there = |from, to| tensors(&part(from, to), DType::F64, &device);
            let mut means = MeanAccumulator::new(&[5; 3])?;
            means.push(&part(0, 20))?;
            assert!(means.push_on_device(&there(20, 50)?.iter().collect::<Vec<_>>())?);
            let mut others = MeanAccumulator::new(&[5; 3])?;
            assert!(others.push_on_device(&there(50, 90)?.iter().collect::<Vec<_>>())?);
            means.merge(MeanAccumulator::from_bytes(&others.to_bytes())?)?;
            let mut got = CosAccumulator::centred(means)?;
            let mut other = got.clone();
            got.push(&part(0, 20))?;
            assert!(got.push_on_device(&there(20, 50)?.iter().collect::<Vec<_>>())?);
            assert!(other.push_on_device(&there(50, 90)?.iter().collect::<Vec<_>>())?);
            got.merge(CosAccumulator::from_bytes(&other.to_bytes())?)?;
            let mut want = empty(&layers, Centring::Samples)?;
            want.push(&layers)?;
            assert_eq!(got.samples(), 90);
            close("parts", &got.pairwise()?, &want.pairwise()?, TOLERANCE);
        }
        Ok(())
    }

    /// Such a batch leaves no trace, and the host says what is wrong with it.
    #[test]
    fn bad_batches_are_the_hosts() -> Result<()> {
        let good = stack(2, 1500, 4);
        let with = |layer: usize, at: [usize; 2], value: f64| {
            let mut bad = good.clone();
            bad[layer][at] = value;
            bad
        };
        let (not_finite, magnitude) = (
            |layer, row, column| in_layer::<()>(layer, Err(Error::NotFinite { row, column })),
            |layer, row, column| in_layer::<()>(layer, Err(Error::Magnitude { row, column, limit: 1e280 })),
        );
        let widths = in_layer(1, Err(Error::Widths { left: 4, right: 3 }));
        let cases = [
            (with(0, [0, 0], f64::NAN), not_finite(0, 0, 0)),
            (with(1, [1400, 3], f64::NAN), not_finite(1, 1400, 3)),
            (with(1, [3, 2], f64::INFINITY), not_finite(1, 3, 2)),
            (with(0, [1023, 1], f64::NEG_INFINITY), not_finite(0, 1023, 1)),
            (with(1, [1024, 1], -1e281), magnitude(1, 1024, 1)),
            (vec![good[0].clone(), noise(1, 1500, 3)], widths),
            (vec![good[0].clone(), noise(1, 7, 4)], in_layer(1, Err(Error::Rows { left: 1500, right: 7 }))),
            (good[..1].to_vec(), Err(Error::Layers { found: 1, expected: 2 })),
            (vec![], Err(Error::Layers { found: 0, expected: 2 })),
            (vec![Array2::zeros((0, 4)); 2], Ok(())),
        ];
        for device in devices() {
            for (bad, want) in &cases {
                let bad = tensors(bad, DType::F64, &device)?;
                let there: Vec<_> = bad.iter().collect();
                for centring in CENTRINGS {
                    let mut cosines = empty(&good, centring)?;
                    cosines.push(&good)?;
                    let before = cosines.clone();
                    assert!(!cosines.push_on_device(&there)?);
                    assert_eq!(cosines.push(&bad), *want);
                    assert_eq!(cosines, before);
                }
                let mut means = means_of(&good)?;
                let before = means.clone();
                assert!(!means.push_on_device(&there)?);
                assert_eq!(means.push(&bad), *want);
                assert_eq!(means, before);
            }
            let words = Tensor::zeros((3, 4), DType::U32, &device).map_err(failed)?;
            assert!(!means_of(&good)?.push_on_device(&[&words, &words])?);
        }
        Ok(())
    }

    #[test]
    fn arrays_and_tensors_of_the_host_stay_there() -> Result<()> {
        let (array, tensor) =
            (array![[1.]], tensor(&array![[1.]], DType::F64, &Device::Cpu).map_err(failed)?);
        assert!(super::on_one_gpu(&[&array]).is_none());
        assert!(super::on_one_gpu(&[&tensor, &tensor]).is_none());
        assert!(super::on_one_gpu::<Tensor>(&[]).is_none());
        let mixed: [&dyn Representation; 2] = [&tensor, &array];
        assert!(super::on_one_gpu(&mixed).is_none());
        if let Ok(gpu) = Device::new_cuda(0) {
            let there = tensor.to_device(&gpu).map_err(failed)?;
            assert_eq!(super::on_one_gpu(&[&&there, &&there]).map(|layers| layers.len()), Some(2));
            assert!(super::on_one_gpu(&[&there, &tensor]).is_none());
        }
        Ok(())
    }
}
