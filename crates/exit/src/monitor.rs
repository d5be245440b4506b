use candle_core::{D, DType};
use layerwise_models::{Batch, Pass, Tapped, tap};

use crate::{Error, Exited, Result, p_value::binomial_upper};

/// Watches, without labels, whether exits still agree with the last layer as often as they did.
///
/// A share of the samples, drawn at random, is run to the end ([`disagrees`]); [`observe`](Self::observe) is told whether exit and last layer
/// differed. The monitor bets against "they differ at a rate of at most `tolerance`", with several shares `b` of its wealth, and with a new
/// start at every sample, so that a change that comes late is noticed, too:
///
/// ```text
/// W_t = mean over b of  sum_k w_k  prod_(k <= i <= t) (1 + b (x_i / tolerance - 1)),   x_i = 1 where they differed,  w_k = 1 / (k (k + 1))
/// ```
///
/// While that is true, the probability that `W` ever reaches `1 / alpha` is at most `alpha` (Ville's inequality; Waudby-Smith and
/// Ramdas 2024), however long it runs and however often it is looked at. A drift of the data that the exits do not suffer from raises no
/// alarm, and none is meant.
///
/// It suits [`Risk::Disagreement`](crate::Risk::Disagreement) under the promise's own tolerance. Accuracy that is lost cannot be seen without
/// labels; there, [`Monitor::after`] watches for more disagreement than the calibration samples had.
#[derive(Clone, Debug, PartialEq)]
pub struct Monitor {
    tolerance: f64,
    alpha: f64,
    /// Of each bet, the logarithm of the wealth of all starts so far.
    log_wealth: [f64; BETS.len()],
    observed: usize,
    differed: usize,
    alarm: Option<usize>,
}

/// Shares of the wealth that are bet: small ones for rates just above the tolerance, large ones for rates far above it.
const BETS: [f64; 6] = [0.01, 0.03, 0.1, 0.25, 0.5, 0.9];

impl Monitor {
    /// Watches for a rate of disagreement above `tolerance`, with a probability of at most `alpha` of ever raising a false alarm.
    ///
    /// # Errors
    ///
    /// [`Error::Setting`] for a number that is not between 0 and 1.
    pub fn new(tolerance: f64, alpha: f64) -> Result<Self> {
        for (field, value) in [("tolerance", tolerance), ("alpha", alpha)] {
            if !(value > 0. && value < 1.) {
                return Err(Error::Setting { field, value: value.to_string(), expected: "between 0 and 1" });
            }
        }
        let log_wealth = [f64::NEG_INFINITY; BETS.len()];
        Ok(Self { tolerance, alpha, log_wealth, observed: 0, differed: 0, alarm: None })
    }

    /// Watches for a rate above the one that was seen on calibration samples, `differed` of `samples`: above its exact upper confidence bound
    /// at `alpha / 2`, with another `alpha / 2` for the watch itself. Of samples like those, it raises its alarm with a probability of at most
    /// `alpha`.
    ///
    /// # Errors
    ///
    /// [`Error::Setting`] for an alpha that is not between 0 and 1; [`Error::Empty`] where all samples differed, or there are none.
    pub fn after(differed: usize, samples: usize, alpha: f64) -> Result<Self> {
        if differed >= samples {
            return Err(Error::Empty);
        }
        Self::new(binomial_upper(differed, samples, alpha / 2.), alpha / 2.)
    }

    /// Tells of one more sample that was run to the end; returns whether the alarm is, or was before, raised.
    pub fn observe(&mut self, differed: bool) -> bool {
        self.observed += 1;
        self.differed += usize::from(differed);
        let gain = if differed { 1. / self.tolerance - 1. } else { -1. };
        // What starts with this sample.
        let t = self.observed as f64;
        let start = -(t * (t + 1.)).ln();
        for (log_wealth, bet) in self.log_wealth.iter_mut().zip(BETS) {
            *log_wealth = log_sum([*log_wealth, start]) + (bet * gain).ln_1p();
        }
        if self.alarm.is_none() && self.log_wealth() >= -self.alpha.ln() {
            self.alarm = Some(self.observed);
        }
        self.alarm.is_some()
    }

    /// Logarithm of the wealth: of all starts so far, and of what is kept for later ones.
    #[must_use]
    pub fn log_wealth(&self) -> f64 {
        let kept = -(self.observed as f64 + 1.).ln();
        let bets = log_sum(self.log_wealth) - (BETS.len() as f64).ln();
        log_sum([bets, kept])
    }

    /// The rate that is not to be exceeded.
    #[must_use]
    pub fn tolerance(&self) -> f64 {
        self.tolerance
    }

    /// After how many samples the alarm was raised.
    #[must_use]
    pub fn alarm(&self) -> Option<usize> {
        self.alarm
    }

    /// Samples that were run to the end.
    #[must_use]
    pub fn observed(&self) -> usize {
        self.observed
    }

    /// Share of them that the exit answered otherwise than the last layer; NaN without any.
    #[must_use]
    pub fn rate(&self) -> f64 {
        self.differed as f64 / self.observed as f64
    }
}

/// Logarithm of the sum of these numbers, given by theirs.
fn log_sum<const N: usize>(logs: [f64; N]) -> f64 {
    let largest = logs.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if largest == f64::NEG_INFINITY {
        return largest;
    }
    largest + logs.iter().map(|log| (log - largest).exp()).sum::<f64>().ln()
}

/// Runs samples to the end that have left early, and says of each whether its exit and the last layer answer differently.
///
/// Costs a full pass: take a small share of the samples, drawn at random.
///
/// # Errors
///
/// [`Error::Rows`] unless `exited` are the answers to this batch; what the model reports.
pub fn disagrees<M: Tapped + ?Sized>(model: &M, batch: &Batch, exited: &Exited) -> Result<Vec<bool>> {
    let answers =
        |logits: &candle_core::Tensor| logits.to_dtype(DType::F32)?.argmax(D::Minus1)?.to_vec1::<u32>();
    let full = answers(&tap::forward(model, batch, Pass::EVAL)?)?;
    let early = answers(&exited.logits)?;
    if full.len() != early.len() {
        return Err(Error::Rows { rows: full.len(), labels: early.len() });
    }
    Ok(full.iter().zip(&early).map(|(full, early)| full != early).collect())
}
