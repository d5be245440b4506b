//! The number of threads changes no bit, forward or backward.

use candle_core::{Device::Cpu, Result, Tensor, Var};
use layerwise_ops::{
    Activation, Affine, Attention, CrossEntropy, Dropout, FeedForward, Norm, NormPlace, SelfAttention,
    attention, cross_entropy, feed_forward, gelu, layer_norm, linear, self_attention, softmax,
};
use layerwise_testkit::random;
use rayon::ThreadPoolBuilder;

/// Runs `f` and its backward pass in pools of 1, 2 and 3 threads and compares all bits.
fn same_bits(inputs: &[Tensor], f: impl Fn(&[Tensor]) -> Result<Tensor> + Sync) -> Result<()> {
    let run = || -> Result<Vec<Vec<u32>>> {
        let vars: Vec<Var> = inputs.iter().map(Var::from_tensor).collect::<Result<_>>()?;
        let tracked: Vec<Tensor> = vars.iter().map(|var| var.as_tensor().clone()).collect();
        let ys = f(&tracked)?;
        let gradients = (&ys * random(99, ys.dims()))?.sum_all()?.backward()?;
        let mut all = vec![ys];
        all.extend(vars.iter().map(|var| gradients.get(var).expect("a gradient").clone()));
        let bits =
            |xs: &Tensor| Ok(xs.flatten_all()?.to_vec1::<f32>()?.iter().map(|x| x.to_bits()).collect());
        all.iter().map(bits).collect()
    };
    let pool =
        |threads| ThreadPoolBuilder::new().num_threads(threads).build().map_err(candle_core::Error::wrap);
    let one = pool(1)?.install(run)?;
    for threads in [2, 3] {
        assert!(one == pool(threads)?.install(run)?, "{threads} threads differ from one");
    }
    Ok(())
}

#[test]
fn linear_keeps_its_bits() -> Result<()> {
    // Small enough for one thread, one row, one output; and products above 48 * 48 * 256, which gemm shares out.
    for (rows, inputs, outputs) in [(5, 7, 3), (1, 300, 200), (300, 200, 1), (257, 129, 65), (640, 192, 96)] {
        let parts = [random(1, &[rows, inputs]), random(2, &[outputs, inputs]), random(3, &[outputs])];
        same_bits(&parts, |x| linear(&x[0], &x[1], Some(&x[2])))?;
    }
    Ok(())
}

#[test]
fn layer_norm_keeps_its_bits() -> Result<()> {
    for (rows, width) in [(1, 5), (16, 33), (517, 64)] {
        let parts = [random(1, &[rows, width]), random(2, &[width]), random(3, &[width])];
        same_bits(&parts, |x| layer_norm(&x[0], &x[1], &x[2], 1e-5))?;
    }
    Ok(())
}

#[test]
fn attention_keeps_its_bits() -> Result<()> {
    for (batch, tokens, heads, dim) in [(1, 3, 1, 4), (4, 65, 3, 16)] {
        let parts = [1, 2, 3].map(|seed| random(seed, &[batch, tokens, heads * dim]));
        same_bits(&parts, |x| attention(&x[0], &x[1], &x[2], &Attention::full(heads)))?;
    }
    Ok(())
}

#[test]
fn rows_keep_their_bits() -> Result<()> {
    let xs = random(1, &[403, 101]);
    same_bits(std::slice::from_ref(&xs), |x| softmax(&x[0]))?;
    same_bits(std::slice::from_ref(&xs), |x| gelu(&x[0]))?;
    let targets = Tensor::from_vec((0..403u32).map(|i| i % 101).collect(), 403, &Cpu)?;
    same_bits(&[xs], |x| cross_entropy(&x[0], &targets, None, &CrossEntropy::default()))
}

/// One sample and many, so that threads share the samples of a batch, or the work on one.
#[test]
fn sublayers_keep_their_bits() -> Result<()> {
    for (i, (batch, tokens, heads, dim)) in
        [(1, 65, 3, 16), (1, 7, 2, 4), (5, 33, 2, 24), (64, 17, 3, 8), (3, 300, 2, 16), (1, 131, 1, 32)]
            .into_iter()
            .enumerate()
    {
        let d = heads * dim;
        let [xs, scale, shift] = [random(1, &[batch, tokens, d]), random(2, &[d]), random(3, &[d])];
        let weights = [4, 5, 6, 7].map(|seed| random(seed, &[d, d]));
        let place = if i % 2 == 0 { NormPlace::Before } else { NormPlace::After };
        let mask = Tensor::from_iter((0..batch * tokens).map(|i| u8::from(i % 7 != 3)), &Cpu)?;
        let mask = mask.reshape((batch, tokens))?;
        let drop = |seed| (i > 2).then_some(Dropout { p: 0.2, seed });
        let inputs = [&[xs, scale, shift][..], &weights].concat();
        same_bits(&inputs, |x| {
            let affine = |i: usize| Affine { weight: &x[i], bias: Some(&x[1]), packed: None };
            let norm = Norm { weight: &x[1], bias: &x[2], eps: 1e-5, place };
            let attend = SelfAttention {
                norm,
                query: affine(3),
                key: affine(4),
                value: affine(5),
                output: affine(6),
                attention: Attention {
                    heads,
                    causal: i > 3,
                    key_mask: (i > 1).then_some(&mask),
                    dropout: drop(1),
                },
                dropout: drop(2),
            };
            let feed = FeedForward {
                norm,
                up: affine(3),
                down: affine(6),
                activation: Activation::Gelu,
                dropout: drop(3),
            };
            feed_forward(&self_attention(&x[0], &attend)?, &feed)
        })?;
    }
    Ok(())
}
