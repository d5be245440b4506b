//! How sure a row is: one number for each, from its logits or from its feature.

mod host;
mod tensor;

use candle_core::{DType, Tensor};
use layerwise_ops::ReadBack;
use serde::{Deserialize, Serialize};

use crate::{Check, Error, Gate, LateVerdict, Reads, Result, Verdict};

/// What thresholds are compared with.
///
/// | signal | value | a row leaves when it is | thresholds |
/// | --- | --- | --- | --- |
/// | `MaxProbability` | largest softmax probability (the paper's) | above | 0 to 1 |
/// | `Margin` | largest less second largest probability | above | 0 to 1 |
/// | `Entropy` | `-sum_j p_j ln p_j`, nats (`DeeBERT`) | below | from 0 |
/// | `Patience` | checks in a row with one answer, this one included (PABEE counts the repetitions: one less) | at least | 1, 2, .. |
/// | `Saturation` | cosine of this feature and the one a block before, not centred (CALM) | above | -1 to 1 |
/// | `Change` | largest absolute difference of a logit from the block before's: of a predicted number, how far it moved | below | above 0 |
/// | `Gate` | a learned probability that the exit is right (BERxiT) | above | 0 to 1 |
///
/// `Saturation` and `Gate` read the feature and need no head.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Signal {
    /// Largest softmax probability.
    #[default]
    MaxProbability,
    /// Difference of the two largest softmax probabilities.
    Margin,
    /// Entropy of the softmax, nats.
    Entropy,
    /// Checks in a row with the same answer.
    Patience,
    /// Cosine of features of neighbouring layers.
    Saturation,
    /// How far the answer moved from the layer before; for models that predict a number (as PABEE's regression).
    Change,
    /// A learned scalar on the feature.
    Gate(Gate),
}

/// Values of a signal for the rows of a batch, and what it remembers.
pub(crate) struct Values {
    pub(crate) values: Vec<f64>,
    pub(crate) memory: Option<Tensor>,
}

/// Values that may be on their way.
enum Coming {
    There(Vec<f64>),
    OnTheWay(ReadBack),
}

impl Coming {
    fn wait(self) -> Result<Vec<f64>> {
        Ok(match self {
            Self::There(values) => values,
            Self::OnTheWay(values) => values.wait()?.into_iter().map(f64::from).collect(),
        })
    }
}

impl Signal {
    /// Whether a row of this value leaves at this threshold. NaN does.
    #[must_use]
    pub fn is_sure(&self, value: f64, threshold: f64) -> bool {
        value.is_nan()
            || match self {
                Self::Entropy | Self::Change => value < threshold,
                Self::Patience => value >= threshold,
                Self::MaxProbability | Self::Margin | Self::Saturation | Self::Gate(_) => value > threshold,
            }
    }

    /// Whether a layer is compared with the one before, which so has to be read, too.
    pub(crate) fn compares(&self) -> bool {
        matches!(self, Self::Saturation | Self::Change)
    }

    /// What it reads where it is asked.
    pub(crate) fn reads(&self) -> Reads {
        match self {
            Self::MaxProbability | Self::Margin | Self::Entropy | Self::Patience | Self::Change => {
                Reads::Logits
            }
            Self::Saturation | Self::Gate(_) => Reads::Feature,
        }
    }

    /// # Errors
    ///
    /// [`Error::Setting`] for a threshold that no value could be compared with in earnest.
    pub(crate) fn check_threshold(&self, threshold: f64) -> Result<()> {
        let (within, expected) = match self {
            Self::MaxProbability | Self::Margin | Self::Gate(_) => {
                ((0. ..=1.).contains(&threshold), "a probability, 0 to 1")
            }
            Self::Entropy => (threshold >= 0. && threshold.is_finite(), "nats, 0 or more"),
            Self::Change => (threshold >= 0. && threshold.is_finite(), "a difference, 0 or more"),
            Self::Patience => (
                threshold >= 1. && threshold.fract() == 0. && threshold < 1e6,
                "a number of checks, 1 or more",
            ),
            Self::Saturation => ((-1. ..=1.).contains(&threshold), "a cosine, -1 to 1"),
        };
        if within {
            return Ok(());
        }
        Err(Error::Setting { field: "threshold", value: threshold.to_string(), expected })
    }

