use ndarray::{Array1, Array2, Axis};
use rayon::prelude::*;

#[cfg(feature = "candle")]
use crate::on_device::{cosines, on_one_gpu};
use crate::{
    Centring, Error, MeanAccumulator, Representation, Result,
    cos::{cosine, of_rows},
    error::in_layer,
    frame::{Centre, unit_rows},
    mean::{LARGEST, Mean, read_batch, stack_widths},
    state::{State, StateReader},
};

/// COS of all pairs of layers of a stack, from samples that come batch by batch.
///
/// Centred over the samples it needs their means first: take them in a first pass with [`MeanAccumulator`], or give means that are
/// known from elsewhere. To compare two models, make one stack of their layers.
///
/// Where the layers of a batch are tensors on one NVIDIA GPU, all is computed there, in f64, and only the sums are read back. That
/// differs by rounding. It has not run on a GPU yet.
///
/// # Example
///
/// ```
/// use layerwise_similarity::{Centring, CosAccumulator, MeanAccumulator, Measure, pairwise};
/// use ndarray::{array, s};
///
/// let layers = [array![[1., 2.], [3., 5.], [0., 1.]], array![[2., 2.], [4., 6.], [1., -1.]]];
/// let batches = || (0..3).map(|i| layers.each_ref().map(|layer| layer.slice(s![i..=i, ..])));
///
/// let mut means = MeanAccumulator::new(&[2, 2])?;
/// for batch in batches() {
///     means.push(&batch)?;
/// }
/// let mut cos = CosAccumulator::centred(means)?;
/// for batch in batches() {
///     cos.push(&batch)?;
/// }
/// let whole = pairwise(&layers, Measure::Cos(Centring::Samples))?;
/// assert!((cos.pairwise()? - whole).iter().all(|difference| difference.abs() < 1e-12));
/// # Ok::<(), layerwise_similarity::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct CosAccumulator {
    centres: Vec<Centre>,
    width: usize,
    samples: usize,
    /// Sum of the cosines of each pair.
    sums: Array2<f64>,
}

impl CosAccumulator {
    /// Centred by the means of the same samples, taken before.
    ///
    /// # Errors
    ///
    /// [`Error::Samples`] when the means have seen no samples, [`Error::Layer`] around [`Error::Widths`] when layers differ in
    /// width.
    pub fn centred(means: MeanAccumulator) -> Result<Self> {
        if means.samples() == 0 {
            return Err(Error::Samples { samples: 0, needed: 1 });
        }
        Self::new(means.into_layers().into_iter().map(Centre::Columns).collect())
    }

    /// Centred by given means, `(width)` for each layer.
    ///
    /// # Errors
    ///
    /// [`Error::TooFewLayers`] without layers; [`Error::Layer`] around [`Error::Widths`] when they differ in width,
    /// [`Error::NotFinite`] for a NaN or, above 1e280, [`Error::Magnitude`] (row 0 of the means).
    pub fn with_means(means: Vec<Array1<f64>>) -> Result<Self> {
        let widths: Vec<usize> = means.iter().map(Array1::len).collect();
        let rows: Vec<_> = means.iter().map(|mean| mean.view().insert_axis(Axis(0))).collect();
        read_batch(&rows, &widths, LARGEST)?;
        Self::new(means.into_iter().map(|mean| Centre::Columns(Mean::given(mean))).collect())
    }

    /// For `layers` layers of one width, not centred over the samples.
    ///
    /// # Errors
    ///
    /// [`Error::Unsupported`] for [`Centring::Samples`], which needs means.
    pub fn uncentred(layers: usize, width: usize, centring: Centring) -> Result<Self> {
        let centre = match centring {
            Centring::Samples => {
                return Err(Error::Unsupported {
                    measure: "COS",
                    what: "centring over samples without means",
                });
            }
            Centring::Features => Centre::Rows,
            Centring::None => Centre::Nothing,
        };
        Self::of_width(vec![centre; layers], width)
    }

    fn new(centres: Vec<Centre>) -> Result<Self> {
        let widths = centres.iter().filter_map(|centre| match centre {
            Centre::Columns(mean) => Some(mean.shift.len()),
            _ => None,
        });
        let widths: Vec<usize> = widths.collect();
        let width = stack_widths(&widths)?[0];
        if let Some((layer, &other)) = widths.iter().enumerate().find(|&(_, &other)| other != width) {
            return in_layer(layer, Err(Error::Widths { left: width, right: other }));
        }
        Self::of_width(centres, width)
    }

    fn of_width(centres: Vec<Centre>, width: usize) -> Result<Self> {
        let layers = centres.len();
        stack_widths(&vec![width; layers])?;
        Ok(Self { centres, width, samples: 0, sums: Array2::zeros((layers, layers)) })
    }

