//! Every operation: the plain one against finite differences in f64, the fast one against the plain one in f64, forward and
//! backward.

mod common;

use candle_core::{DType, Device, Result, Tensor, Var};
use layerwise_ops::{
    Affine, Attention, CrossEntropy, Dropout, Norm, NormPlace, PackedExit, Reduction, attention,
    cross_entropy, dropout, embedding, gelu, gelu_tanh, layer_norm, linear, plain, softmax,
};
use layerwise_testkit::{assert_close, check_gradients, random};

use crate::common::{ONE_OPERATION, agree};

#[test]
fn layer_norm_agrees() -> Result<()> {
    for (i, dims) in [&[1, 1][..], &[3, 7], &[2, 5, 33], &[4, 65, 192], &[1, 197]].iter().enumerate() {
        let d = *dims.last().unwrap();
        let inputs = [random(i as u64, dims), random(50, &[d]), random(51, &[d])];
        let eps = 1e-5;
        agree(
            &inputs,
            ONE_OPERATION,
            |x| layer_norm(&x[0], &x[1], &x[2], eps),
            |x| plain::layer_norm(&x[0], &x[1], &x[2], eps),
        )?;
    }
    let inputs = [random(1, &[3, 5]), random(2, &[5]), random(3, &[5])];
    check_gradients(&inputs, 1e-6, |x| layer_norm(&x[0], &x[1], &x[2], 1e-5))
}

#[test]
fn layer_norm_keeps_its_digits_far_from_zero() -> Result<()> {
    let near = random(1, &[4, 64]);
    let far = (&near + 1000.)?;
    let (ones, zeros) =
        (Tensor::ones(64, DType::F32, &Device::Cpu)?, Tensor::zeros(64, DType::F32, &Device::Cpu)?);
    // Adding 1000 rounds the inputs to 6e-5; a one-pass variance is off by more than 1 there.
    let want = plain::layer_norm(
        &far.to_dtype(DType::F64)?,
        &ones.to_dtype(DType::F64)?,
        &zeros.to_dtype(DType::F64)?,
        1e-5,
    )?;
    assert_close(&layer_norm(&far, &ones, &zeros, 1e-5)?, &want, 2e-4)
}

#[test]
fn softmax_agrees() -> Result<()> {
    for dims in [&[1, 1][..], &[3, 7], &[2, 3, 33], &[5, 1000]] {
        let x = (random(4, dims) * 5.)?;
        agree(&[x], ONE_OPERATION, |x| softmax(&x[0]), |x| plain::softmax(&x[0]))?;
    }
    check_gradients(&[random(1, &[3, 5])], 1e-6, |x| softmax(&x[0]))
}

#[test]
fn softmax_of_extremes() -> Result<()> {
    let x = Tensor::new(&[[1e4f32, -1e4, 0.], [-1e4, -1e4, -1e4]], &Device::Cpu)?;
    let y = softmax(&x)?.to_vec2::<f32>()?;
    assert_eq!(y[0], [1., 0., 0.]);
    assert!(y[1].iter().all(|p| (p - 1. / 3.).abs() < 1e-6));
    let nan = softmax(&Tensor::new(&[[f32::NAN, 1.], [1., 1.]], &Device::Cpu)?)?.to_vec2::<f32>()?;
    assert!(nan[0].iter().all(|p| p.is_nan()));
    assert_eq!(nan[1], [0.5, 0.5]);
    Ok(())
}

#[test]
fn gelu_agrees() -> Result<()> {
    for dims in [&[1][..], &[3, 7], &[2, 5, 33], &[130, 197]] {
        let x = (random(5, dims) * 3.)?;
        agree(std::slice::from_ref(&x), ONE_OPERATION, |x| gelu(&x[0]), |x| plain::gelu(&x[0]))?;
        agree(&[x], ONE_OPERATION, |x| gelu_tanh(&x[0]), |x| plain::gelu_tanh(&x[0]))?;
    }
    check_gradients(&[random(1, &[3, 5])], 1e-6, |x| gelu(&x[0]))?;
    check_gradients(&[random(1, &[3, 5])], 1e-6, |x| gelu_tanh(&x[0]))
}

#[test]
fn linear_agrees() -> Result<()> {
    for (dims, outputs) in [(&[1, 1][..], 1), (&[3, 7], 5), (&[2, 5, 33], 17), (&[65, 192], 96)] {
        let d = *dims.last().unwrap();
        let inputs = [random(6, dims), random(7, &[outputs, d]), random(8, &[outputs])];
        agree(
            &inputs,
            ONE_OPERATION,
            |x| linear(&x[0], &x[1], Some(&x[2])),
            |x| plain::linear(&x[0], &x[1], Some(&x[2])),
        )?;
        agree(
            &inputs[..2],
            ONE_OPERATION,
            |x| linear(&x[0], &x[1], None),
            |x| plain::linear(&x[0], &x[1], None),
        )?;
    }
    let inputs = [random(1, &[3, 4]), random(2, &[5, 4]), random(3, &[5])];
    check_gradients(&inputs, 1e-6, |x| linear(&x[0], &x[1], Some(&x[2])))
}

