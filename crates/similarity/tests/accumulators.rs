//! Accumulators refuse what they cannot add, merge or read, with a typed error, and are then as they were before.

mod samples;

use std::{collections::BTreeMap, fmt::Debug};

use layerwise_similarity::{
    Centring, ClassAccumulator, CosAccumulator, Distance, Error, Estimator, MeanAccumulator, Measure,
    MomentAccumulator, Result,
};
use ndarray::{Array1, Array2, array, s};
use proptest::prelude::*;
use safetensors::SafeTensors;
use samples::{OF_MOMENTS, good};

/// Those that a [`MomentAccumulator`] does not have.
const OTHERS: [Measure; 6] = [
    Measure::Cos(Centring::Samples),
    Measure::AngularDistance(Centring::None),
    Measure::RbfCka { estimator: Estimator::Biased, bandwidth: 0.5 },
    Measure::Pnka,
    Measure::Rsa(Distance::Correlation),
    Measure::MutualKnn { neighbours: 2 },
];

/// What an accumulator does, whichever it is.
trait Accumulator: Sized + Clone {
    fn push(&mut self, batch: &[Array2<f64>]) -> Result<()>;
    fn merge(&mut self, other: Self) -> Result<()>;
    fn to_bytes(&mut self) -> Vec<u8>;
    fn from_bytes(bytes: &[u8]) -> Result<Self>;
    /// Asks for results, whatever they are.
    fn evaluate(&mut self);

    /// Name, shape and bytes of each tensor, and the notes beside them, whose order in the file is not fixed.
    fn state(&self) -> BTreeMap<String, (Vec<usize>, Vec<u8>)> {
        let bytes = self.clone().to_bytes();
        let file = SafeTensors::deserialize(&bytes).expect("a safetensors file");
        let tensors =
            file.iter().map(|(name, view)| (name.to_owned(), (view.shape().to_vec(), view.data().to_vec())));
        let (_, header) = SafeTensors::read_metadata(&bytes).expect("a safetensors file");
        let notes = header
            .metadata()
            .iter()
            .flatten()
            .map(|(key, note)| (key.clone(), (vec![], note.clone().into_bytes())));
        tensors.chain(notes).collect()
    }

    fn shapes(&self) -> Vec<(String, Vec<usize>)> {
        self.state().into_iter().map(|(name, (shape, _))| (name, shape)).collect()
    }
}

macro_rules! accumulator {
    ($type:ty, |$push:ident, $batch:ident| $pushed:expr, |$from:ident| $bytes:expr, |$it:ident| $evaluate:expr) => {
        impl Accumulator for $type {
            fn push(&mut self, $batch: &[Array2<f64>]) -> Result<()> {
                let $push = self;
                $pushed
            }
            fn merge(&mut self, other: Self) -> Result<()> {
                self.merge(other)
            }
            fn to_bytes(&mut self) -> Vec<u8> {
                let $from = self;
                $bytes
            }
            fn from_bytes(bytes: &[u8]) -> Result<Self> {
                <$type>::from_bytes(bytes)
            }
            fn evaluate(&mut self) {
                let $it = self;
                $evaluate
            }
        }
    };
}
accumulator!(MeanAccumulator, |it, batch| it.push(batch), |it| <Self>::to_bytes(it), |it| drop(it.means()));
accumulator!(CosAccumulator, |it, batch| it.push(batch), |it| <Self>::to_bytes(it), |it| numbers(
    it.pairwise()
));
accumulator!(
    MomentAccumulator,
    |it, batch| it.push(batch),
    |it| <Self>::to_bytes(it).expect("no GPU is asked"),
    |it| {
        OF_MOMENTS.into_iter().for_each(|measure| numbers(it.pairwise(measure)));
    }
);
// Of the first layer.
accumulator!(
    ClassAccumulator,
    |it, batch| {
        let labels: Vec<usize> = (0..batch[0].nrows()).map(|i| i % 2).collect();
        it.push(&batch[0], &labels)
    },
    |it| <Self>::to_bytes(it),
    |it| drop((it.means(), it.collapse(), it.nc3(good(2, 3).view())))
);