    /// Adds the next samples: their representation in every layer, `(rows, width)` each. When it fails, nothing was added.
    ///
    /// # Errors
    ///
    /// [`Error::Layers`], or [`Error::Layer`] around [`Error::Rows`], [`Error::Widths`], [`Error::NotFinite`] or, above
    /// 1e280, [`Error::Magnitude`]; [`Error::Candle`] when a GPU fails.
    pub fn push<R: Representation>(&mut self, batch: &[R]) -> Result<()> {
        #[cfg(feature = "candle")]
        if let Some(layers) = on_one_gpu(batch)
            && self.push_on_device(&layers)?
        {
            return Ok(());
        }
        let layers = self.centres.len();
        let mut batch = read_batch(batch, &vec![self.width; layers], LARGEST)?;
        batch.par_iter_mut().zip(&self.centres).for_each(|(xs, centre)| {
            centre.apply(xs);
            unit_rows(xs);
        });
        self.samples += batch[0].nrows();
        // Pair by pair, so that the order of additions does not depend on the number of threads or the size of batches.
        self.sums.indexed_iter_mut().filter(|((i, j), _)| i <= j).par_bridge().for_each(|((i, j), sum)| {
            for cosine in of_rows(&batch[i], &batch[j], cosine) {
                *sum += cosine;
            }
        });
        Ok(())
    }

    /// Where the tensors are; `false`, with nothing added, for a batch that the host has to look at.
    #[cfg(feature = "candle")]
    pub(crate) fn push_on_device(&mut self, layers: &[&candle_core::Tensor]) -> Result<bool> {
        let Some(sums) = cosines(layers, &self.centres, self.width)? else { return Ok(false) };
        self.samples += layers[0].dims()[0];
        for ((_, sum), more) in self.sums.indexed_iter_mut().zip(&sums).filter(|(((i, j), _), _)| i <= j) {
            *sum += more;
        }
        Ok(true)
    }

    /// Adds what another accumulator, with the same means, has seen.
    ///
    /// # Errors
    ///
    /// [`Error::Mismatch`] when layers or means differ.
    pub fn merge(&mut self, other: Self) -> Result<()> {
        if self.width != other.width || self.centres != other.centres {
            return Err(Error::Mismatch { what: "layers or means" });
        }
        self.samples += other.samples;
        self.sums += &other.sums;
        Ok(())
    }

    /// Samples seen.
    #[must_use]
    pub fn samples(&self) -> usize {
        self.samples
    }

    /// COS of all pairs of layers, `(L, L)`, symmetric.
    ///
    /// # Errors
    ///
    /// [`Error::Samples`] before any sample.
    pub fn pairwise(&self) -> Result<Array2<f64>> {
        if self.samples == 0 {
            return Err(Error::Samples { samples: 0, needed: 1 });
        }
        let mean = |i: usize, j: usize| self.sums[[i.min(j), i.max(j)]] / self.samples as f64;
        Ok(Array2::from_shape_fn(self.sums.dim(), |(i, j)| mean(i, j)))
    }

    /// The state as a safetensors file, whose metadata come in any order: equal states can have different bytes.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut state = State::new("cos", self.samples);
        let centring = match self.centres[0] {
            Centre::Columns(_) => "samples",
            Centre::Rows => "features",
            Centre::Nothing => "none",
        };
        state.note("centring", centring.into());
        state.note("width", self.width.to_string());
        state.note("layers", self.centres.len().to_string());
        for (i, centre) in self.centres.iter().enumerate() {
            if let Centre::Columns(mean) = centre {
                state.note(&format!("mean_samples.{i}"), mean.samples.to_string());
                mean.write(&mut state, i);
            }
        }
        state.add("cosines".into(), self.sums.view());
        state.into_bytes()
    }

    /// Reads a state that [`to_bytes`](Self::to_bytes) wrote.
    ///
    /// # Errors
    ///
    /// [`Error::State`] for anything else.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let state = StateReader::new("cos", bytes)?;
        let (layers, width) = (state.number("layers")?, state.number("width")?);
        let rounding = 1. + 1e-9;
        let sums = state.matrix("cosines", (layers, layers), rounding * state.samples() as f64)?;
        let mean = |i: usize| {
            let key = format!("mean_samples.{i}");
            let mean = Mean::read(&state, i, state.count(&key)?)?;
            let fits = mean.samples > 0 && mean.shift.len() == width;
            if fits { Ok(mean) } else { Err(Error::State(format!("shift.{i} or {key} does not fit"))) }
        };
        let centre = |i: usize| match state.text("centring")? {
            "samples" => Ok(Centre::Columns(mean(i)?)),
            "features" => Ok(Centre::Rows),
            "none" => Ok(Centre::Nothing),
            other => Err(Error::State(format!("centring is {other:?}"))),
        };
        let centres = (0..layers).map(centre).collect::<Result<Vec<_>>>()?;
        if layers == 0 || width == 0 {
            return Err(Error::State("no layers, or of width 0".into()));
        }
        let means = centres.iter().filter(|centre| matches!(centre, Centre::Columns(_))).count();
        state.holds(1 + 3 * means)?;
        Ok(Self { centres, width, samples: state.samples(), sums })
    }
}
