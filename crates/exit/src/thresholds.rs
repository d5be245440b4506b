use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{Check, Error, LateVerdict, Policy, Reads, Result, Signal, Verdict};

/// Leaving where a signal says so: one threshold for each layer that is checked.
///
/// Layers without one are not checked and cost nothing; without any, nobody leaves early. The last layer always answers, so it has
/// none.
///
/// ```
/// use layerwise_exit::{Signal, Thresholds};
///
/// let paper = Thresholds::common(Signal::MaxProbability, 0.9, 12); // after each of layers 1 to 11
/// let few = Thresholds { at: [(4, 0.95), (8, 0.9)].into(), ..Default::default() };
/// assert_eq!((paper.at.len(), few.at.len()), (11, 2));
/// ```
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Thresholds {
    /// What is compared.
    pub signal: Signal,
    /// Thresholds by layer, from 1; [`Signal`] says of which range.
    pub at: BTreeMap<usize, f64>,
}

impl Thresholds {
    /// One threshold after every layer below `depth`: the paper's.
    #[must_use]
    pub fn common(signal: Signal, threshold: f64, depth: usize) -> Self {
        Self { signal, at: (1..depth).map(|layer| (layer, threshold)).collect() }
    }

    /// Nobody leaves early.
    #[must_use]
    pub fn none() -> Self {
        Self::default()
    }
}

impl Policy for Thresholds {
    fn validate(&self, depth: usize) -> Result<()> {
        if let Signal::Gate(gate) = &self.signal {
            gate.validate()?;
        }
        for (&layer, &threshold) in &self.at {
            if layer == 0 || layer >= depth {
                let last = depth.saturating_sub(1);
                return Err(Error::Layer { field: "thresholds", layer, first: 1, last, depth });
            }
            self.signal.check_threshold(threshold)?;
        }
        Ok(())
    }

    fn reads(&self, layer: usize, _depth: usize) -> Reads {
        let checked = self.at.contains_key(&layer);
        // What the next block makes of this feature is compared with it.
        let watched = self.signal.compares() && self.at.contains_key(&(layer + 1));
        if checked || watched { self.signal.reads() } else { Reads::Nothing }
    }

    fn verdict(&self, check: &Check<'_>) -> Result<Verdict> {
        self.verdict_later(check)?.wait()
    }

    fn verdict_later(&self, check: &Check<'_>) -> Result<LateVerdict> {
        self.signal.verdict(check, self.at.get(&check.layer).copied())
    }
}