fn numbers(result: Result<Array2<f64>>) {
    if let Ok(found) = result {
        assert!(found.iter().all(|x| x.is_finite()), "{found}");
    }
}

/// Three layers of width 3.
fn batch(first: usize, rows: usize) -> Vec<Array2<f64>> {
    (1..4)
        .map(|l| good(20, 3).slice(s![first..first + rows, ..]).mapv(|x| (l as f64 * x).cos() - 0.3))
        .collect()
}

/// Each kind, in every form that its state has, with 7 samples.
fn means() -> Result<MeanAccumulator> {
    filled(MeanAccumulator::new(&[3; 3])?)
}

fn cosines() -> Result<[CosAccumulator; 3]> {
    Ok([
        filled(CosAccumulator::centred(means()?)?)?,
        filled(CosAccumulator::uncentred(3, 3, Centring::Features)?)?,
        filled(CosAccumulator::uncentred(3, 3, Centring::None)?)?,
    ])
}

fn moments() -> Result<[MomentAccumulator; 2]> {
    Ok([filled(MomentAccumulator::new(&[3; 3])?)?, filled(MomentAccumulator::between(&[3], &[3; 2])?)?])
}

fn classes() -> Result<ClassAccumulator> {
    filled(ClassAccumulator::new(3, 2)?)
}

fn filled<A: Accumulator>(mut empty: A) -> Result<A> {
    empty.push(&batch(0, 7))?;
    Ok(empty)
}

/// Each of `batches` is refused, and leaves no trace, before the first sample and after some.
fn refuses<A: Accumulator + Debug>(empty: A, batches: &[(Vec<Array2<f64>>, Error)]) -> Result<()> {
    for accumulator in [empty.clone(), filled(empty)?] {
        for (bad, want) in batches {
            let mut accumulator = accumulator.clone();
            let before = accumulator.state();
            assert_eq!(accumulator.push(bad), Err(want.clone()));
            assert_eq!(accumulator.state(), before, "{want}");
            accumulator.push(&batch(7, 3))?;
        }
    }
    Ok(())
}

#[test]
fn nothing_of_a_bad_batch_is_added() -> Result<()> {
    let with = |layer: usize, change: &dyn Fn(&mut Array2<f64>)| {
        let mut batch = batch(0, 4);
        change(&mut batch[layer]);
        batch
    };
    let named = |layer: usize, source: Error| Error::Layer { layer, source: Box::new(source) };
    let not_finite = Error::NotFinite { row: 2, column: 1 };
    let layers = |layers| (with(0, &|_| {})[..layers].to_vec(), Error::Layers { found: layers, expected: 3 });
    let mut bad = vec![
        layers(0),
        layers(2),
        (with(2, &|xs| *xs = good(4, 2)), named(2, Error::Widths { left: 3, right: 2 })),
        (with(1, &|xs| *xs = good(4, 0)), named(1, Error::Widths { left: 3, right: 0 })),
        (with(2, &|xs| *xs = good(5, 3)), named(2, Error::Rows { left: 4, right: 5 })),
        (with(2, &|xs| xs[[2, 1]] = f64::NAN), named(2, not_finite.clone())),
        (with(1, &|xs| xs[[2, 1]] = f64::INFINITY), named(1, not_finite.clone())),
    ];
    refuses(MeanAccumulator::new(&[3; 3])?, &bad)?;
    refuses(CosAccumulator::centred(means()?)?, &bad)?;
    refuses(CosAccumulator::uncentred(3, 3, Centring::Features)?, &bad)?;
    refuses(CosAccumulator::uncentred(3, 3, Centring::None)?, &bad)?;
    let huge = Error::Magnitude { row: 2, column: 1, limit: 1e60 };
    bad.push((with(1, &|xs| xs[[2, 1]] = -1.1e60), named(1, huge.clone())));
    refuses(MomentAccumulator::new(&[3; 3])?, &bad)?;
    refuses(MomentAccumulator::between(&[3, 3], &[3])?, &bad)?;
    let of_one = [
        (with(0, &|xs| *xs = good(4, 2)), Error::Widths { left: 3, right: 2 }),
        (with(0, &|xs| xs[[2, 1]] = f64::NAN), not_finite),
        (with(0, &|xs| xs[[2, 1]] = 1.1e60), huge),
    ];
    refuses(ClassAccumulator::new(3, 2)?, &of_one)?;
    let mut classes = classes()?;
    let before = classes.state();
    for (labels, want) in [
        (&[0, 1, 0][..], Error::Labels { labels: 3, samples: 4 }),
        (&[0, 1, 0, 2], Error::Label { row: 3, label: 2, classes: 2 }),
    ] {
        assert_eq!(classes.push(&good(4, 3), labels), Err(want));
        assert_eq!(classes.state(), before);
    }
    Ok(())
}

