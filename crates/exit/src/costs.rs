use std::{
    sync::{Arc, Mutex},
    time::Instant,
};

use candle_core::{DType, DeviceLocation, Tensor};
use layerwise_models::{Batch, Hidden, Pass, Tapped};
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// What a block costs, measured: seconds for so many rows. Between the sizes lines are drawn, beyond the last one goes on.
///
/// Made by [`Costs::measure`], and may be saved: it holds for one model, one shape of state, one device and one number of threads.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Costs {
    /// Sizes of batch, ascending.
    pub rows: Vec<usize>,
    /// One block, seconds.
    pub block_s: Vec<f64>,
    /// Taking so many rows out of a batch, seconds.
    pub select_s: Vec<f64>,
    /// One exit, from state to logits that were read, seconds.
    pub exit_s: Vec<f64>,
}

/// Each figure is the least of this many, of blocks in turn: what disturbs a measurement only ever adds to it.
const ROUNDS: usize = 5;
/// Rounds end early when a size has taken so long.
const PATIENCE_S: f64 = 0.3;

impl Costs {
    /// Measures blocks and exits of `model` on 1, 2, 4, .. rows up to at least `rows`, made of copies of those of `batch`.
    ///
    /// Takes as long as some dozen forward passes of `rows` samples. Keep the machine as quiet or as busy as it will be.
    ///
    /// # Errors
    ///
    /// [`Error::Empty`] for a batch without rows, [`Error::Setting`] for 0 rows, and what the model reports.
    pub fn measure<M: Tapped + ?Sized>(model: &M, batch: &Batch, rows: usize) -> Result<Self> {
        Self::of_state(model, &model.embed(batch, Pass::EVAL)?.detach(), rows)
    }

    pub(crate) fn of_state<M: Tapped + ?Sized>(model: &M, state: &Hidden, rows: usize) -> Result<Self> {
        let there = state.xs.dim(0)?;
        if there == 0 {
            return Err(Error::Empty);
        }
        if rows == 0 {
            return Err(Error::Setting { field: "rows", value: "0".into(), expected: "at least 1" });
        }
        let mut costs =
            Self { rows: Vec::new(), block_s: Vec::new(), select_s: Vec::new(), exit_s: Vec::new() };
        for size in sizes(rows) {
            let copies: Vec<u32> = (0..size).map(|row| (row % there) as u32).collect();
            let before = model.select(state, &Tensor::new(copies, state.xs.device())?)?;
            let all = Tensor::arange(0, size as u32, state.xs.device())?;
            let mut least = [f64::INFINITY; 3];
            let begin = Instant::now();
            // The first round of a size only warms up.
            for round in 0..=ROUNDS {
                let layer = round % model.depth() + 1;
                // In the order of an engine, so that each finds in the cache what it would find there.
                let (after, block) =
                    timed(|| model.block(layer, &before, Pass::EVAL), |after| read_one(&after.xs))?;
                let (_, exit) = timed(
                    || model.exit(layer, &model.feature(&after)?),
                    |logits| logits.flatten_all()?.to_dtype(DType::F32)?.to_vec1::<f32>().map(drop),
                )?;
                let (_, select) = timed(|| model.select(&after, &all), |kept| read_one(&kept.xs))?;
                if round > 0 {
                    for (least, seconds) in least.iter_mut().zip([block, select, exit]) {
                        *least = least.min(seconds);
                    }
                    if begin.elapsed().as_secs_f64() > PATIENCE_S {
                        break;
                    }
                }
            }
            costs.rows.push(size);
            let all = [&mut costs.block_s, &mut costs.select_s, &mut costs.exit_s];
            for (all, least) in all.into_iter().zip(least) {
                // More rows cannot cost less; that they seem to is noise.
                all.push(all.last().map_or(least, |before: &f64| before.max(least)));
            }
        }
        Ok(costs)
    }

    /// Seconds of one block on so many rows.
    #[must_use]
    pub fn block(&self, rows: usize) -> f64 {
        self.between(&self.block_s, rows)
    }

    /// Seconds of one exit on so many rows.
    #[must_use]
    pub fn exit(&self, rows: usize) -> f64 {
        self.between(&self.exit_s, rows)
    }

    /// Seconds that taking `rows` rows out of a batch takes.
    #[must_use]
    pub fn select(&self, rows: usize) -> f64 {
        self.between(&self.select_s, rows)
    }

    /// Whether to go on with `kept` rows instead of `rows`: what the blocks that are left save is more than taking the rows out costs.
    ///
    /// Savings of rows that leave later come on top of it, so compacting whenever this holds never costs more than not compacting
    /// at all, as far as the measured times hold.
    #[must_use]
    pub fn pays(&self, rows: usize, kept: usize, blocks_left: usize) -> bool {
        (self.block(rows) - self.block(kept)) * blocks_left as f64 > self.select(kept)
    }

    /// The fewest rows at which a block's time per row is at most `factor` times that of `full` rows.
    #[must_use]
    pub fn profitable_rows(&self, full: usize, factor: f64) -> usize {
        let each = |rows: usize| self.block(rows) / rows as f64;
        (1..full).find(|&rows| each(rows) <= factor * each(full)).unwrap_or(full)
    }

