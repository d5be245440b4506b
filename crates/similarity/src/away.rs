//! Sums that stay on the GPU where they are made: to read them back after each product would take longer than the product.

use std::{collections::BTreeMap, ops::Range};

use candle_core::{Device, Tensor};
use ndarray::{Array2, ArrayView2};

use crate::{Representation, Result, moments::runs};

/// What is still to be added to the bands of a [`MomentAccumulator`](crate::MomentAccumulator).
#[derive(Clone, Debug, Default)]
pub(crate) struct Away {
    /// Where the next products are made, if not on the host.
    device: Option<Device>,
    /// `X^T Y` of a layer with itself, both triangles, and with its partners, side by side, by the number of the layer. Never changed in
    /// place: a clone has the same.
    bands: BTreeMap<usize, Tensor>,
}

impl Away {
    /// Makes the next products there. Sums of another device come home.
    pub(crate) fn go_to(&mut self, device: Option<Device>, bands: &mut [Array2<f64>]) -> Result<()> {
        if let Some(device) = &device
            && self.bands.values().any(|band| !band.device().same_device(device))
        {
            self.come_home(bands)?;
        }
        self.device = device;
        Ok(())
    }

    /// Samples `(n, total)` of all layers side by side, as [`add`](Self::add) takes them; `None` where there is no device, or it has no
    /// room for them.
    pub(crate) fn upload(&self, samples: ArrayView2<'_, f64>) -> Option<Tensor> {
        let xs = Tensor::from_slice(samples.as_slice()?, samples.dim(), self.device.as_ref()?);
        // A layer is then a run of rows, which products take as it is.
        xs.and_then(|xs| xs.t()?.contiguous()).ok()
    }

    /// Adds the products of a layer with its partners, itself first, which are rows of `xs`. When the device cannot, nothing was
    /// added, and the host has to.
    pub(crate) fn add(&mut self, layer: usize, xs: &Tensor, partners: &[Range<usize>]) -> bool {
        let sums = products(xs, partners).and_then(|more| match self.bands.get(&layer) {
            Some(band) => band + more,
            None => Ok(more),
        });
        match sums {
            Ok(sums) => {
                self.bands.insert(layer, sums);
                true
            }
            Err(_) => false,
        }
    }

    /// Adds all that is away to the bands. When it fails, the rest is still away.
    pub(crate) fn come_home(&mut self, bands: &mut [Array2<f64>]) -> Result<()> {
        while let Some(away) = self.bands.first_entry() {
            let sums = away.get();
            let (rows, _) = Representation::dims(sums)?;
            bands[*away.key()] += &sums.read(0..rows)?;
            away.remove();
        }
        Ok(())
    }
}

