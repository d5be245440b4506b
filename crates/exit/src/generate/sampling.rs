use layerwise_ops::init::ChaCha8Rng;
use rand::Rng;
use serde::{Deserialize, Serialize};

use crate::{Error, Result, argmax};

/// How the next token is drawn from logits.
///
/// First the temperature, then the nucleus (Holtzman et al. 2020): the likeliest tokens whose probabilities sum to `top_p` at least, and no more of them than that takes.
///
/// ```
/// use layerwise_exit::Sampling;
///
/// let careful = Sampling { temperature: 0.7, ..Default::default() }; // p = 0.95
/// careful.validate()?;
/// assert!(Sampling { top_p: 0., ..careful }.validate().is_err());
/// # Ok::<(), layerwise_exit::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Sampling {
    /// Logits are divided by it; 0: always the likeliest token.
    pub temperature: f64,
    /// `p` of nucleus sampling, above 0 and at most 1; the paper's 0.95.
    pub top_p: f64,
}

impl Default for Sampling {
    fn default() -> Self {
        Self { temperature: 1., top_p: 0.95 }
    }
}

impl Sampling {
    /// Always the likeliest token.
    pub const GREEDY: Self = Self { temperature: 0., top_p: 1. };

    /// Whether tokens can be drawn so.
    ///
    /// # Errors
    ///
    /// [`Error::Setting`] for a temperature that is negative or not finite, and a `top_p` outside of (0, 1].
    pub fn validate(&self) -> Result<()> {
        let Self { temperature, top_p } = *self;
        let setting =
            |field, value: f64, expected| Err(Error::Setting { field, value: value.to_string(), expected });
        if !(temperature >= 0. && temperature.is_finite()) {
            return setting("temperature", temperature, "0 or more, finite");
        }
        if !(top_p > 0. && top_p <= 1.) {
            return setting("top_p", top_p, "above 0 and at most 1");
        }
        Ok(())
    }

    /// What is drawn from; `None` where a logit is not finite.
    pub(super) fn of(&self, logits: &[f32]) -> Option<Drawn> {
        if logits.is_empty() || !logits.iter().all(|x| x.is_finite()) {
            return None;
        }
        let best = argmax(logits);
        if self.temperature == 0. {
            return Some(Drawn::only(best as u32));
        }
        let max = f64::from(logits[best]);
        let weights: Vec<f64> =
            logits.iter().map(|&x| ((f64::from(x) - max) / self.temperature).exp()).collect();
        let sum: f64 = weights.iter().sum();
        // All tokens that are rarer than this could be left out together.
        let rare = (1. - self.top_p) * sum / weights.len() as f64;
        let mut tokens: Vec<(u32, f64)> =
            (0..).zip(weights).filter(|(_, weight)| *weight > 0. && *weight >= rare).collect();
        if self.top_p < 1. {
            tokens.sort_by(|a, b| b.1.total_cmp(&a.1));
            let mut seen = 0.;
            let enough = |(_, weight): &(u32, f64)| {
                seen += weight;
                seen >= self.top_p * sum
            };
            let last = tokens.iter().position(enough).unwrap_or(tokens.len() - 1);
            tokens.truncate(last + 1);
            tokens.sort_unstable_by_key(|(token, _)| *token);
        }
        Some(Drawn(tokens).normalised())
    }
}

/// Probabilities of the tokens that may be drawn, in the order of their ids; they sum to 1.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Drawn(Vec<(u32, f64)>);

impl Drawn {
    pub(super) fn only(token: u32) -> Self {
        Self(vec![(token, 1.)])
    }

    /// The tokens under other names: token `i` is `words[i]`, in the same order.
    pub(super) fn named(mut self, words: &[u32]) -> Self {
        self.0.iter_mut().for_each(|(token, _)| *token = words[*token as usize]);
        self
    }

    fn normalised(mut self) -> Self {
        let sum: f64 = self.0.iter().map(|(_, p)| p).sum();
        self.0.iter_mut().for_each(|(_, p)| *p /= sum);
        self
    }

    pub(super) fn probability(&self, token: u32) -> f64 {
        self.0.binary_search_by_key(&token, |(other, _)| *other).map_or(0., |at| self.0[at].1)
    }

    pub(super) fn draw(&self, rng: &mut ChaCha8Rng) -> u32 {
        if let [(only, _)] = self.0.as_slice() {
            return *only;
        }
        let mut left: f64 = rng.random();
        for (token, p) in &self.0 {
            if left < *p {
                return *token;
            }
            left -= p;
        }
        // Rounding: the sum was a little below 1.
        self.0[self.0.len() - 1].0
    }