    fn between(&self, seconds: &[f64], rows: usize) -> f64 {
        let (Some(&first), Some(&last)) = (seconds.first(), self.rows.last()) else { return 0. };
        if rows <= self.rows[0] || seconds.len() == 1 {
            // Fewer than one row there is not; without a second size all is in proportion.
            return if seconds.len() == 1 { first * rows as f64 / last as f64 } else { first };
        }
        let right = self.rows.partition_point(|&size| size < rows).min(self.rows.len() - 1);
        let (a, b) = (self.rows[right - 1] as f64, self.rows[right] as f64);
        let slope = (seconds[right] - seconds[right - 1]) / (b - a);
        seconds[right - 1] + slope * (rows as f64 - a)
    }
}

/// 1, 2, 4, .. and the first power of two that is at least `rows`.
fn sizes(rows: usize) -> impl Iterator<Item = usize> {
    (0..=rows.next_power_of_two().trailing_zeros()).map(|power| 1 << power)
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

/// Waits for a device that computes in its own time.
fn read_one(xs: &Tensor) -> candle_core::Result<()> {
    if !xs.device().is_cpu() {
        xs.flatten_all()?.narrow(0, 0, 1)?.to_dtype(DType::F32)?.to_vec1::<f32>()?;
    }
    Ok(())
}

/// [`Costs`] of one model by shape of its state, measured when a shape is first met: once for each device, shape and number of threads.
///
/// May be shared by threads. The first batch of a shape waits for the measurement unless it was [`prepare`](Self::prepare)d.
#[derive(Debug, Default)]
pub struct CostTable {
    known: Mutex<Vec<(Shape, Arc<Costs>)>>,
}

/// What makes times comparable.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Shape {
    /// Of one row.
    dims: Vec<usize>,
    dtype: DType,
    device: DeviceLocation,
    masked: bool,
    threads: usize,
}

impl Shape {
    pub(crate) fn of(state: &Hidden) -> Self {
        Self {
            dims: state.xs.dims().iter().skip(1).copied().collect(),
            dtype: state.xs.dtype(),
            device: state.xs.device().location(),
            masked: state.mask.is_some(),
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

    /// The costs for this state and up to `rows` rows, measured now if need be.
    pub(crate) fn of_state<M: Tapped + ?Sized>(
        &self,
        model: &M,
        state: &Hidden,
        rows: usize,
    ) -> Result<Arc<Costs>> {
        let shape = Shape::of(state);
        // Whoever comes while it is measured waits for it, instead of disturbing it.
        let mut known = self.known.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let reaches = |costs: &Costs| costs.rows.last().is_some_and(|&last| last >= rows);
        let place = known.iter().position(|(of, _)| *of == shape);
        if let Some((_, costs)) = place.and_then(|at| known.get(at))
            && reaches(costs)
        {
            return Ok(costs.clone());
        }
        let costs = Arc::new(Costs::of_state(model, state, rows)?);
        match place {
            Some(at) => known[at].1 = costs.clone(),
            None => known.push((shape, costs.clone())),
        }
        Ok(costs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn costs() -> Costs {
        Costs {
            rows: vec![1, 2, 4],
            block_s: vec![2., 2., 4.],
            select_s: vec![0.1, 0.2, 0.4],
            exit_s: vec![0.5; 3],
        }
    }

    #[test]
    fn lines_between_the_sizes_and_beyond() {
        let costs = costs();
        let blocks: Vec<f64> = [0, 1, 2, 3, 4, 6].iter().map(|&rows| costs.block(rows)).collect();
        assert_eq!(blocks, [2., 2., 2., 3., 4., 6.]);
        assert_eq!((costs.exit(9), costs.select(3)), (0.5, 0.2 + (0.4 - 0.2) / 2.));
        let single = Costs { rows: vec![4], block_s: vec![8.], select_s: vec![1.], exit_s: vec![1.] };
        assert_eq!((single.block(2), single.block(8)), (4., 16.));
    }

    #[test]
    fn compaction_pays_when_blocks_save_more_than_it_costs() {
        let costs = costs();
        assert!(costs.pays(4, 3, 1)); // saves 1, costs 0.3
        assert!(!costs.pays(2, 1, 100)); // one row is no cheaper than two
        assert!(!costs.pays(4, 3, 0));
    }

    #[test]
    fn a_batch_is_profitable_when_a_row_costs_little_more_than_in_a_full_one() {
        let costs = costs(); // 2, 1, 1, 1 seconds a row
        assert_eq!(costs.profitable_rows(4, 1.1), 2);
        assert_eq!(costs.profitable_rows(4, 2.), 1);
        assert_eq!(costs.profitable_rows(1, 1.), 1);
    }

    #[test]
    fn sizes_are_powers_of_two() {
        assert_eq!(sizes(1).collect::<Vec<_>>(), [1]);
        assert_eq!(sizes(5).collect::<Vec<_>>(), [1, 2, 4, 8]);
        assert_eq!(sizes(256).last(), Some(256));
    }
}
