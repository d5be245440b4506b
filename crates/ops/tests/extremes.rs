//! Far from the middle: huge logits, -inf, rows without keys, inputs that saturate, dtypes without a kernel. And label
//! smoothing, in PyTorch's numbers.

use candle_core::{DType, Device::Cpu, Result, Tensor, Var};
use layerwise_ops::{
    Attention, CrossEntropy, attention, cross_entropy, gelu, gelu_tanh, layer_norm, linear, plain, softmax,
};
use layerwise_testkit::{assert_close, random};

/// Equivalent Python:
///
/// ```python
/// x = torch.tensor([[1.5, -0.3, 0.2, 2.1], [0.0, 4.0, -1.0, 0.5], [-2.0, 0.7, 0.7, 0.1]], dtype=torch.float64,
///                  requires_grad=True)
/// print(F.cross_entropy(x, torch.tensor([3, 0, 2])), F.cross_entropy(x, torch.tensor([3, 0, 2]), label_smoothing=0.1))
/// loss = F.cross_entropy(x, torch.tensor([3, -100, 2]), label_smoothing=0.1, ignore_index=-100)
/// loss.backward(); print(loss, x.grad)
/// ```
#[test]
fn cross_entropy_equals_pytorch() -> Result<()> {
    // Sums of four terms in f32 on one side, PyTorch's f64 on the other.
    const TOLERANCE: f64 = 3e-7;
    let logits = [[1.5f32, -0.3, 0.2, 2.1], [0.0, 4.0, -1.0, 0.5], [-2.0, 0.7, 0.7, 0.1]];
    let x = Var::new(&logits, &Cpu)?;
    for (label_smoothing, want) in [(0., 1.8657144373362646), (0.1, 1.9048811040029314)] {
        let config = CrossEntropy { label_smoothing, ..Default::default() };
        let loss = cross_entropy(&x, &Tensor::new(&[3u32, 0, 2], &Cpu)?, None, &config)?;
        assert_close(&loss, &Tensor::new(want, &Cpu)?, TOLERANCE)?;
    }
    let config = CrossEntropy { label_smoothing: 0.1, ignore_index: Some(100), ..Default::default() };
    let loss = cross_entropy(&x, &Tensor::new(&[3u32, 100, 2], &Cpu)?, None, &config)?;
    assert_close(&loss, &Tensor::new(0.8741823438845153, &Cpu)?, TOLERANCE)?;
    let want = [
        [0.1408766099183615, 0.012852983098701126, 0.029300002510529378, -0.18302959552759207],
        [0., 0., 0., 0.],
        [0.00034500615175822764, 0.17863024554250365, -0.27136975445749634, 0.09239450276323445],
    ];
    assert_close(loss.backward()?.get(&x).unwrap(), &Tensor::new(&want, &Cpu)?, TOLERANCE)
}

/// A class may be forbidden with -inf. Equivalent Python:
///
/// ```python
/// z = torch.tensor([[1., -inf, 2.]], dtype=torch.float64, requires_grad=True)
/// loss = F.cross_entropy(z, torch.tensor([2])); loss.backward(); print(loss, z.grad)
/// print(F.cross_entropy(z, torch.tensor([1])), F.cross_entropy(z, torch.tensor([2]), label_smoothing=0.1))
/// ```
#[test]
fn cross_entropy_of_a_forbidden_class_equals_pytorch() -> Result<()> {
    for dtype in [DType::F32, DType::F64] {
        let z = Var::from_tensor(&Tensor::new(&[[1f32, f32::NEG_INFINITY, 2.]], &Cpu)?.to_dtype(dtype)?)?;
        let ce = |label: u32, label_smoothing| {
            let config = CrossEntropy { label_smoothing, ..Default::default() };
            cross_entropy(&z, &Tensor::new(&[label], &Cpu)?, None, &config)
        };
        let loss = ce(2, 0.)?;
        assert_close(&loss, &Tensor::new(0.31326168751822286, &Cpu)?, 2e-7)?;
        let want = Tensor::new(&[[0.2689414213699951, 0., -0.2689414213699951]], &Cpu)?;
        assert_close(loss.backward()?.get(&z).unwrap(), &want, 2e-7)?;
        for infinite in [ce(1, 0.)?, ce(2, 0.1)?] {
            assert_eq!(infinite.to_dtype(DType::F64)?.to_scalar::<f64>()?, f64::INFINITY, "{dtype:?}");
        }
    }
    Ok(())
}