/// With and without a norm and a bias, on rows and on the first tokens of samples.
#[test]
fn packed_exits_agree() -> Result<()> {
    for (rows, tokens, d, outputs) in [(1, 1, 1, 1), (1, 65, 48, 10), (33, 3, 20, 7), (300, 2, 384, 100)] {
        let xs = random(1, &[rows, tokens, d]);
        let first = xs.narrow(1, 0, 1)?.squeeze(1)?;
        let (weight, bias) = (random(2, &[outputs, d]), random(3, &[outputs]));
        let (scale, shift) = (random(4, &[d]), random(5, &[d]));
        for (norm, bias) in [(true, Some(&bias)), (true, None), (false, Some(&bias)), (false, None)] {
            let norm =
                norm.then_some(Norm { weight: &scale, bias: &shift, eps: 1e-5, place: NormPlace::Before });
            let head = Affine { weight: &weight, bias, packed: None };
            let exit = PackedExit::new(norm.as_ref(), &head)?.expect("f32 on the CPU");
            let wide = |xs: &Tensor| xs.to_dtype(DType::F64);
            let normed = match norm {
                Some(norm) => {
                    plain::layer_norm(&wide(&first)?, &wide(norm.weight)?, &wide(norm.bias)?, norm.eps)?
                }
                None => wide(&first)?,
            };
            let want = plain::linear(&normed, &wide(&weight)?, bias.map(wide).transpose()?.as_ref())?;
            for xs in [&xs, &first] {
                let got = exit.forward(xs)?;
                assert_eq!(got.dims(), [rows, outputs]);
                // A sum of d terms of about 1: off by sqrt(d) 6e-8 typically, at worst by d times that.
                assert_close(&got, &want, 6e-8 * (d * d.max(8)) as f64)?;
            }
            assert!(exit.forward(&xs.narrow(2, 0, d / 2)?).is_err() && exit.forward(&wide(&first)?).is_err());
        }
        assert!(
            PackedExit::new(
                None,
                &Affine { weight: &weight.to_dtype(DType::F64)?, bias: None, packed: None }
            )?
            .is_none()
        );
    }
    Ok(())
}

#[test]
fn strided_inputs_and_gradients_agree() -> Result<()> {
    let twice = |x: &Tensor| x.transpose(0, 1)?.contiguous()?.transpose(0, 1);
    let inputs = [random(1, &[6, 9]), random(2, &[4, 9]), random(3, &[4])];
    agree(
        &inputs,
        ONE_OPERATION,
        |x| gelu(&linear(&x[0].narrow(0, 1, 3)?, &twice(&x[1])?, Some(&x[2]))?.t()?),
        |x| plain::gelu(&plain::linear(&x[0].narrow(0, 1, 3)?, &x[1], Some(&x[2]))?.t()?),
    )?;
    agree(
        &[random(4, &[5, 6]), random(5, &[5]), random(6, &[5])],
        ONE_OPERATION,
        |x| softmax(&layer_norm(&x[0].t()?, &x[1], &x[2], 1e-5)?.t()?),
        |x| plain::softmax(&plain::layer_norm(&x[0].t()?, &x[1], &x[2], 1e-5)?.t()?),
    )
}

#[test]
fn attention_agrees() -> Result<()> {
    let shapes: [(usize, usize, usize, usize, usize); 5] =
        [(1, 1, 1, 1, 1), (2, 3, 5, 5, 4), (3, 2, 17, 17, 7), (2, 1, 3, 9, 8), (2, 3, 65, 65, 16)];
    for (batch, heads, queries, keys, dim) in shapes {
        let mask: Vec<u8> =
            (0..batch * keys).map(|i| u8::from(i % keys < keys.div_ceil(1 + i / keys))).collect();
        let mask = Tensor::from_vec(mask, (batch, keys), &Device::Cpu)?;
        let width = heads * dim;
        let inputs = [
            random(1, &[batch, queries, width]),
            random(2, &[batch, keys, width]),
            random(3, &[batch, keys, width]),
        ];
        for causal in [false, true] {
            for key_mask in [None, Some(&mask)] {
                for dropout in [None, Some(Dropout { p: 0.3, seed: 11 })] {
                    let config = Attention { heads, causal, key_mask, dropout };
                    agree(
                        &inputs,
                        ONE_OPERATION,
                        |x| attention(&x[0], &x[1], &x[2], &config),
                        |x| plain::attention(&x[0], &x[1], &x[2], &config),
                    )?;
                }
            }
        }
    }
    let inputs = [random(1, &[2, 4, 6]), random(2, &[2, 4, 6]), random(3, &[2, 4, 6])];
    let config = Attention { causal: true, ..Attention::full(2) };
    check_gradients(&inputs, 1e-6, |x| attention(&x[0], &x[1], &x[2], &config))
}

