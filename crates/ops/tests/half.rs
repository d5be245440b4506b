//! bf16 and f16: stored in 16 bits, computed in f32, as PyTorch does. Widths and numbers of rows are real ones: a sum kept in
//! bf16 stops growing at 256 ones, in f16 at 2048.

use candle_core::{DType, Device::Cpu, Result, Tensor, Var, bail};
use layerwise_ops::{
    Attention, CrossEntropy, Dropout, Reduction, attention, cross_entropy, embedding, gelu, gelu_tanh,
    layer_norm, linear, plain, softmax,
};
use layerwise_testkit::{assert_close, random};

/// Each type and the most that rounding to it changes a number, relative to that number.
const TYPES: [(DType, f64); 2] = [(DType::BF16, 1. / 256.), (DType::F16, 1. / 2048.)];

/// What `f` gives in `dtype`, and the gradients of its inputs for an output gradient that `dtype` holds exactly.
fn run(dtype: DType, inputs: &[Tensor], f: impl Fn(&[Tensor]) -> Result<Tensor>) -> Result<Vec<Tensor>> {
    let vars: Vec<Var> =
        inputs.iter().map(|xs| Var::from_tensor(&xs.to_dtype(dtype)?)).collect::<Result<_>>()?;
    let ys = f(&vars.iter().map(|var| var.as_tensor().clone()).collect::<Vec<_>>())?;
    let probe = random(99, ys.dims()).to_dtype(DType::BF16)?.to_dtype(dtype)?;
    let gradients = (&ys * probe)?.sum_all()?.backward()?;
    let mut all = vec![ys];
    for var in &vars {
        all.push(gradients.get(var).expect("a gradient").clone());
    }
    Ok(all)
}

/// `f` in bf16 and f16 against `plain` in f64 on the same rounded inputs, forward and backward: `f` must come within one
/// rounding of the result, number by number, and keep the dtype.
fn rounds_once(
    inputs: &[Tensor],
    f: impl Fn(&[Tensor]) -> Result<Tensor>,
    plain: impl Fn(&[Tensor]) -> Result<Tensor>,
) -> Result<()> {
    for (dtype, rounding) in TYPES {
        let inputs: Vec<Tensor> = inputs.iter().map(|xs| xs.to_dtype(dtype)).collect::<Result<_>>()?;
        let wants = run(DType::F64, &inputs, &plain)?;
        for (i, (got, want)) in run(dtype, &inputs, &f)?.iter().zip(&wants).enumerate() {
            assert_eq!(got.dtype(), dtype);
            let flat = |xs: &Tensor| xs.to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>();
            let want = flat(want)?;
            // Of f32 before that rounding: what the kernels are allowed against f64, at the scale of the tensor.
            let sums = 5e-6 * want.iter().fold(1f64, |most, want| most.max(want.abs()));
            for (got, want) in flat(got)?.into_iter().zip(want) {
                let allowed = rounding * want.abs() + sums;
                if (got - want).abs() > allowed || got.is_nan() {
                    bail!("{dtype:?}, tensor {i}: {got}, want {want} to within {allowed:e}")
                }
            }
        }
    }
    Ok(())
}

#[test]
fn softmax_over_1000() -> Result<()> {
    for xs in [Tensor::zeros((3, 1000), DType::F32, &Cpu)?, (random(1, &[3, 1000]) * 3.)?] {
        rounds_once(&[xs], |x| softmax(&x[0]), |x| plain::softmax(&x[0]))?;
    }
    Ok(())
}

#[test]
fn layer_norm_of_width_768_over_300_rows() -> Result<()> {
    let inputs = [(random(1, &[300, 768]) + 2.)?, random(2, &[768]), random(3, &[768])];
    rounds_once(
        &inputs,
        |x| layer_norm(&x[0], &x[1], &x[2], 1e-5),
        |x| plain::layer_norm(&x[0], &x[1], &x[2], 1e-5),
    )
}

