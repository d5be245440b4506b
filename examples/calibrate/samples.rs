//! Held-out samples: which are for what, and what each signal says of them.

use std::path::Path;

use anyhow::{Result, ensure};
use candle_core::{Device, Tensor};
use layerwise::{
    data::{Split, cifar10},
    exit::{Gate, HeldOut, Monitor, Oracle, Outcome, Signal, Thresholds},
    models::{Tapped, Vit},
    ops::init,
};
use layerwise_example_common::{
    checkpoint::preprocess_of,
    input::Input,
    interrupt,
    layers::{self, Source},
};
use rand::{Rng, seq::SliceRandom};

use crate::SignalName;

/// Which samples are for what; none is for two things.
pub(crate) struct Parts {
    /// A fifth: the gate learns from them.
    pub(crate) learn: Vec<usize>,
    /// Two fifths: thresholds are chosen on them.
    pub(crate) calibrate: Vec<usize>,
    /// The rest: what is said of thresholds is measured on them.
    pub(crate) test: Vec<usize>,
}

impl Parts {
    pub(crate) fn of(samples: usize, seed: u64) -> Result<Self> {
        ensure!(samples >= 10, "{samples} held-out samples; expected at least 10");
        let mut order: Vec<usize> = (0..samples).collect();
        order.shuffle(&mut init::rng(seed));
        let (fifth, three) = (samples / 5, 3 * samples / 5);
        Ok(Self {
            learn: order[..fifth].to_vec(),
            calibrate: order[fifth..three].to_vec(),
            test: order[three..].to_vec(),
        })
    }
}

/// All held-out samples, by signal.
pub(crate) struct Observed {
    pub(crate) signals: Vec<(SignalName, HeldOut)>,
    /// Each sample's first right layer.
    pub(crate) oracle: Oracle,
}

impl Observed {
    pub(crate) fn new(
        model: &Vit,
        input: &Input,
        labels: &[u32],
        parts: &Parts,
        device: &Device,
    ) -> Result<Self> {
        let features = features(model, input, device)?;
        let observe = |signal| -> Result<HeldOut> {
            Ok(HeldOut::from_features(model, signal, &features)?.with_labels(labels.to_vec())?)
        };
        let plain = [
            (SignalName::MaxProbability, Signal::MaxProbability),
            (SignalName::Margin, Signal::Margin),
            (SignalName::Entropy, Signal::Entropy),
            (SignalName::Patience, Signal::Patience),
            (SignalName::Saturation, Signal::Saturation),
        ];
        let mut signals = plain
            .into_iter()
            .map(|(name, signal)| Ok((name, observe(signal)?)))
            .collect::<Result<Vec<_>>>()?;
        let answers = signals[0].1.answers().to_vec();
        let oracle = Oracle::right(&answers, labels)?;
        let learn = Tensor::new(parts.learn.iter().map(|&i| i as u32).collect::<Vec<_>>(), device)?;
        let inner = model.depth() - 1;
        let learned = features[..inner].iter().map(|f| f.index_select(&learn, 0));
        let right = |layer: &Vec<u32>| parts.learn.iter().map(|&i| layer[i] == labels[i]).collect();
        let right: Vec<Vec<bool>> = answers[..inner].iter().map(right).collect();
        let gate = Gate::fit(&learned.collect::<candle_core::Result<Vec<_>>>()?, &right)?;
        signals.push((SignalName::Gate, observe(Signal::Gate(gate))?));
        Ok(Self { signals, oracle })
    }

    pub(crate) fn signal(&self, name: SignalName) -> &HeldOut {
        let found = self.signals.iter().find(|(signal, _)| *signal == name);
        &found.unwrap_or(&self.signals[0]).1
    }
}

/// Features of layers `1..=L`.
fn features(model: &Vit, input: &Input, device: &Device) -> Result<Vec<Tensor>> {
    let size = (input.samples(), crate::BATCH);
    let mut features = layers::features(model, input, size, device, interrupt::stop_flag()?)?;
    Ok(features.split_off(1))
}

/// What the thresholds give on other images, and whether a monitor that sees no label notices.
pub(crate) struct Shifted {
    pub(crate) samples: usize,
    /// Accuracy of the last layer.
    pub(crate) full: f64,
    pub(crate) outcome: Outcome,
    /// Share of samples that the last layer would have got right and the exit got wrong.
    pub(crate) harmed: f64,
    /// The rate of disagreement that the monitor holds to be familiar.
    pub(crate) tolerance: f64,
    /// A monitor of familiar samples, then one of these: samples until the alarm, of the samples seen, and their rate of disagreement.
    pub(crate) monitors: [(Option<usize>, usize, f64); 2],
}

/// Chance that a monitor raises a false alarm.
const ALPHA: f64 = 0.05;

pub(crate) fn shifted(
    model: &Vit,
    data: &Path,
    folder: &Path,
    familiar: &HeldOut,
    (thresholds, parts): (&Thresholds, &Parts),
    device: &Device,
) -> Result<Shifted> {
    let set = cifar10::load(data, Split::Test)?;
    let labels = set.labels().to_vec();
    let input = Input::of_set(set, preprocess_of(folder, model.config())?, model.config());
    let features = features(model, &input, device)?;
    let shifted = HeldOut::from_features(model, familiar.signal().clone(), &features)?.with_labels(labels)?;
    let (calibration, test) = (familiar.select(&parts.calibrate)?, familiar.select(&parts.test)?);
    let seen = calibration.samples();
    let differed = (calibration.outcome(thresholds)?.disagreement * seen as f64).round() as usize;
    let monitor = Monitor::after(differed, seen, ALPHA)?;
    Ok(Shifted {
        samples: shifted.samples(),
        full: shifted.outcome(&Thresholds::none())?.accuracy.unwrap_or(f64::NAN),
        outcome: shifted.outcome(thresholds)?,
        harmed: harmed(&shifted, thresholds)?,
        tolerance: monitor.tolerance(),
        monitors: [watch(monitor.clone(), &test, thresholds)?, watch(monitor, &shifted, thresholds)?],
    })
}

/// Share of samples that the last layer gets right and the exit gets wrong.
pub(crate) fn harmed(held_out: &HeldOut, thresholds: &Thresholds) -> Result<f64> {
    let (answers, last) = (held_out.answers(), held_out.depth() - 1);
    let labels = held_out.labels().unwrap_or_default();
    let bad =
        |(i, &layer): (usize, &usize)| answers[last][i] == labels[i] && answers[layer - 1][i] != labels[i];
    let exits = held_out.exits(thresholds)?;
    Ok(exits.iter().enumerate().filter(|&x| bad(x)).count() as f64 / exits.len() as f64)
}

/// Ten thousand draws of these samples, each run to the end.
fn watch(
    mut monitor: Monitor,
    held_out: &HeldOut,
    thresholds: &Thresholds,
) -> Result<(Option<usize>, usize, f64)> {
    let exits = held_out.exits(thresholds)?;
    let (answers, last) = (held_out.answers(), held_out.depth() - 1);
    let mut rng = init::rng(0);
    for _ in 0..10_000 {
        let i = rng.random_range(0..exits.len());
        if monitor.observe(answers[exits[i] - 1][i] != answers[last][i]) {
            break;
        }
    }
    Ok((monitor.alarm(), monitor.observed(), monitor.rate()))
}
