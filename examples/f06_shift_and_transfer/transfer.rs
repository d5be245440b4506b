//! Layers of models of one data set, probed on another.

use std::path::Path;

use anyhow::{Context, Result};
use candle_core::Device;
use layerwise::data::ImageSet;
use layerwise_example_common::{
    Preset,
    data_sets::parquet_of,
    input::Input,
    layers::Source,
    layerwise::probes,
    vision::{TrainFlags, Vision},
};

use crate::Curves;

/// Training images that probes are fitted on, at most.
const PROBE_SAMPLES: usize = 10_000;

/// Accuracy after each layer of models of the data set in `folder`, there, and of linear probes of these layers on CIFAR-10.
pub(crate) fn transfer(
    vision: &Vision<'_>,
    flags: &TrainFlags,
    folder: &Path,
    device: &Device,
) -> Result<(Curves, Curves)> {
    let limit = if flags.common.preset == Preset::Smoke { 240 } else { usize::MAX };
    let source = Vision::on_other(flags, parquet_of(folder, limit, device)?, device)?;
    let target = vision.images().context("no images")?;
    let classes = target.train_set().classes().len();
    let (mut own, mut probed) = (Vec::new(), Vec::new());
    for subject in source.standard_and_aligned()? {
        own.push((subject.name.clone(), subject.accuracy()));
        let layers = |set: ImageSet| {
            let labels: Vec<usize> = set.labels().iter().map(|&label| label as usize).collect();
            let input = Input::of_set(set, source.preprocess().clone(), subject.model.config());
            anyhow::Ok((source.layers_of(&subject.model, &input, input.samples())?.0.split_off(1), labels))
        };
        let (seen, seen_labels) = layers(target.train_set().take(PROBE_SAMPLES)?)?;
        let (held_out, labels) = layers(target.test_set().take(vision.samples())?)?;
        let curve = probes((&seen, &seen_labels), (&held_out, &labels), classes)?;
        probed.push((subject.name, curve));
    }
    Ok((own, probed))
}
