//! Leaving early against the same engine without exits, batch by batch.
//!
//! `exit_speedup/uniform/..`: a ViT of d = 192 in which an equal share of the batch leaves after every layer. The layer
//! ratio is `L / ((L + 1) / 2)` = 1.85 by construction, so what is missing from 1.85 is what exits and compaction cost.
//! `exit_speedup/digits/..`: an aligned ViT of d = 48, trained on real digits before the clock starts, at threshold 0.9;
//! its layer ratio is printed.
//!
//! ```sh
//! cargo bench --bench exit_speedup
//! ```

mod cases;

use std::time::Duration;

use candle_core::{Device::Cpu, Result, Tensor};
use criterion::{BenchmarkGroup, BenchmarkId, Criterion, measurement::WallTime};
use layerwise::{
    exit::{histogram, layer_ratio, leave_early},
    models::{Batch, Hidden, Pass, Tapped, Vit},
    ops::init,
    train::{Hooks, Schedule, TrainConfig, train},
};
use layerwise_example_common::{data_sets::embedded_digits, in_pool, recipes::digits_vit};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const BATCHES: [usize; 4] = [1, 16, 64, 256];
/// Above every probability: nobody leaves.
const NO_EXITS: f64 = 2.;

fn main() -> anyhow::Result<()> {
    in_pool(None, bench)
}

fn bench() -> anyhow::Result<()> {
    let mut criterion = Criterion::default().configure_from_args().sample_size(10);
    let mut group = criterion.benchmark_group("exit_speedup");
    group.measurement_time(Duration::from_secs(5));
    let (vit, images, _) = cases::vit((192, 3), (32, 4), 256)?;
    let uniform = Uniform { vit: vit.packed()? };
    for rows in BATCHES {
        compare(&mut group, "uniform", &uniform, &first(&images, rows)?, 0.9)?;
    }
    let (aligned, images) = aligned_digits()?;
    for rows in BATCHES {
        compare(&mut group, "digits", &aligned, &first(&images, rows)?, 0.9)?;
    }
    group.finish();
    criterion.final_summary();
    Ok(())
}

/// Times one batch with and without exits.
#[allow(clippy::print_stderr, reason = "the operation count belongs beside the times")]
fn compare<M: Tapped>(
    group: &mut BenchmarkGroup<'_, WallTime>,
    name: &str,
    model: &M,
    batch: &Batch,
    threshold: f64,
) -> anyhow::Result<()> {
    let rows = batch.rows()?;
    let ratio = layer_ratio(&histogram(&leave_early(model, batch, threshold)?.layer, model.depth()));
    eprintln!("{name}, batch {rows}: layer ratio {ratio:.2}");
    for (case, threshold) in [("full", NO_EXITS), ("exits", threshold)] {
        group.bench_function(BenchmarkId::new(format!("{name}/{case}"), rows), |bencher| {
            bencher.iter(|| leave_early(model, batch, threshold).expect("a batch"));
        });
    }
    Ok(())
}

fn first(images: &Batch, rows: usize) -> Result<Batch> {
    Ok(images.inputs.narrow(0, 0, rows)?.into())
}

/// Of the rows still there after layer `l`, one in `L - l + 1` is sure: an equal share of the batch leaves everywhere.
struct Uniform {
    vit: Vit,
}

impl Tapped for Uniform {
    fn depth(&self) -> usize {
        self.vit.depth()
    }

    fn embed(&self, batch: &Batch, pass: Pass) -> Result<Hidden> {
        self.vit.embed(batch, pass)
    }

    fn block(&self, layer: usize, hidden: &Hidden, pass: Pass) -> Result<Hidden> {
        self.vit.block(layer, hidden, pass)
    }

    fn feature(&self, hidden: &Hidden) -> Result<Tensor> {
        self.vit.feature(hidden)
    }

    fn exit(&self, layer: usize, feature: &Tensor) -> Result<Tensor> {
        let logits = self.vit.exit(layer, feature)?;
        let (rows, classes) = logits.dims2()?;
        let sure = rows.div_ceil(self.depth() - layer + 1);
        let bonus =
            (0..rows * classes).map(|i| if i < sure * classes && i % classes == 0 { 50f32 } else { 0. });
        logits + Tensor::from_iter(bonus, &Cpu)?.reshape((rows, classes))?
    }
}

/// A 12-layer ViT after 40 epochs of the alternating objective on the digits, and 256 of the images that it did not see.
fn aligned_digits() -> anyhow::Result<(Vit, Batch)> {
    let data = embedded_digits(usize::MAX, &Cpu)?;
    let vit = Vit::new(digits_vit(), &mut init::rng(0), &Cpu)?;
    let settings =
        TrainConfig { epochs: 40, batch_size: 48, schedule: Schedule::OneCycle, ..Default::default() };
    train(&vit, vit.params(), &data, &settings, None, Hooks::default())?;
    let images = data.test_batches().next().ok_or_else(|| anyhow::anyhow!("no images held out"))??.0;
    Ok((vit.packed()?, first(&images, 256)?))
}
