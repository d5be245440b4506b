//! Layers of models of one data set, probed on another.

use std::path::Path;

use anyhow::{Context, Result};
use candle_core::Device;
use layerwise_example_common::{
    Preset,
    data_sets::parquet_of,
    layerwise::{PROBE_SAMPLES, probes},
    vision::{TrainFlags, Vision},
};

use crate::Curves;

/// The experiment on the data set in `folder`.
pub(crate) fn source<'a>(flags: &'a TrainFlags, folder: &Path, device: &Device) -> Result<Vision<'a>> {
    let limit = if flags.common.preset == Preset::Smoke { 240 } else { usize::MAX };
    Vision::on_other(flags, parquet_of(folder, limit, device)?, device)
}

/// Accuracy after each layer of models of `source`, there, and of linear probes of these layers on the images of `target`.
pub(crate) fn transfer(source: &Vision<'_>, target: &Vision<'_>) -> Result<(Curves, Curves)> {
    let images = target.images().context("no images")?;
    let classes = images.train_set().classes().len();
    let (mut own, mut probed) = (Vec::new(), Vec::new());
    for subject in source.standard_and_aligned()? {
        own.push((subject.name.clone(), subject.accuracy()));
        let layers = |set| source.layers_of_set(&subject.model, set);
        let (seen, seen_labels) = layers(images.train_set().take(PROBE_SAMPLES)?)?;
        let (held_out, labels) = layers(images.test_set().take(target.samples())?)?;
        probed.push((subject.name, probes((&seen, &seen_labels), (&held_out, &labels), classes)?));
    }
    Ok((own, probed))
}