/// A batch without samples is none: nothing changes, and nothing can be asked.
#[test]
fn accumulators_without_samples() -> Result<()> {
    let empty = batch(0, 0);
    let mut moments = MomentAccumulator::new(&[3; 3])?;
    moments.push(&empty)?;
    for measure in OF_MOMENTS {
        assert!(matches!(moments.pairwise(measure), Err(Error::Samples { samples: 0, .. })), "{measure:?}");
    }
    moments.push(&batch(0, 3))?;
    let needed = Err(Error::Samples { samples: 3, needed: 4 });
    assert_eq!(moments.pairwise(Measure::Cka(Estimator::Debiased)), needed);
    for measure in OTHERS {
        let want = Error::Unsupported { measure: measure.name(), what: "form as moments" };
        assert_eq!(moments.pairwise(measure), Err(want));
    }
    let mut means = MeanAccumulator::new(&[3; 3])?;
    means.push(&empty)?;
    assert_eq!(means.means(), vec![Array1::<f64>::zeros(3); 3]);
    let none = Error::Samples { samples: 0, needed: 1 };
    assert_eq!(CosAccumulator::centred(means.clone()).unwrap_err(), none);
    means.push(&batch(0, 2))?;
    let mut cosines = CosAccumulator::centred(means)?;
    cosines.push(&empty)?;
    assert_eq!(cosines.pairwise(), Err(none));
    let mut classes = ClassAccumulator::new(3, 2)?;
    classes.push(&empty[0], &[])?;
    assert_eq!(classes.collapse(), Err(Error::Classes { found: 0, expected: 2 }));
    assert_eq!(classes.means(), Err(Error::Classes { found: 0, expected: 2 }));
    Ok(())
}

#[test]
fn accumulators_that_cannot_be_made() -> Result<()> {
    let layer = |layer| Error::Layer { layer, source: Box::new(Error::Width) };
    assert_eq!(MomentAccumulator::new(&[3, 0]).unwrap_err(), layer(1));
    assert_eq!(MeanAccumulator::new(&[0]).unwrap_err(), layer(0));
    assert!(MomentAccumulator::between(&[3], &[0]).is_err());
    assert!(CosAccumulator::uncentred(2, 0, Centring::None).is_err());
    let unsupported = CosAccumulator::uncentred(2, 3, Centring::Samples).unwrap_err();
    assert!(matches!(unsupported, Error::Unsupported { measure: "COS", .. }), "{unsupported}");
    let widths = Error::Widths { left: 3, right: 2 };
    let second = |source: Error| Error::Layer { layer: 1, source: source.into() };
    for (mean, want) in [
        (Array1::zeros(2), widths),
        (array![0., f64::NAN, 0.], Error::NotFinite { row: 0, column: 1 }),
        (array![0., 0., 1e281], Error::Magnitude { row: 0, column: 2, limit: 1e280 }),
    ] {
        let error = CosAccumulator::with_means(vec![Array1::zeros(3), mean]).unwrap_err();
        assert_eq!(error, second(want));
    }
    assert_eq!(ClassAccumulator::new(0, 2), Err(Error::Width));
    assert_eq!(ClassAccumulator::new(3, 1), Err(Error::Classes { found: 1, expected: 2 }));
    Ok(())
}