/// `X^T Y` of a layer with all its partners, side by side, from rows of `xs`, `(total, n)`.
fn products(xs: &Tensor, partners: &[Range<usize>]) -> candle_core::Result<Tensor> {
    let rows = |of: &Range<usize>| xs.narrow(0, of.start, of.len());
    let own = rows(&partners[0])?;
    let products = runs(partners).into_iter().map(|run| own.matmul(&rows(&run)?.t()?));
    Tensor::cat(&products.collect::<candle_core::Result<Vec<_>>>()?, 1)
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Tensor};
    use ndarray::{Array2, s};

    use crate::{
        Error, Estimator, Measure, MomentAccumulator, Result,
        on_device::{
            failed,
            tests::{devices, noise},
        },
    };

    /// Their distances and all else that [`MomentAccumulator`] has are functions of the same sums.
    const MEASURES: [Measure; 6] = [
        Measure::Cka(Estimator::Biased),
        Measure::Cka(Estimator::Debiased),
        Measure::Cca,
        Measure::Svcca { variance: 0.9 },
        Measure::Pwcca,
        Measure::Procrustes,
    ];

    /// Of sums of some thousand products, in two orders.
    const TOLERANCE: f64 = 1e-10;

    /// Layers that resemble each other, of these widths, and far from 0.
    fn stack(widths: &[usize], n: usize) -> Vec<Array2<f64>> {
        let base = noise(1, n, 6);
        let layer = |(l, &width): (u64, &usize)| {
            1e6 * l as f64 + base.dot(&noise(l + 2, 6, width)) + 0.5 * noise(l + 20, n, width)
        };
        (0..).zip(widths).map(layer).collect()
    }

    fn part(layers: &[Array2<f64>], from: usize, to: usize) -> Vec<Array2<f64>> {
        layers.iter().map(|xs| xs.slice(s![from..to, ..]).to_owned()).collect()
    }

    /// In batches of 300, the products on a device or on the host.
    fn push(moments: &mut MomentAccumulator, layers: &[Array2<f64>], device: Option<&Device>) -> Result<()> {
        for start in (0..layers[0].nrows()).step_by(300) {
            moments.products_on(device.cloned())?;
            moments.push_checked(&part(layers, start, layers[0].nrows().min(start + 300)));
        }
        Ok(())
    }

    fn agree(what: &str, got: &mut MomentAccumulator, want: &mut MomentAccumulator) -> Result<()> {
        assert_eq!(got.samples(), want.samples());
        for measure in MEASURES {
            let (got, want) = (got.pairwise(measure)?, want.pairwise(measure)?);
            for ((at, got), want) in got.indexed_iter().zip(&want) {
                let off = (got - want).abs();
                assert!(off <= TOLERANCE, "{what}, {measure:?} {at:?}: {got}, want {want}");
            }
        }
        Ok(())
    }

    /// The widths of one stack or of two, and the number of samples.
    #[test]
    fn stacks() -> Result<()> {
        let cases: [(&[usize], &[usize], usize); 7] = [
            (&[3], &[], 10),
            (&[6, 6, 9, 4], &[], 1023),
            (&[6, 6, 9, 4], &[], 1024),
            (&[6, 6, 9, 4], &[], 1025),
            (&[5, 1, 210], &[], 2500),
            (&[6], &[7, 5], 1500),
            (&[4, 6, 3], &[7, 5], 2500),
        ];
        for device in devices() {
            for (left, right, n) in cases {
                let layers = stack(&[left, right].concat(), n);
                let new = || match right {
                    [] => MomentAccumulator::new(left),
                    _ => MomentAccumulator::between(left, right),
                };
                let (mut got, mut want) = (new()?, new()?);
                push(&mut got, &layers, Some(&device))?;
                assert_eq!(got.away.bands.len(), if n < 1024 { 0 } else { layers.len() });
                push(&mut want, &layers, None)?;
                agree(&format!("{left:?} {right:?}, {n} samples"), &mut got, &mut want)?;
                assert!(got.away.bands.is_empty());
            }
        }
        Ok(())
    }

    /// Pairs with gaps, as [`pairwise`](crate::pairwise) takes where not all fit.
    #[test]
    fn some_pairs() -> Result<()> {
        let layers = stack(&[4, 5, 3, 6], 1100);
        let pairs = [(0, 2), (0, 3), (1, 2), (3, 1)];
        for device in devices() {
            let new = || MomentAccumulator::of_pairs(&[4, 5, 3, 6], &pairs, None);
            let (mut got, mut want) = (new()?, new()?);
            push(&mut got, &layers, Some(&device))?;
            push(&mut want, &layers, None)?;
            let measure = Measure::Cka(Estimator::Debiased);
            let scores = |of: &mut MomentAccumulator| of.scores_of(&pairs, measure, &|_| None);
            for (got, want) in scores(&mut got)?.iter().zip(scores(&mut want)?) {
                assert!((got - want).abs() <= TOLERANCE, "{got}, want {want}");
            }
        }
        Ok(())
    }

    #[test]
    fn host_and_device_in_turns() -> Result<()> {
        let (widths, n) = ([6, 6, 9], 5000);
        let layers = stack(&widths, n);
        let mut want = MomentAccumulator::new(&widths)?;
        push(&mut want, &layers, None)?;
        for device in devices() {
            let mut got = MomentAccumulator::new(&widths)?;
            // Changes fall within chunks; scores are asked for on the way.
            for (from, to, device) in
                [(0, 1500, Some(&device)), (1500, 2600, None), (2600, 3900, Some(&device)), (3900, n, None)]
            {
                push(&mut got, &part(&layers, from, to), device)?;
                assert!(!got.away.bands.is_empty());
                if from == 1500 {
                    let before = got.clone();
                    got.pairwise(Measure::Cca)?;
                    assert!(got.away.bands.is_empty() && !before.away.bands.is_empty());
                    got = before;
                }
            }
            agree("in turns", &mut got, &mut want)?;
        }
        Ok(())
    }

    #[test]
    fn merged_and_written() -> Result<()> {
        let (widths, n) = ([6, 6, 9], 5000);
        let layers = stack(&widths, n);
        let mut want = MomentAccumulator::new(&widths)?;
        push(&mut want, &layers, None)?;
        for device in devices() {
            let of = |from, to, device| -> Result<MomentAccumulator> {
                let mut moments = MomentAccumulator::new(&widths)?;
                push(&mut moments, &part(&layers, from, to), device)?;
                Ok(moments)
            };
            let there = Some(&device);
            for (first, second) in [(None, there), (there, None), (there, there)] {
                let (mut left, mut right) = (of(0, 2100, first)?, of(2100, n, second)?);
                let mut read = MomentAccumulator::from_bytes(&left.clone().to_bytes()?)?;
                read.merge(MomentAccumulator::from_bytes(&right.clone().to_bytes()?)?)?;
                agree("by way of bytes", &mut read, &mut want)?;
                left.merge(right.clone())?;
                agree("merged", &mut left, &mut want)?;
                // Into an empty one, and on from there.
                let mut all = MomentAccumulator::new(&widths)?;
                all.merge(right.clone())?;
                push(&mut all, &part(&layers, 0, 2100), first)?;
                agree("into an empty one", &mut all, &mut want)?;
                right.merge(MomentAccumulator::new(&widths)?)?;
                assert_eq!(right.samples(), n - 2100);
            }
        }
        Ok(())
    }

    /// What no product can be added to, and nobody can read back.
    fn broken(device: &Device) -> Result<Tensor> {
        Tensor::zeros((2, 2, 2), DType::F64, device).map_err(failed)
    }

    #[test]
    fn the_host_adds_what_a_device_cannot() -> Result<()> {
        let layers = stack(&[6, 6, 9], 2100);
        let mut want = MomentAccumulator::new(&[6, 6, 9])?;
        push(&mut want, &layers, None)?;
        for device in devices() {
            let mut got = MomentAccumulator::new(&[6, 6, 9])?;
            got.away.bands.insert(1, broken(&device)?);
            push(&mut got, &layers, Some(&device))?;
            assert_eq!(got.away.bands.len(), 3);
            got.away.bands.remove(&1);
            agree("one band", &mut got, &mut want)?;
        }
        Ok(())
    }

    #[test]
    fn what_cannot_be_read_back_is_an_error_and_the_rest_is_kept() -> Result<()> {
        let layers = stack(&[6, 6, 9], 2100);
        let mut want = MomentAccumulator::new(&[6, 6, 9])?;
        push(&mut want, &layers, None)?;
        for device in devices() {
            let mut got = MomentAccumulator::new(&[6, 6, 9])?;
            push(&mut got, &layers, Some(&device))?;
            let whole = got.away.bands.insert(1, broken(&device)?).expect("a band");
            let lost = Error::Tensor { shape: vec![2, 2, 2], dtype: "f64".into() };
            assert_eq!(got.pairwise(Measure::Cca), Err(lost.clone()));
            assert_eq!(got.to_bytes(), Err(lost.clone()));
            assert_eq!(got.merge(MomentAccumulator::new(&[6, 6, 9])?), Err(lost.clone()));
            assert_eq!(MomentAccumulator::new(&[6, 6, 9])?.merge(got.clone()), Err(lost));
            got.away.bands.insert(1, whole);
            agree("after an error", &mut got, &mut want)?;
        }
        Ok(())
    }
}
