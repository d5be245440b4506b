//! Row kernels. Plain loops over 16 independent lanes, compiled for AVX-512, AVX2 and the baseline, chosen at run time.

#![allow(unsafe_code)] // Calling a function compiled for more than the baseline is unsafe; the features are checked first.

const LANES: usize = 16;

/// Compiles each function three times and picks the best that the processor runs.
macro_rules! dispatched {
    ($($(#[$doc:meta])* fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $out:ty)? $body:block)*) => { $(
        $(#[$doc])*
        pub(crate) fn $name($($arg: $ty),*) $(-> $out)? {
            #[inline(always)]
            fn plain($($arg: $ty),*) $(-> $out)? $body

            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512dq,avx512vl,avx2,fma")]
                fn avx512($($arg: $ty),*) $(-> $out)? { plain($($arg),*) }
                #[target_feature(enable = "avx2,fma")]
                fn avx2($($arg: $ty),*) $(-> $out)? { plain($($arg),*) }

                if is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
                {
                    // SAFETY: the processor has every feature that the function is compiled for.
                    return unsafe { avx512($($arg),*) };
                }
                if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                    // SAFETY: as above.
                    return unsafe { avx2($($arg),*) };
                }
            }
            plain($($arg),*)
        }
    )* };
}

/// `join` of `f` over the elements of rows of one length, in 16 lanes; `start` is what `join` leaves as it is.
///
/// Whole sets of lanes are arrays: an index into a slice is checked, and a loop with a check in it runs lane by lane.
#[inline(always)]
fn lanes_fold<const N: usize>(
    rows: [&[f32]; N],
    start: f32,
    f: impl Fn([f32; N]) -> f32,
    join: impl Fn(f32, f32) -> f32,
) -> f32 {
    let mut lanes = [start; LANES];
    let rows = rows.map(|row| row.as_chunks::<LANES>());
    for i in 0..rows[0].0.len() {
        let sets = rows.map(|(sets, _)| sets[i]);
        for (j, lane) in lanes.iter_mut().enumerate() {
            *lane = join(*lane, f(sets.map(|set| set[j])));
        }
    }
    // By halves: four steps that wait for each other, not sixteen.
    let mut half = LANES / 2;
    while half > 0 {
        for j in 0..half {
            lanes[j] = join(lanes[j], lanes[j + half]);
        }
        half /= 2;
    }
    (0..rows[0].1.len()).fold(lanes[0], |all, i| join(all, f(rows.map(|(_, rest)| rest[i]))))
}

/// Sum of `f`.
#[inline(always)]
fn lanes_sum<const N: usize>(rows: [&[f32]; N], f: impl Fn([f32; N]) -> f32) -> f32 {
    lanes_fold(rows, 0., f, |a, b| a + b)
}

/// `exp(x)`, branch-free; relative error about 2e-7, 0 below -87.
#[inline(always)]
fn exp(x: f32) -> f32 {
    let clamped = x.clamp(-87., 88.);
    // x = k ln 2 + f, |f| <= ln(2)/2; adding 1.5 * 2^23 rounds to the nearest integer and leaves it in the low bits.
    let shifted = clamped * std::f32::consts::LOG2_E + 12_582_912.;
    let k = shifted - 12_582_912.;
    let f = clamped - k * 0.693_359_4 + k * 2.121_944_4e-4;
    // Polynomial of the Cephes library.
    let p = 1.987_569_2e-4f32;
    let p = p * f + 1.398_2e-3;
    let p = p * f + 8.333_452e-3;
    let p = p * f + 4.166_579_6e-2;
    let p = p * f + 1.666_666_5e-1;
    let p = p * f + 5e-1;
    // From those bits: `k as i32` saturates, which is computed one lane at a time.
    let power = f32::from_bits(shifted.to_bits().wrapping_add(127) << 23);
    let value = (p * f * f + f + 1.) * power;
    if x < -87. { 0. } else { value }
}

