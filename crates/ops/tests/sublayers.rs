//! The sublayers of a transformer block: one operation in f32 against single plain ones in f64, forward and backward.

mod common;

use candle_core::{DType, Device::Cpu, Result, Tensor, Var};
use layerwise_ops::{
    Activation, Affine, Attention, Dropout, FeedForward, Norm, NormPlace, Packed, SelfAttention, backward,
    feed_forward, plain, self_attention,
};
use layerwise_testkit::{assert_close, check_gradients, random};

use crate::common::{ONE_OPERATION, agree};

/// Norm, linear map, attention or activation, linear map, norm or sum: five in a row.
const SUBLAYER: f64 = 5. * ONE_OPERATION;

const PLACES: [NormPlace; 2] = [NormPlace::Before, NormPlace::After];

fn norm(x: &[Tensor], place: NormPlace) -> Norm<'_> {
    Norm { weight: &x[0], bias: &x[1], eps: 1e-5, place }
}

fn affine(weight: &Tensor, bias: Option<&Tensor>) -> Affine<'static> {
    // Tests hold their tensors to the end of the process.
    let leak = |xs: &Tensor| -> &'static Tensor { Box::leak(Box::new(xs.clone())) };
    Affine { weight: leak(weight), bias: bias.map(leak), packed: None }
}

/// Of a size that keeps that of the input.
fn weight(seed: u64, outputs: usize, inputs: usize) -> Tensor {
    (random(seed, &[outputs, inputs]) * (inputs as f64).powf(-0.5)).expect("a product")
}

/// `x`, norm, up, down, with biases.
fn perceptron(rows: &[usize], width: usize, inner: usize) -> Vec<Tensor> {
    let dims: Vec<usize> = rows.iter().copied().chain([width]).collect();
    vec![
        random(1, &dims),
        random(2, &[width]),
        random(3, &[width]),
        weight(4, inner, width),
        random(5, &[inner]),
        weight(6, width, inner),
        random(7, &[width]),
    ]
}