    /// Thresholds from cautious to bold, `steps` of them (with [`Patience`](Self::Patience) one for each number of checks): fixed beforehand,
    /// by no data.
    ///
    /// Probabilities and cosines are `1 - x`, entropies `x ln(classes)`, changes `x`, for `x` from 1e-4 to 1 in equal ratios. At the first only those leave
    /// that are surer than 0.9999 (of patience, that never changed their answer), at the last almost all: not those with a cosine below 0,
    /// or without any margin.
    #[must_use]
    pub fn grid(&self, steps: usize, classes: usize, checks: usize) -> Vec<f64> {
        let last = steps.saturating_sub(1).max(1) as f64;
        let x = |i: usize| 1e-4f64.powf(1. - i as f64 / last);
        match self {
            Self::Patience => (1..=checks).rev().map(|n| n as f64).collect(),
            Self::Entropy => (0..steps).map(|i| x(i) * (classes.max(2) as f64).ln()).collect(),
            Self::Change => (0..steps).map(x).collect(),
            _ => (0..steps).map(|i| 1. - x(i)).collect(),
        }
    }

    /// The value of each row. Loops on the processor; elsewhere tensor operations, whose result alone is read back.
    pub(crate) fn values(
        &self,
        logits: Option<&Tensor>,
        feature: Option<&Tensor>,
        memory: Option<&Tensor>,
    ) -> Result<Values> {
        let (values, memory) = self.values_later(logits, feature, memory)?;
        Ok(Values { values: values.wait()?, memory })
    }

    fn values_later(
        &self,
        logits: Option<&Tensor>,
        feature: Option<&Tensor>,
        memory: Option<&Tensor>,
    ) -> Result<(Coming, Option<Tensor>)> {
        let input = self.input(logits, feature)?;
        if let Self::Gate(gate) = self {
            gate.check_width(input.dim(1)?)?;
        }
        if input.device().is_cpu() {
            let Values { values, memory } = host::values(self, &input, memory)?;
            return Ok((Coming::There(values), memory));
        }
        let (values, memory) = tensor::values(self, &input, memory)?;
        Ok((Coming::OnTheWay(values), memory))
    }

    /// Who leaves at this threshold: nobody without one. What [`values`](Self::values) and [`is_sure`](Self::is_sure) say, found without
    /// the values where that is cheaper. A GPU may not have come to it yet.
    pub(crate) fn verdict(&self, check: &Check<'_>, threshold: Option<f64>) -> Result<LateVerdict> {
        if let (Self::MaxProbability, Some(threshold)) = (self, threshold) {
            let logits = self.input(check.logits, check.feature)?;
            if logits.device().is_cpu() {
                return Ok(Verdict { leaves: host::likelier_than(threshold, &logits)?, memory: None }.into());
            }
        }
        let (values, memory) = self.values_later(check.logits, check.feature, check.memory)?;
        let signal = self.clone();
        let leaves = move |value| threshold.is_some_and(|threshold| signal.is_sure(value, threshold));
        Ok(LateVerdict::new(memory, move || Ok(values.wait()?.into_iter().map(leaves).collect())))
    }

