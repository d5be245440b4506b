//! Leaving early with random weights, of which no certainty can be told.

use layerwise::exit::{Check, LateVerdict, Policy, Random, Reads, Result, Signal, Thresholds, Verdict};

/// Reads logits as the paper's policy does, and lets samples leave as they are drawn.
#[derive(Debug)]
pub(crate) struct Drawn {
    read: Thresholds,
    draw: Random,
}

impl Drawn {
    pub(crate) fn new(weights: Vec<f64>) -> Self {
        Self {
            read: Thresholds::common(Signal::MaxProbability, 1., weights.len()),
            draw: Random { seed: 0, weights },
        }
    }
}

impl Policy for Drawn {
    fn validate(&self, depth: usize) -> Result<()> {
        self.draw.validate(depth)
    }

    fn reads(&self, layer: usize, depth: usize) -> Reads {
        self.read.reads(layer, depth)
    }

    fn verdict(&self, check: &Check<'_>) -> Result<Verdict> {
        self.verdict_later(check)?.wait()
    }

    fn verdict_later(&self, check: &Check<'_>) -> Result<LateVerdict> {
        let (read, drawn) = (self.read.verdict_later(check)?, self.draw.verdict(check)?);
        Ok(LateVerdict::new(drawn.memory, move || {
            read.wait()?;
            Ok(drawn.leaves)
        }))
    }
}