#[test]
fn only_equal_accumulators_are_merged() -> Result<()> {
    fn refused<A: Accumulator>(ours: &A, theirs: A) {
        let (mut merged, before) = (ours.clone(), ours.state());
        assert!(matches!(merged.merge(theirs), Err(Error::Mismatch { .. })));
        assert_eq!(merged.state(), before);
    }
    for other in [&[3, 3][..], &[3, 3, 2], &[3, 3, 3, 3]] {
        refused(&means()?, MeanAccumulator::new(other)?);
        refused(&moments()?[0], MomentAccumulator::new(other)?);
        refused(&moments()?[1], MomentAccumulator::between(&other[..1], &other[1..])?);
    }
    let [all, between] = moments()?;
    refused(&all, between.clone());
    refused(&between, all);
    refused(&between, MomentAccumulator::between(&[3, 3], &[3])?);
    // The same pairs, which stand for something else.
    refused(&MomentAccumulator::new(&[3, 3])?, MomentAccumulator::between(&[3], &[3])?);
    let [centred, features, none] = cosines()?;
    let other = CosAccumulator::with_means(vec![Array1::ones(3); 3])?;
    for (ours, theirs) in [(&centred, &features), (&features, &none), (&none, &centred), (&centred, &other)] {
        refused(ours, theirs.clone());
    }
    refused(&none, CosAccumulator::uncentred(2, 3, Centring::None)?);
    refused(&none, CosAccumulator::uncentred(3, 2, Centring::None)?);
    refused(&classes()?, ClassAccumulator::new(2, 2)?);
    refused(&classes()?, ClassAccumulator::new(3, 3)?);
    Ok(())
}

type Reader = fn(&[u8]) -> Result<()>;

/// `from_bytes` of every kind.
fn readers() -> [Reader; 4] {
    [
        |bytes| MeanAccumulator::from_bytes(bytes).map(drop),
        |bytes| CosAccumulator::from_bytes(bytes).map(drop),
        |bytes| MomentAccumulator::from_bytes(bytes).map(drop),
        |bytes| ClassAccumulator::from_bytes(bytes).map(drop),
    ]
}

/// The states of every kind, by the index of their reader.
fn states() -> Result<Vec<(usize, Vec<u8>)>> {
    let mut states = vec![(0, means()?.to_bytes()), (3, classes()?.to_bytes())];
    states.extend(cosines()?.iter().map(|cosines| (1, cosines.to_bytes())));
    for mut moments in moments()? {
        states.push((2, moments.to_bytes()?));
    }
    Ok(states)
}