/// `erf(x)`: a rational approximation within `[-4, 4]`, absolute error below 5e-7; exactly 1 and -1 beyond, where `f32` has
/// reached them: GELU multiplies what is missing by `x`.
#[inline(always)]
fn erf(x: f32) -> f32 {
    let s = x * x;
    let p = -2.726_142_3e-10f32;
    let p = p * s + 2.770_681_4e-8;
    let p = p * s - 2.101_024e-6;
    let p = p * s - 5.692_506_4e-5;
    let p = p * s - 7.349_906_3e-4;
    let p = p * s - 2.954_6e-3;
    let p = p * s - 1.609_603_3e-2;
    let q = -1.456_607_2e-5f32;
    let q = q * s - 2.133_740_6e-4;
    let q = q * s - 1.682_827e-3;
    let q = q * s - 7.373_329_2e-3;
    let q = q * s - 1.426_474e-2;
    if x.abs() < 4. { x * p / q } else { x.clamp(-1., 1.) }
}

/// `tanh(x)`, absolute error below 3e-7.
#[inline(always)]
fn tanh(x: f32) -> f32 {
    1. - 2. / (1. + exp(2. * x.clamp(-40., 40.)))
}

/// `1 / (1 + exp(-x))`, without an exponential that grows.
#[inline(always)]
fn sigmoid(x: f32) -> f32 {
    let e = exp(-x.abs());
    let smaller = e / (1. + e);
    if x < 0. { smaller } else { 1. - smaller }
}

/// `(mean, 1 / sqrt(var + eps))` of a row, in two passes.
#[inline(always)]
fn moments(x: &[f32], eps: f32) -> (f32, f32) {
    let n = x.len() as f32;
    let mean = lanes_sum([x], |[x]| x) / n;
    let variance = lanes_sum([x], |[x]| (x - mean) * (x - mean)) / n;
    (mean, 1. / (variance + eps).sqrt())
}

