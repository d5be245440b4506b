use crate::{Costs, Error, HeldOut, Outcome, Result, Thresholds, accounting::mean_cost};

/// What a sample may cost on average.
#[derive(Clone, Copy, Debug)]
pub enum Budget<'a> {
    /// So many layers.
    Layers(f64),
    /// So many milliseconds of blocks and exits, at the measured costs of batches of `rows` samples in which everybody goes on.
    Milliseconds {
        /// A sample's share of its batches.
        most: f64,
        /// Of the model on the device that will serve.
        costs: &'a Costs,
        /// Samples of a batch.
        rows: usize,
    },
}

impl Budget<'_> {
    fn most(&self) -> f64 {
        match self {
            Self::Layers(most) | Self::Milliseconds { most, .. } => *most,
        }
    }

    /// Average cost of a sample, in the budget's unit.
    fn cost(&self, thresholds: &Thresholds, outcome: &Outcome) -> f64 {
        let Self::Milliseconds { costs, rows, .. } = self else { return outcome.layers };
        milliseconds(thresholds, &outcome.histogram, costs, *rows)
    }
}

/// Average milliseconds of a sample whose blocks and exits each cost its share of a batch of `rows`, every check counted.
#[must_use]
pub fn milliseconds(thresholds: &Thresholds, histogram: &[usize], costs: &Costs, rows: usize) -> f64 {
    let rows = rows.max(1);
    1e3 * mean_cost(histogram, thresholds, costs.block(rows), costs.exit(rows)) / rows as f64
}

/// The best thresholds of `path` within the budget on these samples: of the highest accuracy (without labels, the least
/// disagreement with the last layer), and of those the cheapest.
///
/// The budget holds on average and for samples like these; it is no guarantee of accuracy.
///
/// # Errors
///
/// [`Error::Setting`] for a budget that is not a positive number, [`Error::Budget`] when none of `path` is within it,
/// [`Error::Empty`] for an empty path; otherwise as [`HeldOut::outcome`].
pub fn within_budget(
    held_out: &HeldOut,
    path: &[Thresholds],
    budget: &Budget<'_>,
) -> Result<(Thresholds, Outcome)> {
    let most = budget.most();
    if !(most.is_finite() && most > 0.) {
        return Err(Error::Setting {
            field: "budget",
            value: most.to_string(),
            expected: "a positive number",
        });
    }
    let mut best: Option<(f64, f64, &Thresholds, Outcome)> = None;
    let mut least = f64::INFINITY;
    for thresholds in path {
        let outcome = held_out.outcome(thresholds)?;
        let cost = budget.cost(thresholds, &outcome);
        least = least.min(cost);
        // A cost that is no number is within no budget.
        if cost.is_nan() || cost > most {
            continue;
        }
        let quality = outcome.accuracy.unwrap_or(1. - outcome.disagreement);
        let better = best.as_ref().is_none_or(|(q, c, ..)| quality > *q || (quality == *q && cost < *c));
        if better {
            best = Some((quality, cost, thresholds, outcome));
        }
    }
    match best {
        Some((.., thresholds, outcome)) => Ok((thresholds.clone(), outcome)),
        None if path.is_empty() => Err(Error::Empty),
        None => Err(Error::Budget { asked: most, least }),
    }
}
