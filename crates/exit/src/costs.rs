use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// What a block costs, measured: seconds for so many rows. Between the sizes lines are drawn, beyond the last one goes on.
///
/// Made by [`Costs::measure`], and may be saved: it holds for one model, one shape of state, one device and one number of threads.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Figures", into = "Figures")]
pub struct Costs(Figures);

/// What is measured for each size of batch.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Figures {
    /// Sizes of batch, ascending.
    pub rows: Vec<usize>,
    /// One block, seconds.
    pub block_s: Vec<f64>,
    /// Taking so many rows out of a batch, seconds.
    pub select_s: Vec<f64>,
    /// One exit, from state to logits that were read, seconds.
    pub exit_s: Vec<f64>,
}

impl TryFrom<Figures> for Costs {
    type Error = Error;

    fn try_from(figures: Figures) -> Result<Self> {
        let Figures { rows, block_s, select_s, exit_s } = &figures;
        let bad = |field, value: String, expected| Err(Error::Setting { field, value, expected });
        if rows.first().is_none_or(|&first| first == 0) || !rows.is_sorted_by(|a, b| a < b) {
            return bad("rows", format!("{rows:?}"), "sizes of batch, ascending from 1 or more");
        }
        for (field, seconds) in [("block_s", block_s), ("select_s", select_s), ("exit_s", exit_s)] {
            if seconds.len() != rows.len() || !seconds.iter().all(|s| s.is_finite() && *s >= 0.) {
                return bad(
                    field,
                    format!("{seconds:?}"),
                    "as many seconds as sizes of batch, none negative",
                );
            }
        }
        if block_s.contains(&0.) {
            return bad("block_s", format!("{block_s:?}"), "a block that takes time");
        }
        Ok(Self(figures))
    }
}

impl From<Costs> for Figures {
    fn from(costs: Costs) -> Self {
        costs.0
    }
}

impl Costs {
    /// Seconds of one block on so many rows.
    #[must_use]
    pub fn block(&self, rows: usize) -> f64 {
        self.between(&self.0.block_s, rows)
    }

    /// Seconds of one exit on so many rows.
    #[must_use]
    pub fn exit(&self, rows: usize) -> f64 {
        self.between(&self.0.exit_s, rows)
    }

    /// Seconds that taking `rows` rows out of a batch takes.
    #[must_use]
    pub fn select(&self, rows: usize) -> f64 {
        self.between(&self.0.select_s, rows)
    }

    /// What was measured.
    #[must_use]
    pub fn figures(&self) -> &Figures {
        &self.0
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
        let sizes = &self.0.rows;
        if let ([seconds], [size]) = (seconds, sizes.as_slice()) {
            // Without a second size all is in proportion.
            return seconds * rows as f64 / *size as f64;
        }
        if rows <= sizes[0] {
            return seconds[0];
        }
        let right = sizes.partition_point(|&size| size < rows).min(sizes.len() - 1);
        let (a, b) = (sizes[right - 1] as f64, sizes[right] as f64);
        let slope = (seconds[right] - seconds[right - 1]) / (b - a);
        seconds[right - 1] + slope * (rows as f64 - a)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn costs() -> Costs {
        figures(&[1, 2, 4], &[2., 2., 4.], &[0.1, 0.2, 0.4], &[0.5; 3]).try_into().expect("figures that fit")
    }

    fn figures(rows: &[usize], block_s: &[f64], select_s: &[f64], exit_s: &[f64]) -> Figures {
        let own = <[f64]>::to_vec;
        Figures { rows: rows.to_vec(), block_s: own(block_s), select_s: own(select_s), exit_s: own(exit_s) }
    }

    #[test]
    fn lines_between_the_sizes_and_beyond() {
        let costs = costs();
        let blocks: Vec<f64> = [0, 1, 2, 3, 4, 6].iter().map(|&rows| costs.block(rows)).collect();
        assert_eq!(blocks, [2., 2., 2., 3., 4., 6.]);
        assert_eq!((costs.exit(9), costs.select(3)), (0.5, 0.2 + (0.4 - 0.2) / 2.));
        let single = Costs::try_from(figures(&[4], &[8.], &[1.], &[1.])).expect("one size");
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
    fn figures_that_do_not_fit_are_named() {
        for (field, rows, block) in [
            ("rows", &[][..], &[][..]),
            ("rows", &[0, 1], &[1., 1.]),
            ("rows", &[2, 2], &[1., 1.]),
            ("block_s", &[1, 2], &[1.]),
            ("block_s", &[1, 2], &[1., f64::NAN]),
            ("block_s", &[1, 2], &[1., -1.]),
            ("block_s", &[1, 2], &[0., 1.]),
        ] {
            let rest = vec![0.; rows.len()];
            let error = Costs::try_from(figures(rows, block, &rest, &rest)).unwrap_err();
            let named = matches!(error, Error::Setting { field: named, .. } if named == field);
            assert!(named, "{rows:?}, {block:?}: {error}");
        }
        let text = serde_json::to_string(&costs()).expect("numbers");
        assert_eq!(serde_json::from_str::<Costs>(&text).expect("the same"), costs());
        assert!(serde_json::from_str::<Costs>(&text.replace("[1,2,4]", "[4,2,1]")).is_err());
    }
}