/// `SplitMix64` of a counter: a stateless 64-bit hash.
#[inline(always)]
pub(crate) fn splitmix(seed: u64, i: u64) -> u64 {
    let z = seed.wrapping_add(i.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// What [`peaks`] finds.
#[derive(Clone, Copy)]
pub(crate) struct Peaks {
    pub(crate) max: f32,
    pub(crate) second: f32,
}

const SQRT_2_OVER_PI: f32 = 0.797_884_6;

dispatched! {
    /// `y = (x - mean) / sqrt(var + eps) * w + b`.
    fn layer_norm(x: &[f32], w: &[f32], b: &[f32], y: &mut [f32], eps: f32) {
        let n = x.len();
        let (w, b, y) = (&w[..n], &b[..n], &mut y[..n]);
        let (mean, scale) = moments(x, eps);
        for i in 0..n {
            y[i] = (x[i] - mean) * scale * w[i] + b[i];
        }
    }

    /// Backward of a row: adds to `dx`, `dw` and `db`.
    fn layer_norm_backward(
        x: &[f32], w: &[f32], g: &[f32], dx: &mut [f32], dw: &mut [f32], db: &mut [f32], eps: f32,
    ) {
        let n = x.len();
        let (w, g, dx, dw, db) = (&w[..n], &g[..n], &mut dx[..n], &mut dw[..n], &mut db[..n]);
        let (mean, scale) = moments(x, eps);
        // Sums of `g w` and of `g w` times the normed row, in lanes.
        let (mut sum, mut along) = ([0f32; LANES], [0f32; LANES]);
        let ((xs, x_rest), (ws, w_rest), (gs, g_rest)) =
            (x.as_chunks::<LANES>(), w.as_chunks::<LANES>(), g.as_chunks::<LANES>());
        let ((dws, dw_rest), (dbs, db_rest)) = (dw.as_chunks_mut::<LANES>(), db.as_chunks_mut::<LANES>());
        for ((((x, w), g), dw), db) in xs.iter().zip(ws).zip(gs).zip(dws).zip(dbs) {
            let normed: [f32; LANES] = std::array::from_fn(|j| (x[j] - mean) * scale);
            let weighed: [f32; LANES] = std::array::from_fn(|j| g[j] * w[j]);
            for j in 0..LANES {
                dw[j] += g[j] * normed[j];
            }
            for j in 0..LANES {
                db[j] += g[j];
            }
            for j in 0..LANES {
                sum[j] += weighed[j];
            }
            for j in 0..LANES {
                along[j] += weighed[j] * normed[j];
            }
        }
        let (mut mean_g, mut mean_gx) = (sum.iter().sum::<f32>(), along.iter().sum::<f32>());
        for j in 0..x_rest.len() {
            let normed = (x_rest[j] - mean) * scale;
            dw_rest[j] += g_rest[j] * normed;
            db_rest[j] += g_rest[j];
            mean_g += g_rest[j] * w_rest[j];
            mean_gx += g_rest[j] * w_rest[j] * normed;
        }
        mean_g /= n as f32;
        mean_gx /= n as f32;
        for i in 0..n {
            dx[i] += scale * (g[i] * w[i] - mean_g - (x[i] - mean) * scale * mean_gx);
        }
    }

    /// Turns a row into its softmax, in place; returns the largest value and the sum of exponentials relative to it.
    fn softmax(x: &mut [f32]) -> (f32, f32) {
        let max = lanes_fold([x], f32::NEG_INFINITY, |[x]| x, |a, b| if b > a { b } else { a });
        // A NaN is never larger, but makes the sum one.
        if max.is_infinite() {
            x.fill(f32::NAN);
            return (f32::NAN, f32::NAN);
        }
        for v in x.iter_mut() {
            *v = exp(*v - max);
        }
        let sum = lanes_sum([x], |[x]| x);
        let scale = 1. / sum;
        for v in x.iter_mut() {
            *v *= scale;
        }
        (max, sum)
    }

    /// The two largest of a row, or twice the same if it is there twice; -inf for a second of one. A NaN is never larger.
    fn peaks(x: &[f32]) -> Peaks {
        let (mut max, mut second) = ([f32::NEG_INFINITY; LANES], [f32::NEG_INFINITY; LANES]);
        let (sets, rest) = x.as_chunks::<LANES>();
        for set in sets {
            for j in 0..LANES {
                let lower = if set[j] > max[j] { max[j] } else { set[j] };
                second[j] = if lower > second[j] { lower } else { second[j] };
                max[j] = if set[j] > max[j] { set[j] } else { max[j] };
            }
        }
        let mut peaks = Peaks { max: f32::NEG_INFINITY, second: f32::NEG_INFINITY };
        for &x in max.iter().chain(rest).chain(&second) {
            if x > peaks.max {
                peaks = Peaks { max: x, second: peaks.max };
            } else if x > peaks.second {
                peaks.second = x;
            }
        }
        peaks
    }

    /// Turns a row into `exp(x - max)`, in place; returns their sum, and the sum of each times `x - max`.
    fn exponentials(x: &mut [f32], max: f32) -> (f32, f32) {
        let (mut sum, mut along) = ([0f32; LANES], [0f32; LANES]);
        let (sets, rest) = x.as_chunks_mut::<LANES>();
        for set in sets {
            for j in 0..LANES {
                // Far below the largest an exponential is 0, and 0 times -inf would be NaN.
                let below = set[j] - max;
                let e = exp(below);
                set[j] = e;
                sum[j] += e;
                along[j] += if e > 0. { e * below } else { e };
            }
        }
        let (mut total, mut total_along) = (sum.iter().sum::<f32>(), along.iter().sum::<f32>());
        for x in rest {
            let below = *x - max;
            *x = exp(below);
            total += *x;
            total_along += if *x > 0. { *x * below } else { *x };
        }
        (total, total_along)
    }

    /// `x = factor x - less`.
    fn scale(x: &mut [f32], factor: f32, less: f32) {
        for x in x.iter_mut() {
            *x = factor * *x - less;
        }
    }

    fn sum(x: &[f32]) -> f32 {
        lanes_sum([x], |[x]| x)
    }

    /// `d = p (g - <p, g>)`: backward of softmax, in place of `g`.
    fn softmax_backward(p: &[f32], g: &mut [f32]) {
        let n = p.len();
        let g = &mut g[..n];
        let dot = lanes_sum([p, g], |[p, g]| p * g);
        for i in 0..n {
            g[i] = p[i] * (g[i] - dot);
        }
    }

    fn gelu(x: &[f32], y: &mut [f32]) {
        for (y, &x) in y.iter_mut().zip(x) {
            *y = 0.5 * x * (1. + erf(x * std::f32::consts::FRAC_1_SQRT_2));
        }
    }

    fn gelu_backward(x: &[f32], g: &[f32], d: &mut [f32]) {
        for ((d, &x), &g) in d.iter_mut().zip(x).zip(g) {
            let cdf = 0.5 * (1. + erf(x * std::f32::consts::FRAC_1_SQRT_2));
            let pdf = 0.398_942_3 * exp(-0.5 * x * x);
            *d = g * (cdf + x * pdf);
        }
    }

    fn gelu_tanh(x: &[f32], y: &mut [f32]) {
        for (y, &x) in y.iter_mut().zip(x) {
            *y = 0.5 * x * (1. + tanh(SQRT_2_OVER_PI * (x + 0.044_715 * x * x * x)));
        }
    }

    fn gelu_tanh_backward(x: &[f32], g: &[f32], d: &mut [f32]) {
        for ((d, &x), &g) in d.iter_mut().zip(x).zip(g) {
            let t = tanh(SQRT_2_OVER_PI * (x + 0.044_715 * x * x * x));
            let inner = SQRT_2_OVER_PI * (1. + 3. * 0.044_715 * x * x);
            *d = g * 0.5 * (1. + t + x * (1. - t * t) * inner);
        }
    }

    /// Values into `y`, derivatives in place of `x`; so the next three.
    fn gelu_and_slope(x: &mut [f32], y: &mut [f32]) {
        for (x, y) in x.iter_mut().zip(y) {
            let cdf = 0.5 * (1. + erf(*x * std::f32::consts::FRAC_1_SQRT_2));
            let pdf = 0.398_942_3 * exp(-0.5 * *x * *x);
            *y = *x * cdf;
            *x = cdf + *x * pdf;
        }
    }

    fn gelu_tanh_and_slope(x: &mut [f32], y: &mut [f32]) {
        for (x, y) in x.iter_mut().zip(y) {
            let t = tanh(SQRT_2_OVER_PI * (*x + 0.044_715 * *x * *x * *x));
            let inner = SQRT_2_OVER_PI * (1. + 3. * 0.044_715 * *x * *x);
            *y = 0.5 * *x * (1. + t);
            *x = 0.5 * (1. + t + *x * (1. - t * t) * inner);
        }
    }

    fn relu(x: &[f32], y: &mut [f32]) {
        for (y, &x) in y.iter_mut().zip(x) {
            *y = if x <= 0. { 0. } else { x };
        }
    }

    fn relu_and_slope(x: &mut [f32], y: &mut [f32]) {
        for (x, y) in x.iter_mut().zip(y) {
            *y = if *x <= 0. { 0. } else { *x };
            *x = if *x > 0. { 1. } else { 0. };
        }
    }

    fn silu(x: &[f32], y: &mut [f32]) {
        for (y, &x) in y.iter_mut().zip(x) {
            *y = x * sigmoid(x);
        }
    }

    fn silu_and_slope(x: &mut [f32], y: &mut [f32]) {
        for (x, y) in x.iter_mut().zip(y) {
            let sigmoid = sigmoid(*x);
            *y = *x * sigmoid;
            *x = sigmoid * (1. + *x * (1. - sigmoid));
        }
    }

    /// Inverted dropout of elements `first, first + 1, ..`: those whose hash is below `dropped` become 0.
    fn drop(x: &mut [f32], seed: u64, first: u64, dropped: u64, scale: f32) {
        for (i, x) in (first..).zip(x) {
            *x *= if splitmix(seed, i) >> 32 >= dropped { scale } else { 0. };
        }
    }

    /// `x *= y`.
    fn multiply(x: &mut [f32], y: &[f32]) {
        for (x, y) in x.iter_mut().zip(y) {
            *x *= y;
        }
    }

    /// `x += y`.
    fn add(x: &mut [f32], y: &[f32]) {
        for (x, y) in x.iter_mut().zip(y) {
            *x += y;
        }
    }

    /// Sum of squares, in f64.
    fn squares(x: &[f32]) -> f64 {
        let mut lanes = [0f64; LANES];
        let (sets, rest) = x.as_chunks::<LANES>();
        for set in sets {
            for (lane, &x) in lanes.iter_mut().zip(set) {
                *lane += f64::from(x) * f64::from(x);
            }
        }
        lanes.iter().sum::<f64>() + rest.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>()
    }

    /// Moments `m = beta1 m + (1 - beta1) g` and `v = beta2 v + (1 - beta2) g^2`, then
    /// `p = keep p - rate m / (sqrt(v correction) + eps)`.
    fn adamw(p: &mut [f32], m: &mut [f32], v: &mut [f32], g: &[f32], c: &AdamW) {
        for (((p, m), v), g) in p.iter_mut().zip(m).zip(v).zip(g) {
            let g = g * c.gradient;
            *m = c.beta1 * *m + c.fresh1 * g;
            *v = c.beta2 * *v + c.fresh2 * g * g;
            *p = *p * c.keep - c.rate * *m / ((*v * c.correction).sqrt() + c.eps);
        }
    }
}

/// Constants of [`adamw`].
#[derive(Clone, Copy)]
pub(crate) struct AdamW {
    pub(crate) beta1: f32,
    pub(crate) beta2: f32,
    /// `1 - beta1` and `1 - beta2`, which f32 would round before the subtraction.
    pub(crate) fresh1: f32,
    pub(crate) fresh2: f32,
    /// Factor of the gradient.
    pub(crate) gradient: f32,
    /// `1 - lr weight_decay`.
    pub(crate) keep: f32,
    /// The learning rate over the first moment's bias correction.
    pub(crate) rate: f32,
    /// Bias correction of the second moment.
    pub(crate) correction: f32,
    pub(crate) eps: f32,
}

#[cfg(test)]
mod tests {
    use candle_core::cpu::erf::erf_f64;

    use super::{erf, exp, tanh};

    /// About a million values of either sign, evenly spaced in their bits: dense around 0, up to `limit`.
    fn values(limit: f32) -> impl Iterator<Item = f32> {
        (0..limit.to_bits()).step_by(2003).chain([limit.to_bits()]).map(f32::from_bits).flat_map(|x| [x, -x])
    }

    /// Largest error of `f` against `want`, and where.
    fn worst(
        values: impl Iterator<Item = f32>,
        f: impl Fn(f32) -> f32,
        error: impl Fn(f64, f64) -> f64,
        want: impl Fn(f64) -> f64,
    ) -> (f64, f32) {
        let errors = values.map(|x| (error(f64::from(f(x)), want(f64::from(x))), x));
        errors.fold((0., 0.), |worst, at| if at.0 > worst.0 || at.0.is_nan() { at } else { worst })
    }

    fn absolute(got: f64, want: f64) -> f64 {
        (got - want).abs()
    }

    /// Cephes states a peak of 1.7e-7 for its polynomial in f32.
    #[test]
    fn exp_is_good_to_two_units_in_the_last_place() {
        let (error, at) = worst(values(87.), exp, |got, want| absolute(got, want) / want, f64::exp);
        assert!(error < 2. * f64::from(f32::EPSILON), "{error:e} at {at}");
        assert_eq!([exp(0.), exp(-88.), exp(-1e30), exp(f32::NEG_INFINITY)], [1., 0., 0., 0.]);
        assert!(exp(f32::NAN).is_nan());
    }

    /// The rational function is off by 9.3e-8 in exact arithmetic; seven roundings of half a unit (6e-8) come on top.
    #[test]
    fn erf_is_good_to_5e_7_and_saturates() {
        let (error, at) = worst(values(f32::MAX), erf, absolute, erf_f64);
        assert!(error < 5e-7, "{error:e} at {at}");
        assert_eq!([erf(4.), erf(-4.), erf(1e30), erf(f32::NEG_INFINITY)], [1., -1., 1., -1.]);
        assert!(erf(f32::NAN).is_nan());
    }

    /// An error `e` of `exp(2 x)` moves `2 / (1 + exp(2 x))` by at most `e / 2`; three roundings of 6e-8 come on top.
    #[test]
    fn tanh_is_good_to_3e_7_and_saturates() {
        let (error, at) = worst(values(f32::MAX), tanh, absolute, f64::tanh);
        assert!(error < 3e-7, "{error:e} at {at}");
        assert_eq!([tanh(40.), tanh(-40.), tanh(f32::INFINITY)], [1., -1., 1.]);
        assert!(tanh(f32::NAN).is_nan());
    }
}
