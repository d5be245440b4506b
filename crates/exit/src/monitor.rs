use crate::{Error, Result, p_value::binomial_upper};

/// Watches, without labels, whether exits still agree with the last layer as they were promised to.
///
/// A share of the samples, drawn at random, is run to the end; [`observe`](Self::observe) is told whether exit and last layer agreed. The
/// monitor bets against "they differ at a rate of at most `tolerance`":
///
/// ```text
/// W_t = mean over b of  prod_(i <= t) (1 + b (x_i / tolerance - 1)),   x_i = 1 where they differed,  b in (0, 1)
/// ```
///
/// While that is true, the probability that `W` ever reaches `1 / alpha` is at most `alpha` (Ville's inequality; Waudby-Smith and
/// Ramdas 2024), however long it runs and however often it is looked at. A drift of the data that the exits do not suffer from raises no
/// alarm, and none is meant.
#[derive(Clone, Debug, PartialEq)]
pub struct Monitor {
    tolerance: f64,
    alpha: f64,
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
        Ok(Self { tolerance, alpha, log_wealth: [0.; BETS.len()], observed: 0, differed: 0, alarm: None })
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
        for (log_wealth, bet) in self.log_wealth.iter_mut().zip(BETS) {
            *log_wealth += (bet * gain).ln_1p();
        }
        if self.alarm.is_none() && self.log_wealth() >= -self.alpha.ln() {
            self.alarm = Some(self.observed);
        }
        self.alarm.is_some()
    }

    /// Logarithm of the wealth.
    #[must_use]
    pub fn log_wealth(&self) -> f64 {
        let largest = self.log_wealth.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = self.log_wealth.iter().map(|wealth| (wealth - largest).exp()).sum();
        largest + (sum / BETS.len() as f64).ln()
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
