use ndarray::{Array1, Array2, ArrayView2, Zip};

#[cfg(feature = "candle")]
use crate::on_device::{means, on_one_gpu};
use crate::{
    Error, Representation, Result,
    error::in_layer,
    representation::{chunks, finite_rows, shape},
    state::{State, StateReader},
};

/// The largest number of which sums of differences can be taken.
pub(crate) const LARGEST: f64 = 1e280;

/// Rows that are read at once where nothing else decides.
pub(crate) const ROWS: usize = 512;

/// The mean of each feature over samples that come batch by batch, for every layer of a stack: the first of the two passes of
/// COS over data that do not fit in memory (the second is [`CosAccumulator`](crate::CosAccumulator)).
///
/// Where the layers of a batch are tensors on one NVIDIA GPU, they are added up there, in f64. It has not run on a GPU yet.
///
/// # Example
///
/// ```
/// use layerwise_similarity::MeanAccumulator;
/// use ndarray::array;
///
/// let mut means = MeanAccumulator::new(&[2])?;
/// means.push(&[array![[1., 10.], [2., 20.]]])?;
/// means.push(&[array![[6., 60.]]])?;
/// assert_eq!(means.means(), [array![3., 30.]]);
/// # Ok::<(), layerwise_similarity::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct MeanAccumulator {
    layers: Vec<Mean>,
}

impl MeanAccumulator {
    /// For layers of these widths.
    ///
    /// # Errors
    ///
    /// [`Error::TooFewLayers`] without layers, [`Error::Width`] for a width of 0.
    pub fn new(widths: &[usize]) -> Result<Self> {
        Ok(Self { layers: stack_widths(widths)?.iter().map(|&width| Mean::new(width)).collect() })
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
        let batch = read_batch(batch, &self.widths(), LARGEST)?;
        for (layer, xs) in self.layers.iter_mut().zip(&batch) {
            layer.push(xs.view());
        }
        Ok(())
    }

    /// Where the tensors are; `false`, with nothing added, for a batch that the host has to look at.
    #[cfg(feature = "candle")]
    pub(crate) fn push_on_device(&mut self, layers: &[&candle_core::Tensor]) -> Result<bool> {
        let Some(batch) = means(layers, &self.widths())? else { return Ok(false) };
        for (layer, seen) in self.layers.iter_mut().zip(&batch) {
            layer.merge(seen);
        }
        Ok(true)
    }

    /// Adds what another accumulator, of the same layers, has seen.
    ///
    /// # Errors
    ///
    /// [`Error::Mismatch`] when the layers have other widths.
    pub fn merge(&mut self, other: Self) -> Result<()> {
        if self.widths() != other.widths() {
            return Err(Error::Mismatch { what: "the widths of their layers" });
        }
        for (layer, other) in self.layers.iter_mut().zip(&other.layers) {
            layer.merge(other);
        }
        Ok(())
    }

    /// Samples seen.
    #[must_use]
    pub fn samples(&self) -> usize {
        self.layers[0].samples
    }

    /// The mean of each layer, `(width)`; 0 as long as there are no samples.
    #[must_use]
    pub fn means(&self) -> Vec<Array1<f64>> {
        self.layers.iter().map(|layer| &layer.shift + &layer.offset()).collect()
    }

    /// The state as a safetensors file, whose metadata come in any order: equal states can have different bytes.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut state = State::new("mean", self.samples());
        state.note("layers", self.layers.len().to_string());
        for (i, layer) in self.layers.iter().enumerate() {
            layer.write(&mut state, i);
        }
        state.into_bytes()
    }

    /// Reads a state that [`to_bytes`](Self::to_bytes) wrote.
    ///
    /// # Errors
    ///
    /// [`Error::State`] for anything else.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let state = StateReader::new("mean", bytes)?;
        let mut layers = Vec::new();
        for i in 0..state.number("layers")? {
            layers.push(Mean::read(&state, i, state.samples())?);
        }
        state.holds(3 * layers.len())?;
        if layers.is_empty() {
            return Err(Error::State("no layers".into()));
        }
        Ok(Self { layers })
    }

    pub(crate) fn into_layers(self) -> Vec<Mean> {
        self.layers
    }

    fn widths(&self) -> Vec<usize> {
        self.layers.iter().map(|layer| layer.shift.len()).collect()
    }
}

/// The mean of each feature of one representation, around its first sample, so that a large offset costs no digits.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Mean {
    pub(crate) samples: usize,
    pub(crate) shift: Array1<f64>,
    /// Sum of the differences from `shift`.
    pub(crate) sum: Array1<f64>,
    /// The largest absolute value of each feature.
    pub(crate) largest: Array1<f64>,
}

impl Mean {
    pub(crate) fn new(width: usize) -> Self {
        Self {
            samples: 0,
            shift: Array1::zeros(width),
            sum: Array1::zeros(width),
            largest: Array1::zeros(width),
        }
    }

