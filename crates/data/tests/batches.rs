//! Epochs visit every image once, in an order and with an augmentation that can be had again.

use candle_core::{Device::Cpu, Tensor};
use layerwise_data::{Augment, Error, ImageSet, Normalise, Shape, digits, epoch_order};

type Result<T = (), E = Error> = std::result::Result<T, E>;

/// What was published with a seed stays: these orders must not change.
#[test]
fn the_order_is_a_function_of_seed_and_epoch() {
    let orders = [epoch_order(8, 42, 0), epoch_order(8, 42, 1), epoch_order(8, 43, 0)];
    assert_eq!(orders, [[0, 6, 1, 7, 3, 5, 2, 4], [0, 7, 6, 2, 1, 3, 5, 4], [6, 2, 3, 5, 1, 4, 7, 0]]);
    for n in [0, 1, 2, 1000] {
        let mut order = epoch_order(n, 7, 3);
        assert_eq!(order, epoch_order(n, 7, 3));
        order.sort_unstable();
        assert!(order.into_iter().eq(0..n));
    }
}

#[test]
fn an_epoch_is_all_images_in_its_order() -> Result {
    let set = digits()?.take(100)?;
    let normalise = Normalise::from_set(&set);
    let (images, labels) = set.tensors(&epoch_order(100, 42, 5), &normalise, None, &Cpu)?;
    for (size, rows) in [(32, vec![32, 32, 32, 4]), (50, vec![50, 50]), (usize::MAX, vec![100])] {
        let batches = set.batches(size, 42, 5, &normalise, None, &Cpu)?;
        assert_eq!(batches.len(), rows.len());
        let batches = batches.collect::<Result<Vec<_>>>()?;
        assert!(batches.iter().map(|(_, labels)| labels.elem_count()).eq(rows));
        let (got_images, got_labels): (Vec<_>, Vec<_>) = batches.into_iter().unzip();
        assert_eq!(values(&Tensor::cat(&got_images, 0)?)?, values(&images)?);
        assert_eq!(Tensor::cat(&got_labels, 0)?.to_vec1::<u32>()?, labels.to_vec1::<u32>()?);
    }
    Ok(())
}

#[test]
fn evaluation_takes_the_images_as_they_are() -> Result {
    let set = digits()?.take(10)?;
    let normalise = Normalise::from_set(&set);
    let batches = set.batches_in_order(4, &normalise, &Cpu)?.collect::<Result<Vec<_>>>()?;
    for ((images, labels), range) in batches.iter().zip([0..4, 4..8, 8..10]) {
        let (want, _) = set.tensors(&range.clone().collect::<Vec<_>>(), &normalise, None, &Cpu)?;
        assert_eq!(values(images)?, values(&want)?);
        assert_eq!(labels.to_vec1::<u32>()?, set.labels()[range]);
    }
    assert_eq!(batches.len(), 3);
    Ok(())
}

#[test]
fn any_batch_can_be_made_again() -> Result {
    let set = digits()?.take(100)?;
    let normalise = Normalise::from_set(&set);
    let augment = Augment { crop_padding: 1, ..Augment::default() };
    let batches = || set.batches(32, 1, 2, &normalise, Some(&augment), &Cpu);
    for (number, batch) in batches()?.enumerate() {
        let mut rest = batches()?;
        let again = rest.nth(number).transpose()?.map(|(images, _)| images);
        assert_eq!(again.as_ref().map(values).transpose()?, Some(values(&batch?.0)?));
        assert_eq!(rest.len(), 3 - number);
    }
    assert!(batches()?.nth(4).is_none());
    Ok(())
}

/// All images are the same, so what differs is drawn.
#[test]
fn augmentation_differs_between_images_batches_epochs_and_seeds() -> Result {
    let shape = Shape { channels: 1, height: 5, width: 5 };
    let set =
        ImageSet::new((0..25).collect::<Vec<u8>>().repeat(32), vec![0; 32], shape, 255, vec!["a".into()])?;
    let normalise = Normalise { mean: vec![0.], std: vec![1.] };
    let augment = Augment::default();
    let epoch = |seed, epoch| -> Result<Vec<Vec<f32>>> {
        let batches = set.batches(16, seed, epoch, &normalise, Some(&augment), &Cpu)?;
        batches.map(|batch| values(&batch?.0)).collect()
    };
    let mut drawn = [epoch(1, 0)?, epoch(1, 1)?, epoch(2, 0)?].concat();
    drawn.sort_by(|a, b| a.partial_cmp(b).expect("no NaN"));
    drawn.dedup();
    assert_eq!(drawn.len(), 6);
    assert_ne!(drawn[0][..25], drawn[0][25..50]);
    Ok(())
}

#[test]
fn settings_that_do_not_do_are_refused_at_once() -> Result {
    let set = digits()?;
    let [one, three] = [1, 3].map(|n| Normalise { mean: vec![0.5; n], std: vec![0.5; n] });
    let message = |size, normalise, augment: Option<&Augment>| {
        set.batches(size, 0, 0, normalise, augment, &Cpu).unwrap_err().to_string()
    };
    assert_eq!(message(0, &one, None), "size is 0, expected at least 1");
    assert_eq!(message(1, &three, None), "mean is 3 values, expected 1, one a channel");
    let augment = Augment { flip: 2., ..Augment::default() };
    assert_eq!(message(1, &one, Some(&augment)), "flip is 2, expected 0 to 1");
    assert!(set.batches_in_order(0, &one, &Cpu).is_err());
    Ok(())
}

fn values(images: &Tensor) -> Result<Vec<f32>> {
    Ok(images.flatten_all()?.to_vec1()?)
}
