use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use candle_core::{DType, DeviceLocation, Tensor};
use layerwise_models::{Batch, Hidden, Pass, Tapped};

use crate::{Costs, Error, Result, costs::Figures};

/// Each figure is the least of this many, of blocks in turn: what disturbs a measurement only ever adds to it.
const ROUNDS: usize = 5;
/// Rounds end early when a size has taken so long.
const PATIENCE_S: f64 = 0.3;

impl Costs {
    /// Measures blocks and exits of `model` on 1, 2, 4, .. and `rows` rows, made of copies of those of `batch`.
    ///
    /// Takes as long as some dozen forward passes of `rows` samples. Keep the machine as quiet or as busy as it will be.
    ///
    /// # Errors
    ///
    /// [`Error::Empty`] for a batch without rows, [`Error::Setting`] for 0 rows or a model without layers, and what the model reports.
    pub fn measure<M: Tapped + ?Sized>(model: &M, batch: &Batch, rows: usize) -> Result<Self> {
        measure(model, &model.embed(batch, Pass::EVAL)?.detach(), rows)
    }
}

fn measure<M: Tapped + ?Sized>(model: &M, state: &Hidden, rows: usize) -> Result<Costs> {
    let there = state.xs.dim(0)?;
    if there == 0 {
        return Err(Error::Empty);
    }
    for (field, value) in [("rows", rows), ("depth", model.depth())] {
        if value == 0 {
            return Err(Error::Setting { field, value: "0".into(), expected: "at least 1" });
        }
    }
    let mut figures = Figures::default();
    for size in sizes(rows) {
        let copies: Vec<u32> = (0..size).map(|row| (row % there) as u32).collect();
        let before = model.select(state, &Tensor::new(copies, state.xs.device())?)?;
        let all = Tensor::arange(0, size as u32, state.xs.device())?;
        let mut least = [f64::INFINITY; 3];
        let begin = Instant::now();
        // The first round of a size only warms up.
        for round in 0..=ROUNDS {
            let (layer, next) = (round % model.depth() + 1, (round + 1) % model.depth() + 1);
            // As in an engine, each finds in the cache what the block before has left there.
            let after = model.block(layer, &before, Pass::EVAL)?;
            after.xs.device().synchronize()?;
            let (_, exit) = timed(
                || model.answer(layer, &after),
                |logits| logits.flatten_all()?.to_dtype(DType::F32)?.to_vec1::<f32>().map(drop),
            )?;
            let (_, block) = timed(|| model.block(next, &after, Pass::EVAL), there_is)?;
            let (_, select) = timed(|| model.select(&after, &all), there_is)?;
            if round > 0 {
                for (least, seconds) in least.iter_mut().zip([block, select, exit]) {
                    *least = least.min(seconds);
                }
                if begin.elapsed().as_secs_f64() > PATIENCE_S {
                    break;
                }
            }
        }
        figures.rows.push(size);
        let all = [&mut figures.block_s, &mut figures.select_s, &mut figures.exit_s];
        for (all, least) in all.into_iter().zip(least) {
            // More rows cannot cost less; that they seem to is noise. And a clock has ticks.
            all.push(all.last().copied().unwrap_or(1e-9).max(least));
        }
    }
    figures.try_into()
}

/// 1, 2, 4, .. below `rows`, and `rows`.
fn sizes(rows: usize) -> impl Iterator<Item = usize> {
    (0..usize::BITS).map(|power| 1 << power).take_while(move |&size| size < rows).chain([rows])
}

/// Seconds until the result is there, as `wait` makes sure.
fn timed<T>(
    f: impl FnOnce() -> candle_core::Result<T>,
    wait: impl FnOnce(&T) -> candle_core::Result<()>,
) -> Result<(T, f64)> {
    let start = Instant::now();
    let value = f()?;
    wait(&value)?;
    Ok((value, start.elapsed().as_secs_f64()))
}

fn there_is(hidden: &Hidden) -> candle_core::Result<()> {
    hidden.xs.device().synchronize()
}

/// [`Costs`] of one model by shape of its state, measured when a shape is first met: once for each device, shape and number of threads.
///
/// May be shared by threads. The first batch of a shape waits for the measurement unless it was [`prepare`](Self::prepare)d.
#[derive(Debug, Default)]
pub struct CostTable {
    known: Mutex<Vec<(Shape, Arc<Costs>)>>,
}

/// What makes times comparable, and states joinable.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Shape {
    /// Of one row.
    dims: Vec<usize>,
    dtype: DType,
    device: DeviceLocation,
    mask: Option<(Vec<usize>, DType)>,
    threads: usize,
}

impl Shape {
    pub(crate) fn of(state: &Hidden) -> Self {
        let row = |xs: &Tensor| xs.dims().iter().skip(1).copied().collect();
        Self {
            dims: row(&state.xs),
            dtype: state.xs.dtype(),
            device: state.xs.device().location(),
            mask: state.mask.as_ref().map(|mask| (row(mask), mask.dtype())),
            threads: rayon::current_num_threads(),
        }
    }
}

impl CostTable {
    /// Measures beforehand, for batches of the shape of this one with up to `rows` rows.
    ///
    /// # Errors
    ///
    /// As [`Costs::measure`].
    pub fn prepare<M: Tapped + ?Sized>(&self, model: &M, batch: &Batch, rows: usize) -> Result<Arc<Costs>> {
        self.of_state(model, &model.embed(batch, Pass::EVAL)?.detach(), rows)
    }

    /// Takes costs that were measured and saved earlier, for batches of the shape of this one: on the same device, with as many threads.
    ///
    /// # Errors
    ///
    /// What the model reports.
    pub fn keep<M: Tapped + ?Sized>(&self, model: &M, batch: &Batch, costs: Costs) -> Result<()> {
        let shape = Shape::of(&model.embed(batch, Pass::EVAL)?);
        self.insert(shape, Arc::new(costs));
        Ok(())
    }

    fn insert(&self, shape: Shape, costs: Arc<Costs>) {
        let mut known = self.lock();
        match known.iter_mut().find(|(of, _)| *of == shape) {
            Some((_, known)) => *known = costs,
            None => known.push((shape, costs)),
        }
    }

    /// The costs for this state and up to `rows` rows, measured now if need be.
    pub(crate) fn of_state<M: Tapped + ?Sized>(
        &self,
        model: &M,
        state: &Hidden,
        rows: usize,
    ) -> Result<Arc<Costs>> {
        let shape = Shape::of(state);
        let reaches = |costs: &Costs| costs.figures().rows.last().is_some_and(|&last| last >= rows);
        let found = self.lock().iter().find(|(of, _)| *of == shape).map(|(_, costs)| costs.clone());
        if let Some(costs) = found.filter(|costs| reaches(costs)) {
            return Ok(costs);
        }
        // Not under the lock: a thread that waits in rayon may pick up another batch, which would wait for its own thread. Two that meet
        // here measure both, and the later one is kept.
        let costs = Arc::new(measure(model, state, rows)?);
        self.insert(shape, costs.clone());
        Ok(costs)
    }

    fn lock(&self) -> MutexGuard<'_, Vec<(Shape, Arc<Costs>)>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_powers_of_two_and_the_last() {
        assert_eq!(sizes(1).collect::<Vec<_>>(), [1]);
        assert_eq!(sizes(5).collect::<Vec<_>>(), [1, 2, 4, 5]);
        assert_eq!(sizes(8).collect::<Vec<_>>(), [1, 2, 4, 8]);
    }
}
