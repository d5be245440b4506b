//! What the accounting promises for any numbers.

use layerwise_exit::{histogram, layer_ratio, minimal_depth};
use proptest::{collection::vec, prelude::*};

/// Exit layers of some samples, within `1..=depth`.
fn exits() -> impl Strategy<Value = (usize, Vec<usize>)> {
    (1usize..20).prop_flat_map(|depth| (Just(depth), vec(1..=depth, 1..200)))
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_histogram_counts_each_sample_once((depth, layers) in exits()) {
        let counts = histogram(&layers, depth);
        prop_assert_eq!(counts.len(), depth);
        prop_assert_eq!(counts.iter().sum::<usize>(), layers.len());
        for (i, count) in counts.iter().enumerate() {
            prop_assert_eq!(*count, layers.iter().filter(|layer| **layer == i + 1).count());
        }
    }

    #[test]
    fn a_histogram_leaves_out_what_is_no_layer(layers in vec(0usize..30, 0..100), depth in 0usize..20) {
        let inside = layers.iter().filter(|layer| (1..=depth).contains(*layer)).count();
        prop_assert_eq!(histogram(&layers, depth).iter().sum::<usize>(), inside);
    }

    #[test]
    fn the_layer_ratio_is_depth_over_the_mean_exit((depth, layers) in exits()) {
        let mean = layers.iter().sum::<usize>() as f64 / layers.len() as f64;
        let ratio = layer_ratio(&histogram(&layers, depth));
        // Both are quotients of whole numbers, rounded twice at most.
        prop_assert!((ratio - depth as f64 / mean).abs() <= 4. * f64::EPSILON * ratio);
        prop_assert!((1. ..=depth as f64).contains(&ratio));
    }

    #[test]
    fn leaving_earlier_never_lowers_the_ratio((depth, layers) in exits(), which: prop::sample::Index) {
        let mut earlier = layers.clone();
        let sample = which.index(layers.len());
        earlier[sample] = (earlier[sample] - 1).max(1);
        prop_assert!(layer_ratio(&histogram(&earlier, depth)) >= layer_ratio(&histogram(&layers, depth)));
    }

    #[test]
    fn minimal_depth_is_the_first_within_tolerance(accuracy in vec(0f64..=1., 1..20), tolerance in 0f64..0.5) {
        let depth = minimal_depth(&accuracy, tolerance).unwrap();
        let best = accuracy.iter().copied().fold(0., f64::max);
        prop_assert!((1..=accuracy.len()).contains(&depth));
        let rounding = 1e-11;
        prop_assert!(accuracy[depth - 1] >= best - tolerance - rounding);
        prop_assert!(accuracy[..depth - 1].iter().all(|a| *a < best - tolerance));
        prop_assert!(minimal_depth(&accuracy, tolerance / 2.).unwrap() >= depth);
    }
}

#[test]
fn the_ends() {
    assert_eq!(layer_ratio(&[0, 0, 0, 7]), 1.);
    assert_eq!(layer_ratio(&[7, 0, 0, 0]), 4.);
    assert!(layer_ratio(&[0, 0]).is_nan() && layer_ratio(&[]).is_nan());
    assert!(histogram(&[1, 2], 0).is_empty());
}