#[test]
fn what_is_no_state_is_not_read() -> Result<()> {
    let other = safetensors::serialize([("shift.0", zeros(&[0; 8], vec![1]))], None).expect("a file");
    let mut claims_much = u64::MAX.to_le_bytes().to_vec();
    claims_much.extend(b"{}");
    let garbage: Vec<u8> = (0..1000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    for read in readers() {
        for bytes in [&[][..], b"{}", &[0; 8], &[0xff; 64], &other, &claims_much, &garbage] {
            assert!(matches!(read(bytes), Err(Error::State(_))));
        }
    }
    for (kind, bytes) in states()? {
        for (reader, read) in readers().into_iter().enumerate() {
            assert_eq!(read(&bytes).is_ok(), reader == kind, "state of kind {kind}, reader {reader}");
        }
        for length in (0..bytes.len()).step_by(3) {
            assert!(matches!(readers()[kind](&bytes[..length]), Err(Error::State(_))), "{length} bytes");
        }
        let longer = [&bytes[..], &[0; 8]].concat();
        assert!(matches!(readers()[kind](&longer), Err(Error::State(_))));
    }
    Ok(())
}

#[test]
fn states_are_read_as_they_were() -> Result<()> {
    fn check<A: Accumulator>(accumulator: &A) -> Result<()> {
        let read = A::from_bytes(&accumulator.clone().to_bytes())?;
        assert_eq!(read.state(), accumulator.state());
        Ok(())
    }
    check(&means()?)?;
    cosines()?.iter().try_for_each(check)?;
    moments()?.iter().try_for_each(check)?;
    check(&classes()?)
}

/// With one byte changed: an error, or an accumulator of the same shape that answers. Which number of samples is right no file can
/// tell.
fn survives<A: Accumulator>(accumulator: &A, at: usize, byte: u8, mut bytes: Vec<u8>) {
    let around = |bytes: &[u8]| String::from_utf8_lossy(&bytes[at.saturating_sub(15)..at + 1]).into_owned();
    let before = around(&bytes);
    bytes[at] = byte;
    match A::from_bytes(&bytes) {
        Ok(mut read) => {
            assert_eq!(read.shapes(), accumulator.shapes(), "{before:?} became {:?}", around(&bytes));
            read.evaluate();
            let _ = read.push(&batch(7, 2));
            let _ = read.merge(accumulator.clone());
            read.evaluate();
        }
        Err(error) => assert!(matches!(error, Error::State(_)), "{error:?}"),
    }
}

fn header(bytes: &[u8]) -> usize {
    8 + u64::from_le_bytes(bytes[..8].try_into().expect("8 bytes")) as usize
}

/// Digits and what JSON is made of, everywhere in the header.
#[test]
fn a_corrupted_header_is_refused_or_has_the_same_shape() -> Result<()> {
    fn check<A: Accumulator>(accumulator: &A) -> Result<()> {
        let bytes = accumulator.clone().to_bytes();
        for at in 0..header(&bytes) {
            for byte in *b"01239x\" ,]\0\xff" {
                survives(accumulator, at, byte, bytes.clone());
            }
        }
        Ok(())
    }
    check(&means()?)?;
    cosines()?.iter().try_for_each(check)?;
    moments()?.iter().try_for_each(check)?;
    check(&classes()?)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn corrupted_numbers_are_refused_or_have_the_same_shape(place in 0f64..1., byte in any::<u8>()) {
        fn check<A: Accumulator>(accumulator: &A, place: f64, byte: u8) {
            let bytes = accumulator.clone().to_bytes();
            let header = header(&bytes);
            let at = header + (place * (bytes.len() - header) as f64) as usize;
            survives(accumulator, at, byte, bytes);
        }
        check(&means()?, place, byte);
        cosines()?.iter().for_each(|cosines| check(cosines, place, byte));
        moments()?.iter().for_each(|moments| check(moments, place, byte));
        check(&classes()?, place, byte);
    }
}

/// A tensor of zeros.
fn zeros(zeros: &[u8], shape: Vec<usize>) -> safetensors::tensor::TensorView<'_> {
    let len = 8 * shape.iter().product::<usize>();
    safetensors::tensor::TensorView::new(safetensors::Dtype::F64, shape, &zeros[..len])
        .expect("as many bytes")
}

/// What a state says beside its tensors.
fn notes(kind: &str, samples: &str, own: (&str, &str)) -> Option<std::collections::HashMap<String, String>> {
    let notes = [("layerwise_accumulator", kind), ("version", "1"), ("samples", samples), own];
    Some(notes.map(|(key, value)| (key.to_owned(), value.to_owned())).into())
}

