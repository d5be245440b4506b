//! Thresholds for a promise or a budget, and what they give.

use anyhow::Result;
use layerwise::exit::{
    self, Budget, Costs, Guarantee, HeldOut, Outcome, Risk, Thresholds, guaranteed, histogram, layer_ratio,
    milliseconds, within_budget,
};

use crate::{
    BATCH, STEPS, SignalName,
    samples::{Observed, Parts, risk_of},
};

/// What thresholds are chosen for.
pub(crate) struct Chosen<'a> {
    pub(crate) layers: &'a [usize],
    pub(crate) promise: Guarantee,
    pub(crate) costs: &'a Costs,
    pub(crate) budget: Option<Limit>,
}

#[derive(Clone, Copy)]
pub(crate) enum Limit {
    Layers(f64),
    Milliseconds(f64),
}

/// Thresholds, and what they give where they were chosen and where they were not.
pub(crate) struct Kept {
    pub(crate) thresholds: Thresholds,
    pub(crate) on_calibration: Outcome,
    pub(crate) on_test: Given,
}

/// What leaving gives on the test samples.
#[derive(Clone)]
pub(crate) struct Given {
    pub(crate) name: String,
    pub(crate) layers: f64,
    /// By the costs of blocks and exits in full batches.
    pub(crate) predicted_ms: f64,
    pub(crate) accuracy: f64,
    pub(crate) disagreement: f64,
}

impl Given {
    fn none(name: String) -> Self {
        Self { name, layers: f64::NAN, predicted_ms: f64::NAN, accuracy: f64::NAN, disagreement: f64::NAN }
    }
}

/// Accuracy against layers, a point for each threshold.
pub(crate) type Curve = (String, Vec<(f64, f64)>);

impl Chosen<'_> {
    /// For the promise, or the budget if there is one, on the calibration samples.
    pub(crate) fn of(&self, signal: &HeldOut, parts: &Parts) -> Result<Kept> {
        let calibration = signal.select(&parts.calibrate)?;
        let path = calibration.path(self.layers, STEPS)?;
        let budget = self.budget.map(|limit| match limit {
            Limit::Layers(most) => Budget::Layers(most),
            Limit::Milliseconds(most) => Budget::Milliseconds { most, costs: self.costs, rows: BATCH },
        });
        let (thresholds, on_calibration) = match budget {
            Some(budget) => within_budget(&calibration, &path, &budget)?,
            None => guaranteed(&calibration, &path, &self.promise)?,
        };
        let on_test = self.given("chosen", &signal.select(&parts.test)?, &thresholds)?;
        Ok(Kept { thresholds, on_calibration, on_test })
    }

    fn given(&self, name: &str, test: &HeldOut, thresholds: &Thresholds) -> Result<Given> {
        let outcome = test.outcome(thresholds)?;
        Ok(Given {
            name: name.to_owned(),
            layers: outcome.layers,
            predicted_ms: milliseconds(thresholds, &outcome.histogram, self.costs, BATCH),
            accuracy: outcome.accuracy.unwrap_or(f64::NAN),
            disagreement: outcome.disagreement,
        })
    }

    /// Every signal under the same promise, and without exits.
    pub(crate) fn compare(&self, observed: &Observed, parts: &Parts) -> Result<Vec<Given>> {
        let test = observed.signals[0].1.select(&parts.test)?;
        let mut all = vec![self.given("no exits", &test, &Thresholds::none())?];
        for (name, signal) in &observed.signals {
            let name = told(*name).to_owned();
            all.push(match self.of(signal, parts) {
                Ok(kept) => Given { name, ..kept.on_test },
                // Another signal than the one asked for may not get by with so little.
                Err(error) if matches!(error.downcast_ref(), Some(exit::Error::Budget { .. })) => {
                    Given::none(name)
                }
                Err(error) => return Err(error),
            });
        }
        Ok(all)
    }

    /// Every signal along its thresholds, the static cut after each layer, and the oracle, on the test samples.
    pub(crate) fn curves(&self, observed: &Observed, parts: &Parts) -> Result<Vec<Curve>> {
        let mut curves = Vec::new();
        for (name, signal) in &observed.signals {
            let test = signal.select(&parts.test)?;
            let point = |thresholds: &Thresholds| {
                let outcome = test.outcome(thresholds)?;
                anyhow::Ok((outcome.layers, outcome.accuracy.unwrap_or(f64::NAN)))
            };
            let path = test.path(self.layers, STEPS)?;
            curves.push((told(*name).to_owned(), path.iter().map(point).collect::<Result<_>>()?));
        }
        let all = &observed.signals[0].1;
        let labels = all.labels().unwrap_or_default();
        let share = |layer: &dyn Fn(usize) -> usize| {
            let right = parts.test.iter().filter(|&&i| all.answers()[layer(i) - 1][i] == labels[i]).count();
            right as f64 / parts.test.len() as f64
        };
        let cut = (1..=all.depth()).map(|layer| (layer as f64, share(&|_| layer))).collect();
        curves.push(("static cut".into(), cut));
        let layers: Vec<usize> = parts.test.iter().map(|&i| observed.oracle.layers()[i]).collect();
        let mean = all.depth() as f64 / layer_ratio(&histogram(&layers, all.depth()));
        curves.push(("oracle".into(), vec![(mean, share(&|i| observed.oracle.layers()[i]))]));
        Ok(curves)
    }

    /// For each tolerance in points: layers of a sample with the promise, and with the boldest thresholds whose calibration samples happen
    /// to keep it; and the accuracy that each loses, on the test samples.
    pub(crate) fn tolerances(&self, signal: &HeldOut, parts: &Parts) -> Result<Vec<(f64, [Given; 2])>> {
        let calibration = signal.select(&parts.calibrate)?;
        let test = signal.select(&parts.test)?;
        let mut all = Vec::new();
        for points in [0.25, 0.5, 1., 2., 4.] {
            let promise = Guarantee { tolerance: points / 100., ..self.promise };
            if promise.samples_needed()? > calibration.samples() {
                continue;
            }
            let path = calibration.path(self.layers, STEPS)?;
            let (promised, _) = guaranteed(&calibration, &path, &promise)?;
            let plain = plain(&calibration, &path, promise.tolerance, promise.risk)?;
            let given = [("promised", promised), ("plain", plain)]
                .map(|(name, thresholds)| self.given(name, &test, &thresholds));
            let [promised, plain] = given;
            all.push((points, [promised?, plain?]));
        }
        Ok(all)
    }
}

/// The boldest thresholds that keep the tolerance on these very samples: what a sweep over a validation set gives.
pub(crate) fn plain(
    held_out: &HeldOut,
    path: &[Thresholds],
    tolerance: f64,
    risk: Risk,
) -> Result<Thresholds> {
    let mut best = (f64::INFINITY, Thresholds::none());
    for thresholds in path {
        let layers = held_out.outcome(thresholds)?.layers;
        if !above(risk_of(held_out, thresholds, risk)?, tolerance) && layers < best.0 {
            best = (layers, thresholds.clone());
        }
    }
    Ok(best.1)
}

/// Shares of samples that are equal may differ by rounding.
pub(crate) fn above(share: f64, tolerance: f64) -> bool {
    share > tolerance + 1e-12
}

pub(crate) fn told(name: SignalName) -> &'static str {
    match name {
        SignalName::MaxProbability => "max probability",
        SignalName::Margin => "margin",
        SignalName::Entropy => "entropy",
        SignalName::Patience => "patience",
        SignalName::Saturation => "COS saturation",
        SignalName::Gate => "learned gate",
    }
}
