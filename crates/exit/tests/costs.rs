//! Times of models whose blocks take as long as they are told: whether compaction pays, and latencies of depths.

use std::{cell::RefCell, thread::sleep, time::Duration};

use candle_core::{DType, Device::Cpu, Tensor};
use layerwise_exit::{
    Compaction, CostTable, Costs, Engine, Error, Figures, FixedDepth, Oracle, Result, Signal, Thresholds,
    depth_latencies, flop_ratio,
};
use layerwise_models::{Batch, Flops, Hidden, Pass, Tapped};

const DEPTH: usize = 4;

/// Blocks that sleep, so many milliseconds for a batch and for each row; counts the rows of each.
struct Sleeper {
    batch_ms: f64,
    row_ms: f64,
    rows: RefCell<[usize; DEPTH]>,
}

impl Sleeper {
    fn new(batch_ms: f64, row_ms: f64) -> Self {
        Self { batch_ms, row_ms, rows: RefCell::default() }
    }
}

impl Tapped for Sleeper {
    fn depth(&self) -> usize {
        DEPTH
    }

    fn embed(&self, batch: &Batch, _pass: Pass) -> candle_core::Result<Hidden> {
        Ok(Hidden { xs: batch.inputs.clone(), mask: None })
    }

    fn block(&self, layer: usize, hidden: &Hidden, _pass: Pass) -> candle_core::Result<Hidden> {
        let rows = hidden.xs.dim(0)?;
        self.rows.borrow_mut()[layer - 1] = rows;
        sleep(Duration::from_secs_f64(1e-3 * (self.batch_ms + self.row_ms * rows as f64)));
        Ok(hidden.clone())
    }

    fn feature(&self, hidden: &Hidden) -> candle_core::Result<Tensor> {
        Ok(hidden.xs.clone())
    }

    fn exit(&self, _layer: usize, feature: &Tensor, _pass: Pass) -> candle_core::Result<Tensor> {
        Ok(feature.clone())
    }
}

fn batch(rows: usize) -> Result<Batch> {
    Ok(Batch::from(Tensor::zeros((rows, 3), DType::F32, &Cpu)?))
}

#[test]
fn rows_are_taken_out_where_that_saves_time_and_left_in_where_it_does_not() -> Result<()> {
    // Half of the rows leave after layer 1, one of them after layer 2.
    let layers = [1, 1, 1, 1, 2, 4, 4, 4];
    let answers: Vec<Vec<u32>> =
        (1..=DEPTH).map(|l| layers.iter().map(|&at| u32::from(l >= at)).collect()).collect();
    let policy = Oracle::right(&answers, &[1; 8])?;
    let answer = |costs: &CostTable, model: &Sleeper| {
        let engine = Engine { policy: &policy, compaction: Compaction::Profitable(costs) };
        assert_eq!(engine.run(model, &batch(8)?)?.layer, layers);
        Ok::<_, Error>(*model.rows.borrow())
    };
    // Measured: a row takes a millisecond, and a copy of all of them a thousandth of that.
    assert_eq!(answer(&CostTable::default(), &Sleeper::new(0., 1.))?, [8, 4, 3, 3]);
    // Told: seconds of blocks on 1, 4 and 8 rows, and of taking rows out.
    let told = |block_s: [f64; 3], select_s: f64| -> Result<CostTable> {
        let figures = Figures {
            rows: vec![1, 4, 8],
            block_s: block_s.to_vec(),
            select_s: vec![select_s; 3],
            exit_s: vec![0.; 3],
        };
        let costs = CostTable::default();
        costs.keep(&Sleeper::new(0., 0.), &batch(1)?, figures.try_into()?)?;
        Ok(costs)
    };
    let model = Sleeper::new(0., 0.);
    assert_eq!(answer(&told([3., 3., 3.], 0.1)?, &model)?, [8; DEPTH]);
    assert_eq!(answer(&told([1., 4., 8.], 0.1)?, &model)?, [8, 4, 3, 3]);
    // Three blocks save 12 after layer 1; two save 2 after layer 2.
    assert_eq!(answer(&told([1., 4., 8.], 5.)?, &model)?, [8, 4, 4, 4]);
    assert_eq!(answer(&told([1., 4., 8.], 13.)?, &model)?, [8; DEPTH]);
    Ok(())
}

#[test]
fn costs_are_those_of_the_blocks() -> Result<()> {
    let costs = Costs::measure(&Sleeper::new(0.5, 0.5), &batch(2)?, 6)?;
    assert_eq!(costs.figures().rows, [1, 2, 4, 6]);
    for (rows, seconds) in costs.figures().rows.iter().zip(&costs.figures().block_s) {
        let told = 1e-3 * (0.5 + 0.5 * *rows as f64);
        // Never shorter; longer as the machine is busy.
        assert!((told..10. * told).contains(seconds), "{rows} rows: {seconds} s");
    }
    assert!(matches!(Costs::measure(&Sleeper::new(0., 0.), &batch(0)?, 4), Err(Error::Empty)));
    let error = Costs::measure(&Sleeper::new(0., 0.), &batch(1)?, 0).unwrap_err();
    assert!(matches!(error, Error::Setting { field: "rows", .. }), "{error}");
    Ok(())
}

#[test]
fn a_depth_takes_as_long_as_the_blocks_up_to_it() -> Result<()> {
    let latencies = depth_latencies(&Sleeper::new(2., 0.), &batch(1)?, 3)?;
    assert_eq!(latencies.len(), DEPTH);
    for (i, seconds) in latencies.iter().enumerate() {
        let told = 2e-3 * (i + 1) as f64;
        assert!((told..told + 0.1).contains(seconds), "{latencies:?}");
    }
    assert!(latencies.is_sorted());
    assert!(matches!(
        depth_latencies(&Sleeper::new(0., 0.), &batch(1)?, 0),
        Err(Error::Setting { field: "rounds", .. })
    ));
    assert!(matches!(depth_latencies(&Sleeper::new(0., 0.), &batch(0)?, 1), Err(Error::Empty)));
    Ok(())
}

#[test]
fn operations_count_every_head_that_is_computed() {
    let flops = Flops { embed: 10., block: 100., exit: 5. };
    let full = 10. + 400. + 5.;
    let checked = Thresholds { at: [(1, 0.9), (2, 0.9)].into(), ..Default::default() };
    // Nobody leaves: two heads more.
    assert_eq!(flop_ratio(&[0, 0, 0, 3], &checked, &flops), full / (full + 10.));
    // Two leave after layer 2, by the head that was read there.
    let early = 10. + 200. + 10.;
    assert_eq!(flop_ratio(&[0, 2, 0, 2], &checked, &flops), 2. * full / (early + full + 10.));
    // Without reading heads, only those who leave compute one.
    let cut = 10. + 200. + 5.;
    assert_eq!(flop_ratio(&[0, 4, 0, 0], &FixedDepth(2), &flops), full / cut);
    let saturation = Thresholds { signal: Signal::Saturation, ..checked };
    assert_eq!(flop_ratio(&[0, 4, 0, 0], &saturation, &flops), full / cut);
    assert!(flop_ratio(&[0; 4], &saturation, &flops).is_nan());
}
