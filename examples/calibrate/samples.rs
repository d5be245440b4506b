//! Held-out samples: which are for what, and what each signal says of them.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use candle_core::{Device, Tensor};
use layerwise::{
    data::{Split, cifar10},
    exit::{self, Gate, HeldOut, Monitor, Oracle, Outcome, Risk, Signal, Thresholds},
    models::Tapped,
    ops::init,
};
use layerwise_example_common::{
    checkpoint::{Checkpoint, preprocess_of},
    input::Input,
    interrupt,
    layers::{self, Source},
};
use rand::{Rng, seq::SliceRandom};
use serde::Serialize;

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
        model: &dyn Tapped,
        input: &dyn Source,
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
        let learned = learned.collect::<candle_core::Result<Vec<_>>>()?;
        match Gate::fit(&learned, &right) {
            Ok(gate) => signals.push((SignalName::Gate, observe(Signal::Gate(gate))?)),
            // Nothing to learn; an error only for who asked for it.
            Err(exit::Error::OneSided { .. }) => {}
            Err(error) => return Err(error).context("the learned gate"),
        }
        Ok(Self { signals, oracle })
    }

    pub(crate) fn signal(&self, name: SignalName) -> Result<&HeldOut> {
        let found = self.signals.iter().find(|(signal, _)| *signal == name);
        Ok(&found
            .context("--signal gate: the samples to learn from are answered all rightly or all wrongly")?
            .1)
    }
}

/// Features of layers `1..=L`.
fn features(model: &dyn Tapped, input: &dyn Source, device: &Device) -> Result<Vec<Tensor>> {
    let size = (input.samples(), crate::BATCH);
    let mut features = layers::features(model, input, size, device, interrupt::stop_flag()?)?;
    Ok(features.split_off(1))
}

/// Other images, for which nothing was promised.
pub(crate) fn shift_set(flag: Option<&Path>, folder: &Path, model: &Checkpoint) -> Result<Option<Input>> {
    let Some(shift) = flag else { return Ok(None) };
    let named = || format!("--shift {}", shift.display());
    let Checkpoint::Vit(vit) = model else {
        bail!("{}: images, and {} takes {}", named(), folder.display(), model.takes())
    };
    let set = cifar10::load(shift, Split::Test).with_context(named)?;
    let (classes, labels) = (set.classes().len(), vit.config().num_labels);
    ensure!(classes == labels, "{}: {classes} classes, the model has {labels}", named());
    Ok(Some(Input::of_set(set, preprocess_of(folder, vit.config())?, vit.config())))
}

/// What the thresholds give on other images, and whether a monitor that sees no label notices.
pub(crate) struct Shifted {
    pub(crate) samples: usize,
    /// Accuracy of the last layer.
    pub(crate) full: f64,
    pub(crate) outcome: Outcome,
    /// Share of samples that the last layer would have got right and the exit got wrong.
    pub(crate) harmed: f64,
    /// The rate of disagreement that the monitors hold to be familiar.
    pub(crate) tolerance: f64,
    /// Of familiar samples, then of these.
    pub(crate) watched: [Watched; 2],
}

/// Many monitors, each on draws of its own.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Watched {
    pub(crate) monitors: usize,
    /// Samples that each saw at most.
    pub(crate) samples: usize,
    /// How many raised their alarm.
    pub(crate) alarms: usize,
    /// Median samples until the alarm, of those that did.
    pub(crate) median_until_alarm: Option<usize>,
    /// Rate of disagreement of the samples that are drawn from.
    pub(crate) rate: f64,
}

/// Chance that a monitor raises a false alarm.
const ALPHA: f64 = 0.05;
const MONITORS: usize = 200;
const WATCHED: usize = 5000;

pub(crate) fn shifted(
    model: &dyn Tapped,
    input: &Input,
    familiar: &HeldOut,
    (thresholds, parts): (&Thresholds, &Parts),
    device: &Device,
) -> Result<Shifted> {
    let labels = input.labels().unwrap_or_default().to_vec();
    let features = features(model, input, device)?;
    let shifted = HeldOut::from_features(model, familiar.signal().clone(), &features)?.with_labels(labels)?;
    // Thresholds were chosen on other samples than those that say what is familiar, and these are watched by none.
    let (known, watched) = parts.test.split_at(parts.test.len() / 2);
    let (known, watched) = (familiar.select(known)?, familiar.select(watched)?);
    let seen = known.samples();
    let differed = Risk::Disagreement.count(&known, thresholds)?;
    let monitor = Monitor::after(differed, seen, ALPHA)?;
    Ok(Shifted {
        samples: shifted.samples(),
        full: shifted.outcome(&Thresholds::none())?.accuracy.unwrap_or(f64::NAN),
        outcome: shifted.outcome(thresholds)?,
        harmed: risk_of(&shifted, thresholds, Risk::Accuracy)?,
        tolerance: monitor.tolerance(),
        watched: [watch(&monitor, &watched, thresholds)?, watch(&monitor, &shifted, thresholds)?],
    })
}

fn watch(monitor: &Monitor, held_out: &HeldOut, thresholds: &Thresholds) -> Result<Watched> {
    let exits = held_out.exits(thresholds)?;
    let (answers, last) = (held_out.answers(), held_out.depth() - 1);
    let differs = |i: usize| answers[exits[i] - 1][i] != answers[last][i];
    let alarm = |seed: usize| {
        let (mut monitor, mut rng) = (monitor.clone(), init::rng(seed as u64));
        (0..WATCHED).any(|_| monitor.observe(differs(rng.random_range(0..exits.len()))));
        monitor.alarm()
    };
    let mut alarms: Vec<usize> = (0..MONITORS).filter_map(alarm).collect();
    alarms.sort_unstable();
    Ok(Watched {
        monitors: MONITORS,
        samples: WATCHED,
        alarms: alarms.len(),
        median_until_alarm: alarms.get(alarms.len() / 2).copied(),
        rate: held_out.outcome(thresholds)?.disagreement,
    })
}

/// Share of samples to which it happens that must not.
pub(crate) fn risk_of(held_out: &HeldOut, thresholds: &Thresholds, risk: Risk) -> Result<f64> {
    Ok(risk.count(held_out, thresholds)? as f64 / held_out.samples() as f64)
}