/// Logits of rows that do not count may be anything, and weights are constants. Equivalent Python, rows 1 and 2 left out:
///
/// ```python
/// x = torch.tensor([[0., 0.], [nan, 1.], [-inf, 1.], [0., 0.]], dtype=torch.float64, requires_grad=True)
/// ce = F.cross_entropy(x, torch.tensor([1, -100, -100, 0]), reduction="none", ignore_index=-100)
/// loss = (ce * torch.tensor([1., nan, 1., 3.])).nan_to_num().sum() / 4; loss.backward(); print(loss, x.grad)
/// ```
#[test]
fn rows_that_do_not_count_leave_no_trace() -> Result<()> {
    const NAN: f32 = f32::NAN;
    const INF: f32 = f32::INFINITY;
    let logits = Tensor::new(&[[0., 0.], [NAN, 1.], [-INF, 1.], [INF, -INF], [-INF, NAN], [0., 0.]], &Cpu)?;
    let targets = Tensor::new(&[1u32, 9, 9, 9, 0, 0], &Cpu)?;
    // The last but one is not ignored, but weighs nothing.
    let weights = Tensor::new(&[1f32, NAN, 1., INF, 0., 3.], &Cpu)?;
    let want =
        Tensor::new(&[[0.125, -0.125], [0., 0.], [0., 0.], [0., 0.], [0., 0.], [-0.375, 0.375]], &Cpu)?;
    for dtype in [DType::F32, DType::F64] {
        for label_smoothing in [0., 0.5] {
            let (x, weights) =
                (Var::from_tensor(&logits.to_dtype(dtype)?)?, Var::from_tensor(&weights.to_dtype(dtype)?)?);
            for f in [cross_entropy, plain::cross_entropy] {
                let config =
                    CrossEntropy { ignore_index: Some(9), label_smoothing, ..CrossEntropy::default() };
                let loss = f(&x, &targets, Some(&weights), &config)?;
                // Two equal classes: ln 2, however the target is smoothed.
                assert_close(&loss, &Tensor::new(std::f64::consts::LN_2, &Cpu)?, 2e-7)?;
                let gradients = loss.backward()?;
                let want = (&want * (1. - label_smoothing))?;
                assert_close(gradients.get(&x).unwrap(), &want, 2e-7)?;
                assert!(gradients.get(&weights).is_none(), "{dtype:?}: weights are constants");
            }
        }
    }
    Ok(())
}

#[test]
fn cross_entropy_of_huge_logits_is_the_margin() -> Result<()> {
    // Far apart, the loss is the distance from the largest logit: the sum of exponentials is 1.
    for scale in [1e4f32, 1e20, 1e37] {
        let x = Var::new(&[[scale, -scale, 0.], [scale, -scale, 0.]], &Cpu)?;
        let loss = cross_entropy(&x, &Tensor::new(&[0u32, 1], &Cpu)?, None, &CrossEntropy::default())?;
        assert_eq!(loss.to_scalar::<f32>()?, scale);
        let gradient = loss.backward()?.get(&x).unwrap().to_vec2::<f32>()?;
        assert_eq!(gradient, [[0., 0., 0.], [0.5, -0.5, 0.]]);
    }
    Ok(())
}

#[test]
fn softmax_gives_minus_infinity_no_weight() -> Result<()> {
    // 20 values: one full set of lanes and a rest.
    let mut row = vec![f32::NEG_INFINITY; 20];
    (row[3], row[18]) = (7., 7.);
    let y = softmax(&Tensor::new(row.as_slice(), &Cpu)?)?.to_vec1::<f32>()?;
    assert!(y.iter().enumerate().all(|(i, p)| *p == if i == 3 || i == 18 { 0.5 } else { 0. }), "{y:?}");
    let bad =
        [vec![f32::NEG_INFINITY; 20], vec![f32::INFINITY; 3], vec![1., f32::INFINITY], vec![f32::NAN; 17]];
    let one_nan = (0..20).map(|at| (0..20).map(|i| if i == at { f32::NAN } else { i as f32 }).collect());
    for row in bad.into_iter().chain(one_nan) {
        let y = softmax(&Tensor::new(row.as_slice(), &Cpu)?)?.to_vec1::<f32>()?;
        assert!(y.iter().all(|p| p.is_nan()), "{row:?} became {y:?}");
    }
    Ok(())
}

#[test]
fn gelu_saturates_exactly() -> Result<()> {
    let x = Var::new(&[-1e30f32, -1e6, -20., 20., 1e6, 1e15], &Cpu)?;
    for f in [gelu, gelu_tanh] {
        let y = f(&x)?;
        assert_eq!(y.to_vec1::<f32>()?, [0., 0., 0., 20., 1e6, 1e15]);
        let gradient = f(&x.narrow(0, 1, 5)?)?.sum_all()?.backward()?;
        assert_eq!(gradient.get(&x).unwrap().to_vec1::<f32>()?, [0., 0., 0., 1., 1., 1.]);
    }
    Ok(())
}