    /// A given mean, of data that are not known.
    pub(crate) fn given(mean: Array1<f64>) -> Self {
        let largest = mean.mapv(f64::abs);
        Self { samples: 1, sum: Array1::zeros(mean.len()), shift: mean, largest }
    }

    /// Adds the mean of layer `i` to a state, but for the number of samples.
    pub(crate) fn write<'a>(&'a self, state: &mut State<'a>, i: usize) {
        state.add(format!("shift.{i}"), self.shift.view());
        state.add(format!("sum.{i}"), self.sum.view());
        state.add(format!("largest.{i}"), self.largest.view());
    }

    /// What [`write`](Self::write) wrote.
    pub(crate) fn read(state: &StateReader<'_>, i: usize, samples: usize) -> Result<Self> {
        let shift = state.vector(&format!("shift.{i}"), None, LARGEST)?;
        let width = Some(shift.len());
        Ok(Self {
            samples,
            sum: state.vector(&format!("sum.{i}"), width, 2. * LARGEST * samples as f64)?,
            largest: state.vector(&format!("largest.{i}"), width, LARGEST)?,
            shift,
        })
    }

    /// Sample by sample: the same sum whatever the size of the batches.
    pub(crate) fn push(&mut self, xs: ArrayView2<'_, f64>) {
        if self.samples == 0 && xs.nrows() > 0 {
            self.shift.assign(&xs.row(0));
        }
        for row in xs.rows() {
            Zip::from(&mut self.sum).and(&self.shift).and(row).for_each(|sum, shift, x| *sum += x - shift);
            Zip::from(&mut self.largest).and(row).for_each(|largest, x| *largest = largest.max(x.abs()));
        }
        self.samples += xs.nrows();
    }

    fn merge(&mut self, other: &Self) {
        if self.samples == 0 {
            self.shift.clone_from(&other.shift);
        }
        // Differences from the other's shift become differences from ours.
        self.sum += &(&other.sum + &((&other.shift - &self.shift) * other.samples as f64));
        Zip::from(&mut self.largest).and(&other.largest).for_each(|a, b| *a = a.max(*b));
        self.samples += other.samples;
    }

    /// The mean, relative to `shift`.
    pub(crate) fn offset(&self) -> Array1<f64> {
        &self.sum / self.samples.max(1) as f64
    }

    /// Subtracts the mean from each row; what rounding alone leaves of a value becomes exactly 0. Gives what that is for each
    /// feature.
    pub(crate) fn centre(&self, xs: &mut Array2<f64>) -> Array1<f64> {
        let offset = self.offset();
        let rounding = self.largest.mapv(rounding);
        for mut row in xs.rows_mut() {
            Zip::from(&mut row).and(&self.shift).and(&offset).and(&rounding).for_each(
                |x, shift, offset, rounding| {
                    let centred = (*x - shift) - offset;
                    *x = if centred.abs() <= *rounding { 0. } else { centred };
                },
            );
        }
        rounding
    }
}

/// What rounding may leave of a difference of numbers up to `largest` that is 0 in theory.
pub(crate) fn rounding(largest: f64) -> f64 {
    4. * f64::EPSILON * largest
}

pub(crate) fn stack_widths(widths: &[usize]) -> Result<&[usize]> {
    match widths.iter().position(|&width| width == 0) {
        _ if widths.is_empty() => Err(Error::TooFewLayers { found: 0, needed: 1 }),
        Some(layer) => in_layer(layer, Err(Error::Width)),
        None => Ok(widths),
    }
}

/// A batch of every layer, checked, so that nothing of a bad one is added.
pub(crate) fn read_batch<R: Representation>(
    batch: &[R],
    widths: &[usize],
    limit: f64,
) -> Result<Vec<Array2<f64>>> {
    if batch.len() != widths.len() {
        return Err(Error::Layers { found: batch.len(), expected: widths.len() });
    }
    let mut rows = None;
    let layers = batch.iter().zip(widths).enumerate();
    let read = layers.map(|(layer, (xs, &width))| {
        let read = || {
            let (n, found) = xs.dims()?;
            if found != width {
                return Err(Error::Widths { left: width, right: found });
            }
            let first = *rows.get_or_insert(n);
            if n != first {
                return Err(Error::Rows { left: first, right: n });
            }
            let xs = finite_rows(xs, 0..n)?;
            match xs.indexed_iter().find(|(_, x): &(_, &f64)| x.abs() > limit) {
                Some(((row, column), _)) => Err(Error::Magnitude { row, column, limit }),
                None => Ok(xs),
            }
        };
        in_layer(layer, {
            let mut read = read;
            read()
        })
    });
    read.collect()
}

/// The mean of a whole representation.
pub(crate) fn mean_of(xs: &dyn Representation, scale: f64) -> Result<Mean> {
    let (n, width) = shape(xs)?;
    let mut mean = Mean::new(width);
    for rows in chunks(n, ROWS) {
        mean.push((finite_rows(xs, rows)? * scale).view());
    }
    Ok(mean)
}