/// A state is as large as what it holds: one of two layers of `WIDTH` and of 1 that has a single number for the square of the
/// first, 1.3 TB, is refused before room for it is made.
#[test]
fn a_state_that_claims_more_than_it_holds_takes_no_memory() {
    const WIDTH: usize = 400_000;
    let bytes = vec![0; 8 * WIDTH];
    let layers = [("0", WIDTH), ("1", 1)].into_iter().flat_map(|(name, width)| {
        let own = [("shift", vec![width]), ("sum", vec![width]), ("scalars", vec![2])];
        own.map(|(what, shape)| (format!("{what}.{name}"), zeros(&bytes, shape)))
    });
    let pairs = [("0-0", WIDTH, WIDTH, [1, 1]), ("1-1", 1, 1, [1, 1]), ("0-1", WIDTH, 1, [WIDTH, 1])];
    let pairs = pairs.into_iter().flat_map(|(name, x, y, cross)| {
        let all = [("cross", cross.to_vec()), ("u", vec![x]), ("v", vec![y]), ("products", vec![1])];
        all.map(|(what, shape)| (format!("{what}.{name}"), zeros(&bytes, shape)))
    });
    let bytes = safetensors::serialize(layers.chain(pairs), notes("moments", "5", ("stacks", "1 1")))
        .expect("a file");
    let error = MomentAccumulator::from_bytes(&bytes).unwrap_err().to_string();
    assert!(error.contains("cross.0-0 has shape [1, 1]; expected (400000, 400000)"), "{error}");
}

/// 20,000 layers of one feature, without what is kept of pairs, which would be 200 million.
#[test]
fn a_state_of_many_layers_takes_no_memory() {
    let shifts = (0..20_000).map(|i| (format!("shift.{i}"), zeros(&[0; 8], vec![1])));
    for stacks in ["20000", "10000 10000", "1 19999", "18446744073709551615", "1 18446744073709551615"] {
        let bytes = safetensors::serialize(shifts.clone(), notes("moments", "5", ("stacks", stacks)))
            .expect("a file");
        let error = MomentAccumulator::from_bytes(&bytes).unwrap_err().to_string();
        assert!(error.contains("20000 tensors; expected"), "{error}");
    }
}

/// As many samples as fit into f64, and no more, so that no count ever overflows.
#[test]
fn a_state_of_too_many_samples_is_refused() -> Result<()> {
    for (samples, fits) in
        [("9007199254740992", true), ("9007199254740993", false), ("18446744073709551615", false)]
    {
        let tensors = ["shift.0", "sum.0", "largest.0"].map(|name| (name, zeros(&[0; 8], vec![1])));
        let notes = notes("mean", samples, ("layers", "1"));
        let bytes = safetensors::serialize(tensors, notes).expect("a file");
        match MeanAccumulator::from_bytes(&bytes) {
            Ok(mut read) => {
                assert!(fits, "{samples} samples");
                read.push(&[array![[1.]]])?;
            }
            Err(error) => assert!(!fits && error.to_string().contains("at most"), "{error}"),
        }
    }
    Ok(())
}

/// Finite, and not what any samples have: refused, so that no sum of them overflows. Nor is a NaN read.
#[test]
fn a_state_of_huge_numbers_is_refused() -> Result<()> {
    fn check<A: Accumulator>(accumulator: &A) -> Result<()> {
        let bytes = accumulator.clone().to_bytes();
        for last_byte in (header(&bytes) + 7..bytes.len()).step_by(8) {
            let mut bytes = bytes.clone();
            bytes[last_byte] = 0x7f; // 1e304 and more
            assert!(matches!(A::from_bytes(&bytes), Err(Error::State(_))));
            bytes[last_byte - 7..=last_byte].copy_from_slice(&f64::NAN.to_le_bytes());
            assert!(matches!(A::from_bytes(&bytes), Err(Error::State(_))));
        }
        Ok(())
    }
    check(&means()?)?;
    check(&classes()?)?;
    cosines()?.iter().try_for_each(check)?;
    moments()?.iter().try_for_each(check)
}
