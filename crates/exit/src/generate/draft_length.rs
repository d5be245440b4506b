/// How often drafts of a text were right lately.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Acceptance {
    right: f64,
    tried: f64,
}

/// What is supposed of a text that nobody drafted for: as if `TRIED` drafts had been right `PRIOR` of the time.
const PRIOR: f64 = 0.7;
const TRIED: f64 = 2.;
/// What is left of a round's weight after the next.
const FORGET: f64 = 0.9;

impl Default for Acceptance {
    fn default() -> Self {
        Self { right: PRIOR * TRIED, tried: TRIED }
    }
}

impl Acceptance {
    /// Of a round's drafts the first `right` were; the one behind them, if there was one, was not.
    pub(super) fn add(&mut self, right: usize, drafted: usize) {
        let tried = (right + 1).min(drafted);
        let aged = |before: f64, prior: f64| FORGET * before + (1. - FORGET) * prior;
        self.right = aged(self.right, PRIOR * TRIED) + right as f64;
        self.tried = aged(self.tried, TRIED) + tried as f64;
    }

    pub(super) fn rate(&self) -> f64 {
        self.right / self.tried
    }

    /// The number of drafts, `most` at most, that gives most tokens for their time, if each costs `cost` of a token without drafts and checking them costs one.
    ///
    /// ```text
    /// argmax_k (1 - a^(k+1)) / (1 - a) / (1 + k cost)
    /// ```
    pub(super) fn best(&self, cost: f64, most: usize) -> usize {
        let (mut tokens, mut likely) = (0., 1.);
        let mut best = (0, 0.);
        for drafts in 0..=most {
            tokens += likely;
            likely *= self.rate();
            let speed = tokens / (1. + drafts as f64 * cost);
            if speed > best.1 {
                best = (drafts, speed);
            }
        }
        best.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drafts_grow_and_shrink_with_their_luck() {
        let mut lucky = Acceptance::default();
        (0..50).for_each(|_| lucky.add(4, 4));
        assert!(lucky.rate() > 0.95);
        assert_eq!(lucky.best(0.3, 8), 8);
        let mut unlucky = Acceptance::default();
        (0..50).for_each(|_| unlucky.add(0, 4));
        assert!(unlucky.rate() < 0.2);
        assert_eq!(unlucky.best(0.3, 8), 0);
        // It is tried again: what was seen is forgotten.
        (0..50).for_each(|_| unlucky.add(0, 0));
        assert!(unlucky.rate() > 0.6 && unlucky.best(0.3, 8) > 0);
        // Free drafts are always worth it, dear ones never.
        assert_eq!((lucky.best(0., 5), lucky.best(10., 5)), (5, 0));
    }
}