#[test]
fn a_query_without_keys_gets_zero_and_no_nan() -> Result<()> {
    let xs = random(1, &[2, 3, 4]);
    let mask = Tensor::new(&[[0u8, 0, 0], [1, 0, 1]], &Device::Cpu)?;
    let config = Attention { key_mask: Some(&mask), ..Attention::full(2) };
    let var = Var::from_tensor(&xs)?;
    let y = attention(&var, &var, &var, &config)?;
    assert_eq!(y.get(0)?.abs()?.sum_all()?.to_scalar::<f32>()?, 0.);
    let grads = y.sum_all()?.backward()?;
    let g = grads.get(&var).unwrap().flatten_all()?.to_vec1::<f32>()?;
    assert!(g.iter().all(|g| g.is_finite()));
    assert!(g[..12].iter().all(|g| *g == 0.));
    Ok(())
}

#[test]
fn embedding_agrees() -> Result<()> {
    let ids = Tensor::new(&[[0u32, 3, 3], [6, 0, 3]], &Device::Cpu)?;
    let table = random(1, &[7, 5]);
    agree(
        std::slice::from_ref(&table),
        ONE_OPERATION,
        |x| embedding(&ids, &x[0]),
        |x| plain::embedding(&ids, &x[0]),
    )?;
    check_gradients(&[table], 1e-6, |x| embedding(&ids, &x[0]))
}

#[test]
fn dropout_agrees_and_keeps_the_mean() -> Result<()> {
    let config = Dropout { p: 0.25, seed: 3 };
    agree(
        &[random(1, &[100, 197])],
        ONE_OPERATION,
        |x| dropout(&x[0], config),
        |x| plain::dropout(&x[0], config),
    )?;
    let ones = Tensor::ones(100_000, DType::F32, &Device::Cpu)?;
    let y = dropout(&ones, config)?.to_vec1::<f32>()?;
    let dropped = y.iter().filter(|y| **y == 0.).count() as f64 / 1e5;
    // Four standard deviations of a binomial.
    assert!((dropped - 0.25).abs() < 4. * (0.25f64 * 0.75 / 1e5).sqrt(), "{dropped}");
    assert!(y.iter().all(|y| *y == 0. || (*y - 4. / 3.).abs() < 1e-6));
    let other = dropout(&ones, Dropout { seed: 4, ..config })?.to_vec1::<f32>()?;
    assert_ne!(y, other);
    assert_eq!(y, dropout(&ones, config)?.to_vec1::<f32>()?);
    Ok(())
}

#[test]
fn cross_entropy_agrees() -> Result<()> {
    for (n, classes) in [(1, 1), (5, 3), (33, 10), (7, 1003)] {
        let logits = (random(1, &[n, classes]) * 3.)?;
        let targets: Vec<u32> = (0..n as u32).map(|i| i * 7 % classes as u32).collect();
        let targets = Tensor::from_vec(targets, n, &Device::Cpu)?;
        let weights = random(2, &[n]).abs()?;
        for label_smoothing in [0., 0.1] {
            for ignore_index in [None, Some(0)] {
                // Ignoring the only class leaves no row, and a mean of nothing.
                if ignore_index.is_some() && classes == 1 {
                    continue;
                }
                for reduction in [Reduction::Mean, Reduction::Sum, Reduction::None] {
                    for weights in [None, Some(&weights)] {
                        if n == 1 && ignore_index.is_some() {
                            continue;
                        }
                        let config = CrossEntropy { ignore_index, label_smoothing, reduction };
                        agree(
                            std::slice::from_ref(&logits),
                            ONE_OPERATION,
                            |x| cross_entropy(&x[0], &targets, weights, &config),
                            |x| plain::cross_entropy(&x[0], &targets, weights, &config),
                        )?;
                    }
                }
            }
        }
    }
    let targets = Tensor::new(&[1u32, 0, 3], &Device::Cpu)?;
    let config = CrossEntropy { label_smoothing: 0.2, ..Default::default() };
    check_gradients(&[random(1, &[3, 4])], 1e-6, |x| cross_entropy(&x[0], &targets, None, &config))
}

#[test]
fn a_second_backward_gives_the_same() -> Result<()> {
    let x = Var::from_tensor(&random(1, &[2, 5, 6]))?;
    let loss = attention(&x, &x, &x, &Attention::full(2))?.sqr()?.sum_all()?;
    let (a, b) = (loss.backward()?, loss.backward()?);
    assert_close(a.get(&x).unwrap(), b.get(&x).unwrap(), 0.)
}