fn with_perceptron(
    x: &[Tensor],
    place: NormPlace,
    activation: Activation,
    dropout: Option<Dropout>,
    f: fn(&Tensor, &FeedForward<'_>) -> Result<Tensor>,
) -> Result<Tensor> {
    let (up, down) = (affine(&x[3], Some(&x[4])), affine(&x[5], Some(&x[6])));
    f(&x[0], &FeedForward { norm: norm(&x[1..3], place), up, down, activation, dropout })
}

/// `x`, norm, query, key, value, output, with biases.
fn attending(batch: usize, tokens: usize, width: usize) -> Vec<Tensor> {
    let mut inputs = vec![random(1, &[batch, tokens, width]), random(2, &[width]), random(3, &[width])];
    for i in 0..4 {
        inputs.push(weight(10 + i, width, width));
        inputs.push(random(20 + i, &[width]));
    }
    inputs
}

fn with_attention(
    x: &[Tensor],
    place: NormPlace,
    attention: Attention<'_>,
    dropout: Option<Dropout>,
    f: fn(&Tensor, &SelfAttention<'_>) -> Result<Tensor>,
) -> Result<Tensor> {
    let part = |i: usize| affine(&x[3 + 2 * i], Some(&x[4 + 2 * i]));
    let (query, key, value, output) = (part(0), part(1), part(2), part(3));
    f(&x[0], &SelfAttention { norm: norm(&x[1..3], place), query, key, value, output, attention, dropout })
}

#[test]
fn feed_forward_agrees() -> Result<()> {
    let activations = [Activation::Gelu, Activation::GeluTanh, Activation::Relu, Activation::Silu];
    let dropout = Some(Dropout { p: 0.3, seed: 9 });
    for (rows, width, inner) in
        [(&[1][..], 1, 1), (&[7], 5, 9), (&[2, 65], 48, 192), (&[3, 70], 96, 64), (&[301], 17, 600)]
    {
        let inputs = perceptron(rows, width, inner);
        for (i, activation) in activations.into_iter().enumerate() {
            for place in PLACES {
                let dropout = dropout.filter(|_| i % 2 == 0);
                agree(
                    &inputs,
                    SUBLAYER,
                    |x| with_perceptron(x, place, activation, dropout, feed_forward),
                    |x| with_perceptron(x, place, activation, dropout, plain::feed_forward),
                )?;
            }
        }
    }
    Ok(())
}

#[test]
fn self_attention_agrees() -> Result<()> {
    for (batch, tokens, heads, dim) in
        [(1, 1, 1, 1), (2, 5, 3, 4), (3, 17, 2, 7), (5, 65, 3, 16), (2, 131, 2, 8), (1, 300, 1, 32)]
    {
        let inputs = attending(batch, tokens, heads * dim);
        let mask: Vec<u8> =
            (0..batch * tokens).map(|i| u8::from(i % tokens < tokens.div_ceil(1 + i / tokens))).collect();
        let mask = Tensor::from_vec(mask, (batch, tokens), &Cpu)?;
        for (causal, masked, dropped) in
            [(false, false, false), (true, false, true), (false, true, true), (true, true, false)]
        {
            let attention = Attention {
                heads,
                causal,
                key_mask: masked.then_some(&mask),
                dropout: dropped.then_some(Dropout { p: 0.2, seed: 5 }),
            };
            let dropout = dropped.then_some(Dropout { p: 0.1, seed: 6 });
            for place in PLACES {
                agree(
                    &inputs,
                    SUBLAYER,
                    |x| with_attention(x, place, attention, dropout, self_attention),
                    |x| with_attention(x, place, attention, dropout, plain::self_attention),
                )?;
            }
        }
    }
    Ok(())
}

#[test]
fn the_single_operations_have_the_gradients_of_finite_differences() -> Result<()> {
    for place in PLACES {
        let dropout = Some(Dropout { p: 0.3, seed: 2 });
        check_gradients(&perceptron(&[3], 4, 5), 1e-6, |x| {
            with_perceptron(x, place, Activation::Silu, dropout, feed_forward)
        })?;
        check_gradients(&attending(2, 3, 4), 1e-6, |x| {
            with_attention(x, place, Attention::full(2), dropout, self_attention)
        })?;
    }
    Ok(())
}

/// Without biases, with strided inputs and a strided gradient.
#[test]
fn biases_may_be_absent_and_inputs_strided() -> Result<()> {
    let inputs = perceptron(&[6, 9], 8, 12);
    let run = |x: &[Tensor], f: fn(&Tensor, &FeedForward<'_>) -> Result<Tensor>| {
        let strided = x[0].transpose(0, 1)?;
        let up = x[3].t()?.contiguous()?.t()?;
        let config = FeedForward {
            norm: norm(&x[1..3], NormPlace::Before),
            up: affine(&up, None),
            down: affine(&x[4], None),
            activation: Activation::Gelu,
            dropout: None,
        };
        f(&strided, &config)?.transpose(0, 2)
    };
    let inputs = [&inputs[..4], &inputs[5..6]].concat();
    agree(&inputs, SUBLAYER, |x| run(x, feed_forward), |x| run(x, plain::feed_forward))
}

/// Two ways back through one graph give the same, although the first one takes what was kept.
#[test]
fn a_graph_can_be_walked_twice() -> Result<()> {
    let vars: Vec<Var> = attending(3, 20, 12).iter().map(Var::from_tensor).collect::<Result<_>>()?;
    let x: Vec<Tensor> = vars.iter().map(|var| var.as_tensor().clone()).collect();
    let ys = with_attention(&x, NormPlace::Before, Attention::full(3), None, self_attention)?;
    let loss = ys.sqr()?.sum_all()?;
    let (first, second, third) = (loss.backward()?, loss.backward()?, backward(&loss)?);
    for var in &vars {
        let [a, b, c] = [&first, &second, &third].map(|grads| grads.get(var).unwrap().flatten_all());
        let a = a?.to_vec1::<f32>()?;
        assert!(a.iter().any(|g| *g != 0.));
        assert_eq!(a, b?.to_vec1::<f32>()?);
        assert_eq!(a, c?.to_vec1::<f32>()?);
    }
    Ok(())
}

/// Only what is on a graph gets a gradient, whichever inputs that are.
#[test]
fn constants_get_no_gradient() -> Result<()> {
    let values = perceptron(&[40], 16, 24);
    let all: Vec<Var> = values.iter().map(Var::from_tensor).collect::<Result<_>>()?;
    let tensors: Vec<Tensor> = all.iter().map(|var| var.as_tensor().clone()).collect();
    let run = |x: &[Tensor]| {
        with_perceptron(x, NormPlace::After, Activation::Gelu, None, feed_forward)?.sqr()?.sum_all()
    };
    let want = run(&tensors)?.backward()?;
    for chosen in [&[0][..], &[3], &[6], &[1, 2], &[4, 5], &[0, 3, 5, 6]] {
        let mixed: Vec<Tensor> = (0..values.len())
            .map(|i| if chosen.contains(&i) { tensors[i].clone() } else { values[i].clone() })
            .collect();
        for got in [run(&mixed)?.backward()?, backward(&run(&mixed)?)?] {
            assert_eq!(got.get_ids().count(), chosen.len());
            for &i in chosen {
                assert_close(got.get(&all[i]).unwrap(), want.get(&all[i]).unwrap(), 1e-6)?;
            }
        }
    }
    assert!(!run(&values)?.track_op());
    Ok(())
}

/// A weight that stands in several places gets the sum, from candle's store and from ours.
#[test]
fn shared_weights_sum_their_gradients() -> Result<()> {
    let vars: Vec<Var> = perceptron(&[10], 8, 8).iter().map(Var::from_tensor).collect::<Result<_>>()?;
    let x: Vec<Tensor> = vars.iter().map(|var| var.as_tensor().clone()).collect();
    let mut ys = x[0].clone();
    for _ in 0..3 {
        let next = [&[ys], &x[1..]].concat();
        ys = with_perceptron(&next, NormPlace::Before, Activation::Gelu, None, feed_forward)?;
    }
    // The norm's weight once more, by an operation that is not ours.
    let loss = (ys.sqr()?.sum_all()? + x[1].sqr()?.sum_all()?)?;
    let (want, got) = (loss.backward()?, backward(&loss)?);
    for var in &vars {
        assert_close(got.get(var).unwrap(), want.get(var).unwrap(), 1e-6)?;
    }
    Ok(())
}

#[test]
fn packed_weights_are_used_and_give_the_same_bits() -> Result<()> {
    for rows in [1, 40, 333] {
        let x = perceptron(&[rows], 70, 130);
        let run = |up: Option<&Packed>, down: Option<&Packed>| {
            let config = FeedForward {
                norm: norm(&x[1..3], NormPlace::Before),
                up: Affine { packed: up, ..affine(&x[3], Some(&x[4])) },
                down: Affine { packed: down, ..affine(&x[5], None) },
                activation: Activation::Gelu,
                dropout: None,
            };
            feed_forward(&x[0], &config)?.to_vec2::<f32>()
        };
        let (up, down) = (Packed::new(&x[3])?, Packed::new(&x[5])?);
        let plain = run(None, None)?;
        assert_eq!(run(up.as_ref(), down.as_ref())?, plain);
        let other = Packed::new(&(&x[5] * 2.)?)?;
        assert_ne!(run(up.as_ref(), other.as_ref())?, plain);
    }
    assert!(Packed::new(&random(1, &[3, 4]).to_dtype(DType::F64)?)?.is_none());
    Ok(())
}

#[test]
fn a_packed_weight_cannot_learn() -> Result<()> {
    let x = perceptron(&[4], 6, 10);
    let (up, packed) = (Var::from_tensor(&x[3])?, Packed::new(&x[3])?);
    let config = FeedForward {
        norm: norm(&x[1..3], NormPlace::Before),
        up: Affine { packed: packed.as_ref(), ..affine(up.as_tensor(), None) },
        down: affine(&x[5], None),
        activation: Activation::Gelu,
        dropout: None,
    };
    assert!(feed_forward(&x[0], &config).unwrap_err().to_string().contains("up is packed and on a graph"));
    Ok(())
}

/// One hidden unit at the end of its range: what PyTorch gives.
#[test]
fn activations_of_extremes() -> Result<()> {
    let one = |x: f32| Tensor::new(&[[x]], &Cpu);
    let (zero, ones) = (Tensor::zeros(1, DType::F32, &Cpu)?, Tensor::ones((1, 1), DType::F32, &Cpu)?);
    for (activation, x, want) in [
        (Activation::Relu, f32::NEG_INFINITY, 0.),
        (Activation::Relu, f32::INFINITY, f32::INFINITY),
        (Activation::Silu, -3e38, 0.),
        (Activation::Silu, -100., 0.),
        (Activation::Silu, 3e38, 3e38),
        (Activation::Gelu, -3e38, 0.),
        (Activation::GeluTanh, 3e38, 3e38),
    ] {
        // The norm of one number is 0, so `up` gives its bias; `x` comes through once more.
        let bias = Tensor::new(&[x], &Cpu)?;
        let config = FeedForward {
            norm: Norm { weight: &zero, bias: &zero, eps: 1e-5, place: NormPlace::Before },
            up: affine(&ones, Some(&bias)),
            down: affine(&ones, None),
            activation,
            dropout: None,
        };
        assert_eq!(feed_forward(&one(0.)?, &config)?.to_vec2::<f32>()?, [[want]], "{activation:?} of {x}");
        let nan = Tensor::new(&[f32::NAN], &Cpu)?;
        let config = FeedForward { up: affine(&ones, Some(&nan)), ..config };
        assert!(feed_forward(&one(0.)?, &config)?.to_vec2::<f32>()?[0][0].is_nan());
    }
    Ok(())
}

#[test]
fn wrong_shapes_are_errors_that_name_the_part() -> Result<()> {
    let x = perceptron(&[4], 6, 10);
    let message = |x: &[Tensor]| {
        let run = with_perceptron(x, NormPlace::Before, Activation::Gelu, None, feed_forward);
        run.unwrap_err().to_string().lines().next().unwrap_or_default().to_owned()
    };
    let with = |i: usize, dims: &[usize]| {
        let mut x = x.clone();
        x[i] = random(1, dims);
        message(&x)
    };
    assert!(with(0, &[4, 5]).contains("xs [4, 5], expected a width of 6"));
    assert!(with(1, &[5]).contains("the norm has weight and bias"));
    assert!(with(4, &[9]).contains("up has weight [10, 6] and bias Some([9])"));
    assert!(with(5, &[6, 9]).contains("down has weight [6, 9]"));
    let x = attending(2, 3, 6);
    let run = |attention| {
        with_attention(&x, NormPlace::Before, attention, None, self_attention).unwrap_err().to_string()
    };
    assert!(run(Attention::full(4)).contains("4 heads of a width of 6"));
    assert!(run(Attention::full(0)).contains("0 heads"));
    let mask = Tensor::zeros((2, 4), DType::U8, &Cpu)?;
    assert!(run(Attention { key_mask: Some(&mask), ..Attention::full(2) }).contains("key mask [2, 4]"));
    Ok(())
}