#[test]
fn attention_over_300_keys() -> Result<()> {
    let mask: Vec<u8> = (0..600).map(|i| u8::from(i % 7 != 0)).collect();
    let mask = Tensor::from_vec(mask, (2, 300), &Cpu)?;
    let config =
        Attention { key_mask: Some(&mask), dropout: Some(Dropout { p: 0.2, seed: 3 }), ..Attention::full(2) };
    let inputs = [(1, 5), (2, 300), (3, 300)].map(|(seed, tokens)| random(seed, &[2, tokens, 768]));
    rounds_once(
        &inputs,
        |x| attention(&x[0], &x[1], &x[2], &config),
        |x| plain::attention(&x[0], &x[1], &x[2], &config),
    )
}

#[test]
fn cross_entropy_of_1000_classes_over_4096_rows() -> Result<()> {
    let logits = (random(1, &[4096, 1000]) * 2.)?;
    let targets = Tensor::from_vec((0..4096u32).map(|i| i * 7 % 1000).collect(), 4096, &Cpu)?;
    let weights = random(2, &[4096]).abs()?;
    // The gradients of a mean are too small to tell apart from its rounding; those of a sum are not.
    for (reduction, label_smoothing, weights) in
        [(Reduction::Mean, 0., None), (Reduction::Mean, 0.1, Some(&weights)), (Reduction::Sum, 0.1, None)]
    {
        let config = CrossEntropy { label_smoothing, reduction, ..Default::default() };
        rounds_once(
            std::slice::from_ref(&logits),
            |x| cross_entropy(&x[0], &targets, weights, &config),
            |x| plain::cross_entropy(&x[0], &targets, weights, &config),
        )?;
    }
    Ok(())
}

#[test]
fn gelu_of_all_sizes() -> Result<()> {
    let xs = (random(1, &[5, 768]) * 3.)?;
    rounds_once(std::slice::from_ref(&xs), |x| gelu(&x[0]), |x| plain::gelu(&x[0]))?;
    rounds_once(&[xs], |x| gelu_tanh(&x[0]), |x| plain::gelu_tanh(&x[0]))?;
    // The cube of 50 is infinite in f16.
    let large = Tensor::new(&[-50f32, 50.], &Cpu)?;
    rounds_once(&[large], |x| gelu_tanh(&x[0]), |x| plain::gelu_tanh(&x[0]))
}

/// Products of rows are candle's: rounded once more before the bias is added, and in f16 after every 512 terms. The bias's
/// gradient is a sum over all rows.
#[test]
fn linear_of_width_768_over_4096_rows() -> Result<()> {
    let inputs = [random(1, &[4096, 768]), (random(2, &[20, 768]) * 0.05)?, random(3, &[20])];
    for (dtype, rounding) in TYPES {
        let inputs: Vec<Tensor> = inputs.iter().map(|xs| xs.to_dtype(dtype)).collect::<Result<_>>()?;
        let f = |x: &[Tensor]| linear(&x[0], &x[1], Some(&x[2]));
        for (got, want) in run(dtype, &inputs, f)?.iter().zip(&run(DType::F64, &inputs, f)?) {
            assert_eq!(got.dtype(), dtype);
            assert_close(got, want, 2. * rounding)?;
        }
    }
    Ok(())
}

#[test]
fn embedding_of_one_row_4096_times() -> Result<()> {
    let ids = Tensor::zeros(4096, DType::U32, &Cpu)?;
    rounds_once(&[random(1, &[3, 5])], |x| embedding(&ids, &x[0]), |x| plain::embedding(&ids, &x[0]))
}

#[test]
fn types_that_differ_are_an_error() -> Result<()> {
    let (xs, ones) = (random(1, &[2, 4]), Tensor::ones(4, DType::F32, &Cpu)?);
    let half = xs.to_dtype(DType::BF16)?;
    assert!(layer_norm(&half, &ones, &ones, 1e-5).is_err());
    assert!(linear(&half, &xs, None).is_err());
    assert!(linear(&half, &half, Some(&random(2, &[2]))).is_err());
    Ok(())
}