    /// What it reads of the two, in f32.
    fn input(&self, logits: Option<&Tensor>, feature: Option<&Tensor>) -> Result<Tensor> {
        let input = match self.reads() {
            Reads::Logits => logits,
            _ => feature,
        };
        let input = input.ok_or_else(|| candle_core::Error::Msg("a signal without its input".into()))?;
        Ok(if input.dtype() == DType::F32 { input.clone() } else { input.to_dtype(DType::F32)? })
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device::Cpu;

    use super::*;

    fn in_tensors(signal: &Signal, xs: &Tensor, memory: Option<&Tensor>) -> Result<Values> {
        let (values, memory) = tensor::values(signal, xs, memory)?;
        Ok(Values { values: Coming::OnTheWay(values).wait()?, memory })
    }

    /// Both ways, step by step, so that memory counts too.
    #[test]
    fn loops_and_tensor_operations_agree() -> Result<()> {
        let gate = Gate { weights: vec![0.3, -1.2, 0.7, 2., -0.1], bias: 0.2 };
        let signals = [
            Signal::MaxProbability,
            Signal::Margin,
            Signal::Entropy,
            Signal::Patience,
            Signal::Saturation,
            Signal::Change,
            Signal::Gate(gate),
        ];
        for signal in signals {
            let (mut here, mut there) = (None::<Tensor>, None::<Tensor>);
            for step in 0..4 {
                let xs = layerwise_testkit::random(step, &[17, 5]);
                // Ties, large numbers, a row of zeros.
                let rows = xs.to_vec2::<f32>()?;
                let rows: Vec<Vec<f32>> = rows
                    .into_iter()
                    .enumerate()
                    .map(|(i, row)| match i {
                        0 => vec![1., 1., 0.5, 1., 0.],
                        1 => vec![0.; 5],
                        2 => row.iter().map(|x| x * 1e4).collect(),
                        _ => row,
                    })
                    .collect();
                let xs = Tensor::new(rows, &Cpu)?;
                let a = host::values(&signal, &xs, here.as_ref())?;
                let b = in_tensors(&signal, &xs, there.as_ref())?;
                for (row, (a, b)) in a.values.iter().zip(&b.values).enumerate() {
                    // A change has no bound, and none at the first step.
                    let scale = if signal == Signal::Change { a.abs().max(1.) } else { 1. };
                    assert!(
                        a == b || (a - b).abs() < 2e-6 * scale,
                        "{signal:?}, step {step}, row {row}: {a} and {b}"
                    );
                }
                (here, there) = (a.memory, b.memory);
            }
        }
        Ok(())
    }

    /// Equivalent Python: `p = torch.tensor([2., 1., 0.]).softmax(0)`, `-(p * p.log()).sum()`.
    #[test]
    fn values_of_a_known_row() -> Result<()> {
        let logits = Tensor::new(&[[2f32, 1., 0.]], &Cpu)?;
        let value =
            |signal: Signal| Ok::<_, Error>(signal.values(Some(&logits), Some(&logits), None)?.values[0]);
        assert!((value(Signal::MaxProbability)? - 0.6652409557748219).abs() < 1e-7);
        assert!((value(Signal::Margin)? - 0.42051248431709174).abs() < 1e-7);
        assert!((value(Signal::Entropy)? - 0.8323955059051514).abs() < 1e-6);
        assert_eq!(value(Signal::Patience)?, 1.);
        // The first feature has nothing to be compared with.
        assert_eq!((value(Signal::Saturation)?, value(Signal::Change)?), (-1., f64::INFINITY));
        let first = Signal::Change.values(Some(&logits), None, None)?;
        let moved = Tensor::new(&[[2.25f32, 0.5, 0.]], &Cpu)?;
        assert_eq!(Signal::Change.values(Some(&moved), None, first.memory.as_ref())?.values, [0.5]);
        Ok(())
    }

    #[test]
    fn entropy_is_stable() -> Result<()> {
        let logits = Tensor::new(&[[1e6f32, -1e6, 0.], [-3e38, -3e38, -3e38], [3e38, -3e38, 0.]], &Cpu)?;
        for values in
            [host::values(&Signal::Entropy, &logits, None)?, in_tensors(&Signal::Entropy, &logits, None)?]
        {
            assert_eq!(values.values[0], 0.);
            assert!((values.values[1] - 3f64.ln()).abs() < 1e-6, "{:?}", values.values);
            assert_eq!(values.values[2], 0.);
        }
        Ok(())
    }

    #[test]
    fn a_gate_bears_rows_without_variance_and_of_any_size() -> Result<()> {
        let gate = Gate { weights: vec![1., -2., 3., 0.5, 1., 1., 1.], bias: 0.5 };
        let rows: [fn(usize) -> f32; 4] = [|_| 0.1, |_| 0., |i| 1e20 * i as f32, |i| 3e38 - 1e37 * i as f32];
        let rows: Vec<f32> = rows.iter().flat_map(|value| (0..7).map(value)).collect();
        let xs = Tensor::from_vec(rows, (4, 7), &Cpu)?;
        let signal = Signal::Gate(gate);
        let (a, b) = (host::values(&signal, &xs, None)?.values, in_tensors(&signal, &xs, None)?.values);
        let unmoved = 1. / (1. + (-0.5f64).exp());
        assert!((a[0] - unmoved).abs() < 1e-6 && (a[1] - unmoved).abs() < 1e-12, "{a:?}");
        assert!(a.iter().zip(&b).all(|(a, b)| (a - b).abs() < 1e-6), "{a:?} and {b:?}");
        assert!((a[2] - a[0]).abs() > 0.01, "{a:?}");
        Ok(())
    }

    /// Rows whose largest probability is just below, at, and just above a threshold, and ones that no sum of exponentials tells apart.
    #[test]
    fn a_verdict_is_what_values_say() -> Result<()> {
        let mut rows = Vec::new();
        let thresholds = [0., 0.1, 1. / 3., 0.5, 0.7, 0.9, 0.99, 1. - 1e-9, 1. - f64::EPSILON, 1.];
        for threshold in thresholds {
            // Of three classes, two of them `x` below the first.
            let x = ((1. / threshold - 1.) / 2.).ln() as f32;
            for x in [x, x.next_down(), x.next_up(), x - 1e-4, x + 1e-4].map(|x| x.clamp(-1e30, 1e30)) {
                rows.extend([[0., x, x], [x, x, 0.], [x, 0., f32::MIN], [x + 5., 5., x + 5.]]);
            }
        }
        rows.extend([[0.; 3], [f32::NAN, 0., 1.], [0., f32::INFINITY, 0.], [1e30, -1e30, 0.], [1., 1., -1.]]);
        let logits = Tensor::from_vec(rows.concat(), (rows.len(), 3), &Cpu)?;
        let noise = (layerwise_testkit::random(1, &[5000, 3]) * 4.)?;
        for logits in [&logits, &noise, &logits.narrow(1, 0, 1)?.contiguous()?] {
            let keys = vec![0; logits.dim(0)?];
            for threshold in thresholds {
                let signal = Signal::MaxProbability;
                let check = Check {
                    layer: 1,
                    depth: 2,
                    keys: &keys,
                    feature: None,
                    logits: Some(logits),
                    memory: None,
                };
                let got = signal.verdict(&check, Some(threshold))?.wait()?.leaves;
                let values = signal.values(Some(logits), None, None)?.values;
                let want: Vec<bool> = values.iter().map(|&value| signal.is_sure(value, threshold)).collect();
                assert_eq!(got, want, "at {threshold}");
            }
        }
        Ok(())
    }

    #[test]
    fn what_is_not_finite_has_no_value() -> Result<()> {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let xs = Tensor::new(&[[0f32, bad, 1.], [0., 1., 2.]], &Cpu)?;
            let gate = Signal::Gate(Gate { weights: vec![1.; 3], bias: 0. });
            for signal in [
                Signal::MaxProbability,
                Signal::Margin,
                Signal::Entropy,
                Signal::Patience,
                Signal::Saturation,
                Signal::Change,
                gate,
            ] {
                let first = signal.values(Some(&xs), Some(&xs), None)?;
                for way in [host::values, in_tensors] {
                    let values = way(&signal, &xs, first.memory.as_ref())?.values;
                    assert!(values[0].is_nan() && values[1].is_finite(), "{signal:?}, {bad}: {values:?}");
                    assert!(signal.is_sure(values[0], 1.));
                }
            }
        }
        Ok(())
    }
}
