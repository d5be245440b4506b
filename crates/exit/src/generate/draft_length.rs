/// How often drafts were right lately, of all texts together.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Acceptance {
    right: f64,
    tried: f64,
    /// Rounds since anything was drafted.
    idle: u32,
}

/// What is supposed before anything was drafted: as if `TRIED` drafts had been right `PRIOR` of the time.
const PRIOR: f64 = 0.8;
const TRIED: f64 = 2.;
/// What is left of a round's weight after the next.
const FORGET: f64 = 0.9;
/// Where no number of drafts seems to pay, one is tried after so many rounds: only drafts tell how often they are right.
const TRY: u32 = 16;

impl Default for Acceptance {
    fn default() -> Self {
        Self { right: PRIOR * TRIED, tried: TRIED, idle: TRY }
    }
}

impl Acceptance {
    /// Of each text's drafts in a round, how many were right before the first wrong one, and how many there were.
    pub(super) fn add(&mut self, round: impl IntoIterator<Item = (usize, usize)>) {
        let aged = |before: f64, prior: f64| FORGET * before + (1. - FORGET) * prior;
        (self.right, self.tried) = (aged(self.right, PRIOR * TRIED), aged(self.tried, TRIED));
        self.idle += 1;
        for (right, drafted) in round {
            if drafted > 0 {
                self.idle = 0;
            }
            self.right += right as f64;
            self.tried += (right + 1).min(drafted) as f64;
        }
    }

    pub(super) fn rate(&self) -> f64 {
        self.right / self.tried
    }

    /// The number of drafts, `most` at most, that gives most tokens for their time.
    ///
    /// ```text
    /// argmax_k (1 - a^(k+1)) / (1 - a) / cost(k)
    /// ```
    ///
    /// If that is none, one now and then, unless none would pay though all were right.
    pub(super) fn best(&self, costs: &Costs, texts: usize, most: usize) -> usize {
        let (mut tokens, mut likely) = (0., 1.);
        let (mut best, mut may_pay) = ((0, 0.), false);
        for drafts in 0..=most {
            tokens += likely;
            likely *= self.rate();
            let cost = costs.of(texts, drafts);
            may_pay |= drafts as f64 + 1. > cost;
            let speed = tokens / cost;
            if speed > best.1 {
                best = (drafts, speed);
            }
        }
        if best.0 == 0 && may_pay && self.idle >= TRY { 1 } else { best.0 }
    }
}

/// What drafts cost, of a token of all layers without drafts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Costs {
    /// To draft one.
    pub(super) draft: f64,
    /// Share of the blocks that draft.
    pub(super) first: f64,
}

/// Rows that the blocks take for the time of one, as weights come from memory, and how many more of them take as long again: attention and what is left
/// grow with texts and rows. Fitted to whole steps on the processors that this was measured on.
const FREE: f64 = 6.;
const AGAIN: f64 = 10.;

impl Costs {
    /// So many drafts of each text and what verifies them: all blocks behind, once, on as many rows more.
    fn of(&self, texts: usize, drafts: usize) -> f64 {
        let rows = |each: usize| 1. + ((texts * each) as f64 - FREE).max(0.) / AGAIN;
        self.first + drafts as f64 * self.draft + (1. - self.first) * rows(drafts + 1) / rows(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn costs(draft: f64) -> Costs {
        Costs { draft, first: 0.2 }
    }

    #[test]
    fn drafts_grow_and_shrink_with_their_luck() {
        let mut lucky = Acceptance::default();
        (0..50).for_each(|_| lucky.add([(4, 4)]));
        assert!(lucky.rate() > 0.95);
        assert_eq!(lucky.best(&costs(0.3), 1, 8), 8);
        let mut unlucky = Acceptance::default();
        (0..50).for_each(|_| unlucky.add([(0, 4)]));
        assert!(unlucky.rate() < 0.2);
        assert_eq!(unlucky.best(&costs(0.3), 1, 8), 0);
        // It is tried again: what was seen is forgotten.
        (0..50).for_each(|_| unlucky.add([(0, 0), (0, 0)]));
        unlucky.idle = 0;
        assert!(unlucky.rate() > 0.6 && unlucky.best(&costs(0.3), 1, 8) > 0);
        // Of many texts they are only known by trying, which costs little: where all are right it goes on, where none are it stops.
        let many = |drafting: &Costs, right: usize| {
            let mut some = Acceptance::default();
            let rounds = (0..100).map(|_| {
                let drafts = some.best(drafting, 8, 6).min(1);
                some.add([(drafts.min(right), drafts); 8]);
                drafts
            });
            rounds.sum::<usize>()
        };
        let half = Costs { draft: 0.5, first: 0.5 };
        assert_eq!(Acceptance { idle: 0, ..Default::default() }.best(&half, 8, 6), 0);
        assert!(many(&half, 1) > 80 && many(&half, 0) < 10, "{} {}", many(&half, 1), many(&half, 0));
        assert_eq!(many(&Costs { draft: 1.2, first: 0.5 }, 1), 0);
        // Free drafts are always worth it, dear ones never.
        assert_eq!((lucky.best(&costs(0.), 1, 5), lucky.best(&costs(10.), 1, 5)), (5, 0));
    }

    #[test]
    fn many_texts_want_fewer_drafts() {
        let usual = Acceptance { idle: 0, ..Default::default() };
        let of = |texts| usual.best(&costs(0.15), texts, 8);
        assert!(of(1) > of(8) && of(8) >= of(64), "{} {} {}", of(1), of(8), of(64));
        assert!((costs(0.15).of(1, 0) - 1.).abs() < 1e-12 && (costs(0.15).of(9, 0) - 1.).abs() < 1e-12);
    }
}