    /// A token of this distribution, where `draft` was drawn from `other`: the draft as often as may be, and whether it is (Leviathan et al. 2023, algorithm 1).
    ///
    /// ```text
    /// accept x ~ q with probability min(1, p(x) / q(x)), otherwise draw from max(0, p - q), normalised
    /// ```
    pub(super) fn correct(&self, draft: u32, other: &Self, rng: &mut ChaCha8Rng) -> (u32, bool) {
        let ratio = self.probability(draft) / other.probability(draft);
        if ratio >= 1. || (ratio > 0. && rng.random::<f64>() < ratio) {
            return (draft, true);
        }
        let left = self.0.iter().map(|&(token, p)| (token, p - other.probability(token)));
        let left: Vec<(u32, f64)> = left.filter(|(_, p)| *p > 0.).collect();
        if left.is_empty() {
            // The two are the same but for rounding.
            return (self.draw(rng), false);
        }
        (Self(left).normalised().draw(rng), false)
    }
}

#[cfg(test)]
mod tests {
    use layerwise_ops::init;

    use super::*;

    fn of(logits: &[f32], temperature: f64, top_p: f64) -> Vec<(u32, f64)> {
        Sampling { temperature, top_p }.of(logits).map(|drawn| drawn.0).unwrap_or_default()
    }

    #[test]
    fn the_nucleus_is_the_fewest_tokens_that_suffice() {
        // Probabilities 0.1, 0.5, 0.15, 0.25.
        let logits = [0.1f32, 0.5, 0.15, 0.25].map(f32::ln);
        let tokens = |top_p| of(&logits, 1., top_p).iter().map(|(token, _)| *token).collect::<Vec<_>>();
        assert_eq!(tokens(0.4), [1]);
        assert_eq!(tokens(0.6), [1, 3]);
        assert_eq!(tokens(0.8), [1, 2, 3]);
        assert_eq!(tokens(1.), [0, 1, 2, 3]);
        let p = of(&logits, 1., 0.6);
        assert!((p[0].1 - 2. / 3.).abs() < 1e-6 && (p[1].1 - 1. / 3.).abs() < 1e-6);
        // At half the temperature probabilities are squared.
        let p = of(&logits, 0.5, 1.);
        let squares: f64 = [0.1f64, 0.5, 0.15, 0.25].iter().map(|p| p * p).sum();
        assert!((p[1].1 - 0.25 / squares).abs() < 1e-6);
        assert_eq!(of(&[1., 3., 3.], 0., 1.), [(1, 1.)]);
        assert!(of(&[1., f32::NAN], 1., 1.).is_empty() && of(&[f32::INFINITY], 0., 1.).is_empty());
    }

    /// Chi-squared statistic of draws against a distribution: some 1.0 a degree of freedom if they are of it.
    fn chi_squared(counts: &[usize], p: &Drawn) -> f64 {
        let n: usize = counts.iter().sum();
        let of = |(token, p): &(u32, f64)| {
            let expected = p * n as f64;
            (counts[*token as usize] as f64 - expected).powi(2) / expected
        };
        p.0.iter().map(of).sum()
    }

    #[test]
    fn corrected_drafts_are_draws_of_the_distribution() {
        let sampling = Sampling { temperature: 1., top_p: 0.9 };
        let mut rng = init::rng(3);
        let (mut right, rounds) = (0, 40_000);
        for (p, q) in [([2f32, 1., 0., -1., 1.5], [0f32, 1., 2., -3., 1.4]), ([0.; 5], [9., 0., 0., 0., 0.])]
        {
            let (Some(p), Some(q)) = (sampling.of(&p), sampling.of(&q)) else { unreachable!() };
            let mut counts = [0; 5];
            for _ in 0..rounds {
                let draft = q.draw(&mut rng);
                let (token, accepted) = p.correct(draft, &q, &mut rng);
                counts[token as usize] += 1;
                right += usize::from(accepted);
                assert!(p.probability(token) > 0. && (!accepted || token == draft));
            }
            // Below this in all but one of 10,000 runs, with 4 degrees of freedom or fewer.
            assert!(chi_squared(&counts, &p) < 23.5, "{counts:?} of {p:?}");
        }
        assert!(right > 0);
    }

    #[test]
    fn settings_out_of_range_are_named() {
        for (temperature, top_p, field) in [
            (-1., 1., "temperature"),
            (f64::NAN, 1., "temperature"),
            (1., 0., "top_p"),
            (1., 1.1, "top_p"),
            (1., f64::NAN, "top_p"),
        ] {
            let error = Sampling { temperature, top_p }.validate().unwrap_err().to_string();
            assert!(error.starts_with(field), "{error}");
        }
        assert!(Sampling::default().validate().is_ok() && Sampling::GREEDY.validate().is_ok());
    }
}