#[test]
fn gelu_is_accurate_over_its_whole_range() -> Result<()> {
    let n = 200_001;
    let x: Vec<f32> = (0..n).map(|i| (i as f32 / (n - 1) as f32 - 0.5) * 24.).collect();
    let x = Tensor::from_vec(x, n, &Cpu)?;
    let wide = x.to_dtype(DType::F64)?;
    // erf is good to 5e-7 and tanh to 3e-7; half of |x| <= 12 times that, but neither is off beyond |x| = 6.
    assert_close(&gelu(&x)?, &plain::gelu(&wide)?, 6. / 2. * 5e-7 / 12.)?;
    assert_close(&gelu_tanh(&x)?, &plain::gelu_tanh(&wide)?, 6. / 2. * 5e-7 / 12.)
}

#[test]
fn attention_to_one_of_huge_scores_is_that_value() -> Result<()> {
    let q = Tensor::new(&[[[1e10f32, 0.]]], &Cpu)?;
    let k = Tensor::new(&[[[1e10f32, 0.], [-1e10, 0.], [0., 1e10]]], &Cpu)?;
    let v = Tensor::new(&[[[1f32, 2.], [3., 4.], [5., 6.]]], &Cpu)?;
    let y = attention(&q, &k, &v, &Attention::full(1))?;
    assert_eq!(y.flatten_all()?.to_vec1::<f32>()?, [1., 2.]);
    // The same key hidden: the largest of the others answers.
    let mask = Tensor::new(&[[0u8, 1, 1]], &Cpu)?;
    let config = Attention { key_mask: Some(&mask), ..Attention::full(1) };
    assert_eq!(attention(&q, &k, &v, &config)?.flatten_all()?.to_vec1::<f32>()?, [5., 6.]);
    Ok(())
}

#[test]
fn batches_without_any_key_are_zero_and_backpropagate_zero() -> Result<()> {
    let xs = Var::from_tensor(&random(1, &[2, 5, 6]))?;
    let mask = Tensor::zeros((2, 5), DType::U8, &Cpu)?;
    for causal in [false, true] {
        let config = Attention { causal, key_mask: Some(&mask), ..Attention::full(3) };
        for attend in [attention, plain::attention] {
            let y = attend(&xs, &xs, &xs, &config)?;
            let gradient = y.sum_all()?.backward()?.get(&xs).unwrap().clone();
            for zero in [y, gradient] {
                assert!(zero.flatten_all()?.to_vec1::<f32>()?.iter().all(|x| *x == 0.));
            }
        }
    }
    Ok(())
}

#[test]
fn layer_norm_of_constant_and_huge_rows_stays_finite() -> Result<()> {
    let (weight, bias) = (Tensor::ones(24, DType::F32, &Cpu)?, Tensor::zeros(24, DType::F32, &Cpu)?);
    let constant = Var::from_tensor(&Tensor::full(3f32, (2, 24), &Cpu)?)?;
    let y = layer_norm(&constant, &weight, &bias, 1e-12)?;
    assert!(y.flatten_all()?.to_vec1::<f32>()?.iter().all(|y| *y == 0.));
    let gradient = y.sqr()?.sum_all()?.backward()?.get(&constant).unwrap().clone();
    assert!(gradient.flatten_all()?.to_vec1::<f32>()?.iter().all(|g| g.is_finite()));
    // Scale drops out, as long as the squares fit f32.
    let x = random(1, &[3, 24]);
    let y = layer_norm(&(&x * 1e17)?, &weight, &bias, 0.)?;
    assert_close(&y, &layer_norm(&x, &weight, &bias, 0.)?, 1e-6)
}

#[test]
fn dtypes_that_differ_are_an_error_and_one_without_kernel_is_computed() -> Result<()> {
    let (xs, weight, bias) = (random(1, &[3, 4]), random(2, &[5, 4]), random(3, &[5]));
    let wide = weight.to_dtype(DType::F64)?;
    assert!(linear(&xs, &wide, None).is_err());
    assert!(layer_norm(&xs, &random(4, &[4]).to_dtype(DType::F64)?, &random(5, &[4]), 1e-5).is_err());
    let y = linear(&xs.to_dtype(DType::F64)?, &wide, Some(&bias.to_dtype(DType::F64)?))?;
    assert_eq!(y.dtype(), DType::F64);
    // Four products in f32.
    assert_close(&linear(&xs, &weight, Some(&bias))?, &y, 1e-6)
}
