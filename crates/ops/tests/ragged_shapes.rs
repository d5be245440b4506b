//! The fast paths against the plain ones over random shapes: lanes, chunks and tasks that do not come out even.

mod common;

use candle_core::{Device::Cpu, Tensor};
use layerwise_ops::{
    Attention, CrossEntropy, Dropout, Reduction, attention, cross_entropy, layer_norm, linear, plain, softmax,
};
use layerwise_testkit::random;
use proptest::prelude::*;

use crate::common::{ONE_OPERATION, agree};

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn layer_norm_agrees(rows in 1usize..70, width in 2usize..80, shift in -3f64..3., seed: u64) {
        let xs = (random(seed, &[rows, width]) + shift).unwrap();
        let inputs = [xs, random(seed ^ 1, &[width]), random(seed ^ 2, &[width])];
        // Rows of two close values have a variance near 0, which magnifies rounding; this eps bounds it.
        let eps = 1e-1;
        holds(agree(
            &inputs,
ONE_OPERATION,
            |x| layer_norm(&x[0], &x[1], &x[2], eps),
            |x| plain::layer_norm(&x[0], &x[1], &x[2], eps),
        ))?;
    }

    #[test]
    fn softmax_agrees(outer in 1usize..4, rows in 1usize..30, width in 1usize..80, seed: u64) {
        let xs = (random(seed, &[outer, rows, width]) * 4.).unwrap();
        holds(agree(&[xs], ONE_OPERATION, |x| softmax(&x[0]), |x| plain::softmax(&x[0])))?;
    }

    #[test]
    fn linear_agrees(outer in 1usize..4, rows in 1usize..40, inputs in 1usize..50, outputs in 1usize..50, seed: u64) {
        let parts =
            [random(seed, &[outer, rows, inputs]), random(seed ^ 1, &[outputs, inputs]), random(seed ^ 2, &[outputs])];
        holds(agree(&parts, ONE_OPERATION, |x| linear(&x[0], &x[1], Some(&x[2])), |x| plain::linear(&x[0], &x[1], Some(&x[2]))))?;
    }

    #[test]
    fn attention_agrees(
        (batch, heads, dim) in (1usize..4, 1usize..4, 1usize..10),
        (queries, extra) in (1usize..20, 0usize..10),
        (causal, masked, dropped) in (any::<bool>(), any::<bool>(), any::<bool>()),
        seed: u64,
    ) {
        let (keys, width) = (queries + extra, heads * dim);
        let parts = [(seed, queries), (seed ^ 1, keys), (seed ^ 2, keys)]
            .map(|(seed, tokens)| random(seed, &[batch, tokens, width]));
        // Every third key or so is padding; a row may have no key left.
        let bits = (0..batch * keys).map(|i| u8::from((seed >> (i % 61)) % 3 != 0)).collect();
        let mask = Tensor::from_vec(bits, (batch, keys), &Cpu).unwrap();
        let config = Attention {
            heads,
            causal,
            key_mask: masked.then_some(&mask),
            dropout: dropped.then_some(Dropout { p: 0.2, seed }),
        };
        holds(agree(
            &parts,
ONE_OPERATION,
            |x| attention(&x[0], &x[1], &x[2], &config),
            |x| plain::attention(&x[0], &x[1], &x[2], &config),
        ))?;
    }

    #[test]
    fn cross_entropy_agrees(
        (rows, classes) in (2usize..40, 2usize..60),
        smoothing in prop_oneof![Just(0.), 0f64..0.9],
        (ignore, weighted) in (any::<bool>(), any::<bool>()),
        reduction in prop_oneof![Just(Reduction::Mean), Just(Reduction::Sum), Just(Reduction::None)],
        seed: u64,
    ) {
        let logits = (random(seed, &[rows, classes]) * 3.).unwrap();
        // The first target is never the ignored one: a mean needs a row.
        let ids = (0..rows as u32).map(|i| if i == 0 { 1 } else { (i * 7 + seed as u32 % 5) % classes as u32 });
        let targets = Tensor::from_vec(ids.collect(), rows, &Cpu).unwrap();
        let weights = (random(seed ^ 1, &[rows]).abs().unwrap() + 0.1).unwrap();
        let weights = weighted.then_some(&weights);
        let config =
            CrossEntropy { ignore_index: ignore.then_some(0), label_smoothing: smoothing, reduction };
        holds(agree(
            std::slice::from_ref(&logits),
ONE_OPERATION,
            |x| cross_entropy(&x[0], &targets, weights, &config),
            |x| plain::cross_entropy(&x[0], &targets, weights, &config),
        ))?;
    }
}

/// A failed comparison, as a failed case.
fn holds(result: candle_core::Result<()>) -> Result<(), TestCaseError> {
    result.map_err(|error| TestCaseError::fail(error.to_string()))
}
