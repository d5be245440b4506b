//! Scores are those of scikit-learn and scipy; `fixtures/text_hf.py` wrote the oracles.

use std::path::Path;

use candle_core::{DType, Device::Cpu, Result, Tensor, safetensors};
use layerwise_data::{
    Targets, Text, TextSet, bucketed_order,
    metrics::{Metric, accuracy, f1, matthews, pearson, spearman},
};

#[test]
fn scores_are_scikit_learns_and_scipys() -> Result<()> {
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/metrics.safetensors");
    let expected = safetensors::load(fixture, &Cpu)?;
    let classes = |name: &str| expected[name].to_vec1::<u32>();
    let numbers = |name: &str| expected[name].to_dtype(DType::F64)?.to_vec1::<f64>();
    let (predictions, labels) = (classes("predictions")?, classes("labels")?);
    let (guesses, truth) = (numbers("guesses")?, numbers("truth")?);
    let got = [
        accuracy(&predictions, &labels),
        f1(&predictions, &labels),
        matthews(&predictions, &labels),
        pearson(&guesses, &truth),
        spearman(&guesses, &truth),
    ];
    for (got, want) in got.into_iter().zip(expected["expected"].to_dtype(DType::F64)?.to_vec1::<f64>()?) {
        assert!((got - want).abs() < 1e-12, "{got} {want}");
    }
    Ok(())
}

#[test]
fn scores_without_contrast_are_0() {
    assert_eq!((f1(&[0, 0], &[0, 0]), matthews(&[1, 1], &[0, 1]), accuracy(&[], &[])), (0., 0., 0.));
    let none = [pearson(&[1., 1.], &[1., 2.]), spearman(&[1., 2.], &[3., 3.]), pearson(&[], &[])];
    assert!(none.iter().all(|x| x.is_nan()));
    assert_eq!((accuracy(&[1, 0], &[1, 0]), f1(&[1, 0], &[1, 0]), matthews(&[1, 0], &[1, 0])), (1., 1., 1.));
}

#[test]
fn metrics_of_targets() -> layerwise_data::Result<()> {
    let logits = Tensor::new(&[[0f32, 1.], [2., 1.], [0., 3.]], &Cpu)?;
    let names = vec!["no".to_owned(), "yes".to_owned()];
    let classes = Targets::Classes { labels: vec![1, 0, 0], names };
    assert_eq!(Metric::Accuracy.score(&logits, &classes)?, 2. / 3.);
    assert_eq!(Metric::F1.score(&logits, &classes)?, 2. / 3.);
    let numbers = Targets::Numbers(vec![1., 2., 3.]);
    let constant = Tensor::new(&[[2f32], [2.], [2.]], &Cpu)?;
    assert_eq!(Metric::Spearman.score(&constant, &numbers)?, 0.);
    let predicted = Tensor::new(&[[2f32], [4.], [6.]], &Cpu)?;
    assert!((Metric::Pearson.score(&predicted, &numbers)? - 1.).abs() < 1e-12);
    for (metric, predicted, targets) in [
        (Metric::Pearson, &logits, &numbers),
        (Metric::Accuracy, &predicted, &numbers),
        (Metric::Spearman, &logits, &classes),
        (Metric::Accuracy, &predicted, &Targets::None),
        (Metric::Accuracy, &logits.narrow(0, 0, 2)?, &classes),
    ] {
        assert!(metric.score(predicted, targets).is_err(), "{metric:?}");
    }
    assert!(Metric::Pearson.score(&(predicted * f64::NAN)?, &numbers).is_err());
    Ok(())
}

#[test]
fn buckets_hold_everything_once_and_little_padding() {
    let lengths: Vec<usize> = (0..1003).map(|i| 3 + i * 7919 % 61).collect();
    let order = bucketed_order(&lengths, 16, 1, 0);
    let mut sorted = order.clone();
    sorted.sort_unstable();
    assert!(sorted.into_iter().eq(0..1003));
    let padding = |order: &[usize]| -> usize {
        let batch = |batch: &[usize]| batch.iter().map(|&i| lengths[i]).max().unwrap_or(0) * batch.len();
        order.chunks(16).map(batch).sum::<usize>() - lengths.iter().sum::<usize>()
    };
    let drawn = layerwise_data::epoch_order(1003, 1, 0);
    assert!(padding(&order) * 8 < padding(&drawn), "{} of {}", padding(&order), padding(&drawn));
    assert_eq!(order, bucketed_order(&lengths, 16, 1, 0));
    assert_ne!(order, bucketed_order(&lengths, 16, 1, 1));
    // Long batches are not all at one end.
    let longest: Vec<usize> = order.chunks(16).map(|batch| lengths[batch[0]]).collect();
    assert!(!longest.is_sorted());
    assert!(bucketed_order(&[], 16, 1, 0).is_empty());
}

#[test]
fn texts_and_targets_that_do_not_go_together() {
    let texts = || vec![Text::from("a"), "b".into()];
    let classes = |labels: Vec<u32>| Targets::Classes { labels, names: vec!["x".into(), "y".into()] };
    for (texts, targets, says) in [
        (texts(), classes(vec![0]), "targets is 1, expected 2"),
        (texts(), classes(vec![0, 2]), "sample 1: label 2 is out of range, there are 2 classes"),
        (texts(), Targets::Numbers(vec![0., f32::NAN]), "targets is NaN"),
        (Vec::new(), Targets::None, "no samples"),
    ] {
        let text = TextSet::new(texts, targets).unwrap_err().to_string();
        assert!(text.contains(says), "{text}");
    }
    let set = TextSet::new(texts(), classes(vec![0, 1])).unwrap();
    assert_eq!(set.select(&[1]).unwrap().texts()[0].first, "b");
    assert!(set.select(&[2]).is_err() && set.select(&[]).is_err());
}
