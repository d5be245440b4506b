//! p-values of "the risk is above alpha", for losses between 0 and 1.

/// `P(Bin(n, p) <= k)`, by its sum: of terms that follow from each other, in logarithms as far as they would vanish.
#[must_use]
pub fn binomial_cdf(k: usize, n: usize, p: f64) -> f64 {
    if k >= n || p <= 0. {
        return 1.;
    }
    if p >= 1. {
        return 0.;
    }
    let odds = (p / (1. - p)).ln();
    let mut log_term = n as f64 * (-p).ln_1p();
    let mut largest = log_term;
    // Sum of terms over the largest of them so far.
    let mut sum = 1f64;
    for i in 0..k {
        log_term += ((n - i) as f64 / (i + 1) as f64).ln() + odds;
        if log_term > largest {
            sum = sum * (largest - log_term).exp() + 1.;
            largest = log_term;
        } else {
            sum += (log_term - largest).exp();
        }
    }
    (largest.exp() * sum).min(1.)
}

/// The exact upper confidence bound (Clopper and Pearson) of a rate of which `k` of `n` were seen: the largest one at which so few or fewer
/// have probability `delta`. 1 where all were seen, or nothing.
#[must_use]
pub fn binomial_upper(k: usize, n: usize, delta: f64) -> f64 {
    if k >= n {
        return 1.;
    }
    // The distribution function falls in the rate.
    let (mut low, mut high) = (k as f64 / n as f64, 1.);
    for _ in 0..60 {
        let middle = (low + high) / 2.;
        if binomial_cdf(k, n, middle) > delta { low = middle } else { high = middle }
    }
    high
}

/// The Hoeffding-Bentkus p-value (Bates et al. 2021; Angelopoulos et al. 2021) of "the mean of `n` losses between 0 and 1 is above
/// `alpha`", for an observed mean:
///
/// ```text
/// min( exp(-n h(min(mean, alpha), alpha)),  e P(Bin(n, alpha) <= ceil(n mean)) )
/// h(a, b) = a ln(a / b) + (1 - a) ln((1 - a) / (1 - b))
/// ```
///
/// `n mean` within 1e-9 of a whole number counts as that number. 1 for a mean that is not a number.
#[must_use]
pub fn hoeffding_bentkus(mean: f64, n: usize, alpha: f64) -> f64 {
    if mean.is_nan() {
        return 1.;
    }
    let a = mean.min(alpha);
    let part = |a: f64, b: f64| if a > 0. { a * (a / b).ln() } else { 0. };
    let hoeffding = (-(n as f64) * (part(a, alpha) + part(1. - a, 1. - alpha))).exp();
    let bad = (n as f64 * mean - 1e-9).ceil().max(0.) as usize;
    hoeffding.min(std::f64::consts::E * binomial_cdf(bad, n, alpha)).min(1.)
}

/// The smallest `n` with `(1 - alpha)^n <= delta`: samples without a loss from which either test concludes something.
pub(crate) fn samples_for(alpha: f64, delta: f64) -> usize {
    let n = (delta.ln() / (-alpha).ln_1p()).ceil().max(1.);
    // The quotient may be rounded to either side.
    let enough = |n: f64| (n * (-alpha).ln_1p()).exp() <= delta;
    let n = if n > 1. && enough(n - 1.) { n - 1. } else { n };
    (if enough(n) { n } else { n + 1. }) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Equivalent Python: `scipy.stats.binom.cdf(k, n, p)`, SciPy 1.17.1.
    #[test]
    fn the_binomial_distribution_equals_scipy() {
        for (k, n, p, want) in BINOMIAL {
            let got = binomial_cdf(k, n, p);
            // The logarithm of a first term of e^-69078 is exact to 1e-11, and 10,000 more are added to it.
            assert!((got - want).abs() <= 1e-9 * want, "{k} of {n} at {p}: {got:e} instead of {want:e}");
        }
        assert_eq!((binomial_cdf(7, 7, 0.3), binomial_cdf(0, 5, 0.), binomial_cdf(4, 5, 1.)), (1., 1., 0.));
    }

    /// Equivalent Python: `scipy.stats.beta.ppf(1 - delta, k + 1, n - k)`.
    #[test]
    fn the_upper_bound_equals_scipy() {
        for (k, n, delta, want) in UPPER {
            let got = binomial_upper(k, n, delta);
            assert!((got - want).abs() <= 1e-9, "{k} of {n} at {delta}: {got} instead of {want}");
        }
        assert_eq!((binomial_upper(5, 5, 0.1), binomial_upper(0, 0, 0.1)), (1., 1.));
    }

    #[test]
    fn the_test_is_of_its_level() {
        // At the boundary, the probability that the p-value is at most delta is at most delta: exactly summed.
        let (n, alpha) = (500, 0.02);
        let mass =
            |k: usize| binomial_cdf(k, n, alpha) - if k > 0 { binomial_cdf(k - 1, n, alpha) } else { 0. };
        for delta in [0.01, 0.05, 0.1] {
            for p in [
                |k, n, a| binomial_cdf(k, n, a),
                |k: usize, n: usize, a| hoeffding_bentkus(k as f64 / n as f64, n, a),
            ] {
                let level: f64 = (0..=n).filter(|&k| p(k, n, alpha) <= delta).map(mass).sum();
                assert!(level <= delta + 1e-12 && level > 0., "{level} at {delta}");
            }
        }
    }

    #[test]
    fn the_exact_test_is_the_stronger_one() {
        for k in 0..40 {
            assert!(binomial_cdf(k, 1000, 0.03) <= hoeffding_bentkus(k as f64 / 1000., 1000, 0.03) + 1e-15);
        }
    }

    #[test]
    fn samples_needed_are_enough_and_no_fewer_are() {
        assert_eq!(samples_for(0.005, 0.05), 598);
        assert_eq!(samples_for(0.5, 0.25), 2);
        for (alpha, delta) in [(0.005, 0.05), (0.01, 0.1), (0.3, 0.001), (0.9, 0.5)] {
            let n = samples_for(alpha, delta);
            for p in [binomial_cdf, |_: usize, n, a| hoeffding_bentkus(0., n, a)] {
                assert!(p(0, n, alpha) <= delta * (1. + 1e-12), "{alpha}, {delta}");
                assert!(n == 1 || p(0, n - 1, alpha) > delta, "{alpha}, {delta}");
            }
        }
    }

    const UPPER: [(usize, usize, f64, f64); 4] = [
        (0, 100, 0.05, 0.029513049607039925),
        (3, 50, 0.1, 0.1287564225866019),
        (46, 4000, 0.025, 0.015309897892191997),
        (9, 10, 0.05, 0.9948838031081763),
    ];
    const BINOMIAL: [(usize, usize, f64, f64); 9] = [
        (0, 10, 0.1, 0.34867844009999993),
        (3, 10, 0.5, 0.171875),
        (16, 5000, 0.005, 0.03740009728260592),
        (25, 5000, 0.005, 0.5529215865294962),
        (60, 5000, 0.005, 0.9999999992473989),
        (0, 5000, 0.02, 1.3501389379311238e-44),
        (100, 10000, 0.02, 2.2286254752134083e-15),
        (9999, 10000, 0.999, 0.9999548266540229),
        (5, 100000, 0.001, 3.117381885471972e-36),
    ];
}
