//! Wrong shapes and labels end in an error that says what was wrong.

use candle_core::{DType, Device, Result, Tensor};
use layerwise_ops::{
    Attention, CrossEntropy, Dropout, Reduction, attention, cross_entropy, dropout, embedding, gelu,
    gelu_tanh, layer_norm, linear, softmax,
};

fn zeros(dims: &[usize]) -> Tensor {
    Tensor::zeros(dims, DType::F32, &Device::Cpu).expect("zeros")
}

fn message(result: Result<Tensor>) -> String {
    let text = result.expect_err("wrong input").to_string();
    text.lines().next().unwrap_or_default().to_owned()
}

#[test]
fn shapes_that_do_not_fit() {
    assert!(message(linear(&zeros(&[2, 3]), &zeros(&[4, 5]), None)).contains("[2, 3]"));
    assert!(message(linear(&zeros(&[2, 5]), &zeros(&[4, 5]), Some(&zeros(&[3])))).contains("[3]"));
    assert!(message(layer_norm(&zeros(&[2, 3]), &zeros(&[4]), &zeros(&[4]), 1e-5)).contains("[4]"));
    let xs = zeros(&[2, 3, 4]);
    assert!(message(attention(&xs, &xs, &xs, &Attention::full(3))).contains("3 heads"));
    assert!(message(attention(&xs, &xs, &xs, &Attention::full(0))).contains("0 heads"));
    let mask = zeros(&[2, 2]);
    let config = Attention { key_mask: Some(&mask), ..Attention::full(2) };
    assert!(message(attention(&xs, &xs, &xs, &config)).contains("[2, 3]"));
}

#[test]
fn labels_and_ids_out_of_range() -> Result<()> {
    let targets = Tensor::new(&[0u32, 5], &Device::Cpu)?;
    let text = message(cross_entropy(&zeros(&[2, 3]), &targets, None, &CrossEntropy::default()));
    assert!(text.contains("row 1") && text.contains('5') && text.contains("3 classes"), "{text}");
    let text = message(embedding(&targets, &zeros(&[5, 2])));
    assert!(text.contains("id 5") && text.contains("position 1"), "{text}");
    Ok(())
}

#[test]
fn probabilities_out_of_range() {
    for p in [-0.1, 1., f32::NAN] {
        assert!(dropout(&zeros(&[3]), Dropout { p, seed: 0 }).is_err());
    }
}

#[test]
fn empty_tensors_stay_empty() -> Result<()> {
    for dtype in [DType::F32, DType::F64, DType::BF16] {
        let zeros = |dims: &[usize]| Tensor::zeros(dims, dtype, &Device::Cpu);
        let is = |ys: Tensor, dims: &[usize]| {
            assert_eq!((ys.dtype(), ys.dims()), (dtype, dims));
        };
        for dims in [&[0][..], &[0, 3], &[3, 0], &[2, 0, 3]] {
            let xs = zeros(dims)?;
            for f in [softmax, gelu, gelu_tanh] {
                is(f(&xs)?, dims);
            }
            is(dropout(&xs, Dropout { p: 0.5, seed: 0 })?, dims);
        }
        for (dims, out) in [([2, 0, 3], [2, 0, 4]), ([0, 5, 3], [0, 5, 4])] {
            is(linear(&zeros(&dims)?, &zeros(&[4, 3])?, Some(&zeros(&[4])?))?, &out);
            is(linear(&zeros(&dims)?, &zeros(&[4, 3])?, None)?, &out);
            is(layer_norm(&zeros(&dims)?, &zeros(&[3])?, &zeros(&[3])?, 1e-5)?, &dims);
        }
        let no_ids = Tensor::zeros((0, 5), DType::U32, &Device::Cpu)?;
        is(embedding(&no_ids, &zeros(&[7, 3])?)?, &[0, 5, 3]);
    }
    Ok(())
}

#[test]
fn attention_of_nothing_or_to_nothing() -> Result<()> {
    for dtype in [DType::F32, DType::F64, DType::BF16] {
        for (batch, queries, keys) in [(0, 5, 5), (2, 0, 5), (2, 0, 0), (2, 5, 0)] {
            let ones = |tokens| Tensor::ones((batch, tokens, 4), dtype, &Device::Cpu);
            let (q, kv) = (ones(queries)?, ones(keys)?);
            let mask = Tensor::ones((batch, keys), DType::U8, &Device::Cpu)?;
            for (causal, key_mask) in [(false, None), (false, Some(&mask)), (true, None)] {
                let config = Attention { causal, key_mask, ..Attention::full(2) };
                if causal && keys < queries {
                    continue;
                }
                let ys = attention(&q, &kv, &kv, &config)?;
                assert_eq!((ys.dtype(), ys.dims()), (dtype, q.dims()));
                // A query that may see no key gets 0.
                assert_eq!(ys.to_dtype(DType::F64)?.abs()?.sum_all()?.to_scalar::<f64>()?, 0.);
            }
        }
    }
    Ok(())
}

#[test]
fn cross_entropy_of_no_rows() -> Result<()> {
    for dtype in [DType::F32, DType::F64, DType::BF16] {
        let logits = Tensor::zeros((0, 3), dtype, &Device::Cpu)?;
        let targets = Tensor::zeros(0, DType::U32, &Device::Cpu)?;
        let weights = Tensor::zeros(0, dtype, &Device::Cpu)?;
        for (reduction, dims) in [(Reduction::None, &[0][..]), (Reduction::Sum, &[]), (Reduction::Mean, &[])]
        {
            for weights in [None, Some(&weights)] {
                let config = CrossEntropy { reduction, ..CrossEntropy::default() };
                let loss = cross_entropy(&logits, &targets, weights, &config)?;
                assert_eq!((loss.dtype(), loss.dims()), (dtype, dims));
                let values = loss.to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>()?;
                // As PyTorch's: the mean of nothing is NaN, the sum 0.
                match reduction {
                    Reduction::None => assert!(values.is_empty()),
                    Reduction::Sum => assert_eq!(values, [0.]),
                    Reduction::Mean => assert!(values[0].is_nan()),
                }
            }
        }
    }
    Ok(())
}
