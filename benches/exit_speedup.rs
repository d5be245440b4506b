//! Leaving early against the same engine without exits: as a static cut, with rows that left taken out of the batch always, never, or where
//! measured times say that it pays, and in depth pools.
//!
//! `exit_speedup/SHAPE/EXITS/ENGINE/BATCH`: of a ViT and of a BERT with random weights, exits are drawn, uniformly over layers or as a trained
//! model's; the head is computed and read after every layer all the same. `exit_speedup/trained/..` is that model on images it has not seen:
//! a 12-layer ViT of d = 48 that learns the digits before the clock starts, or the model and data of `LAYERWISE_TRAINED` and
//! `LAYERWISE_TRAINED_DATA`, such as `f05_early_exit` trains and stores them. Layer ratios are printed. Times of pools are those of 64 samples
//! while 64 clients ask for one each, again and again.
//!
//! ```sh
//! cargo bench --bench exit_speedup
//! cargo bench --bench exit_speedup -- --json --model out/runs/models/NAME --data DIR --batch 64 --threshold 0.9
//! ```
//!
//! With `--json` one model and batch are measured on real images, all engines in turn, and ratios are of one run.

mod cases;

use std::{
    path::{Path, PathBuf},
    sync::atomic::{AtomicUsize, Ordering},
    time::Instant,
};

use anyhow::{Context, Result, bail};
use candle_core::{DType, Device::Cpu, Tensor};
use clap::Parser;
use criterion::{BenchmarkGroup, BenchmarkId, measurement::WallTime};
use layerwise::{
    exit::{
        Compaction, CostTable, Engine, FixedDepth, Policy, PoolConfig, ServeConfig, Signal, Thresholds,
        flop_ratio, histogram, layer_ratio, leave_early, measure, serve,
    },
    models::{Batch, Tapped, Vit},
    ops::init,
    train::{Hooks, Schedule, TrainConfig, train},
};
use layerwise_example_common::{
    data_sets::embedded_digits,
    input::Input,
    layers::{Source, labelled},
    recipes::digits_vit,
};
use serde_json::json;

use self::cases::{Case, Measured, Numbers, Peak, Timing, Use, device, drawn::Drawn, finished};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const BATCHES: [usize; 4] = [1, 16, 64, 256];
const BATCHES_OF_A_GPU: [usize; 4] = [1, 64, 256, 1024];
/// Of requests with one sample each, and the batch that they are compared with.
const CLIENTS: usize = 64;
const THRESHOLD: f64 = 0.9;

/// One model on real images.
#[derive(Parser)]
struct Flags {
    #[command(flatten)]
    timing: Timing,
    /// Folder of a trained ViT.
    #[arg(long)]
    model: PathBuf,
    /// Folder of its data set.
    #[arg(long)]
    data: PathBuf,
    /// Held-out images to measure on, from the first on.
    #[arg(long, default_value_t = 1024)]
    images: usize,
    /// Images of a batch.
    #[arg(long, default_value_t = 64)]
    batch: usize,
    /// Largest softmax probability above which a sample leaves.
    #[arg(long, default_value_t = THRESHOLD)]
    threshold: f64,
    /// Also write the images as the model takes them, and their labels, to this safetensors file: what peers are measured on.
    #[arg(long)]
    dump: Option<PathBuf>,
}

fn main() -> Result<()> {
    cases::run::<Flags>(|flags| &flags.timing, line, bench)
}

/// All engines in turn over the images, batch by batch; then pools and batches of as many rows as there are clients, in turn.
fn line(flags: &Flags) -> Result<Measured> {
    let (model, images, labels) = trained(&flags.model, &flags.data, flags.images)?;
    if let Some(file) = &flags.dump {
        let labels = Tensor::new(labels.as_slice(), &Cpu)?.to_dtype(DType::I64)?;
        let tensors = [("images".to_owned(), images.inputs.clone()), ("labels".to_owned(), labels)];
        candle_core::safetensors::save(&tensors.into(), file)?;
    }
    let batches = || batches(&images, &labels, flags.batch);
    let policy = Thresholds::common(Signal::MaxProbability, flags.threshold, model.depth());
    let costs = CostTable::default();
    costs.prepare(&model, &first(&images, 1)?, flags.batch.max(CLIENTS))?;
    // The depth that costs as much as leaving early does.
    let mut layers = Vec::new();
    for batch in images.split(BATCHES[3])? {
        layers.extend(leave_early(&model, &batch, &policy)?.layer);
    }
    let mean = layers.iter().sum::<usize>() as f64 / layers.len() as f64;
    let cut = FixedDepth((mean.round() as usize).max(1));
    let none = Thresholds::none();
    let engine = |policy, compaction| Engine { policy, compaction };
    let engines = [
        engine(&policy, Compaction::Profitable(&costs)),
        engine(&policy, Compaction::Always),
        engine(&policy, Compaction::Never),
        engine(&cut, Compaction::Always),
        // No exits, again: what the ratio of a thing to itself is in this run.
        engine(&none, Compaction::Always),
    ];
    let mut reports = measure(&model, batches, &engines, flags.timing.rounds)?;
    let peak = Peak::now()?;
    let full = reports.pop().context("no report")?;
    let profitable = &reports[0];
    let names = ["profitable", "always", "never", "cut"];
    let all: serde_json::Map<String, serde_json::Value> =
        names.iter().zip(&reports).map(|(name, report)| ((*name).to_owned(), json!(report))).collect();
    let mut more = json!({
        "model": flags.model.file_name().map(|name| name.to_string_lossy()),
        "images": labels.len(), "batch": flags.batch, "threshold": flags.threshold, "cut_at": cut.0,
        "flop_ratio": flop_ratio(&profitable.histogram, &policy, &model.config().flops()),
        "full_accuracy": full.accuracy, "full_per_s": full.samples_per_s,
        "full_over_full": full.wall_ratio,
        "engines": all,
    });
    if flags.batch == CLIENTS {
        more["pools"] = json!(pools(&model, &policy, &costs, &images, flags.timing.rounds)?);
    }
    let seconds = labels.len() as f64 / profitable.samples_per_s;
    Ok(Measured { seconds: vec![seconds], peak, more })
}

/// Samples a second of pools that `CLIENTS` threads ask for one sample each, over those of the engine in batches of as many: the median of the
/// rounds' ratios, the two in turn.
fn pools(
    model: &Vit,
    policy: &dyn Policy,
    costs: &CostTable,
    images: &Batch,
    rounds: usize,
) -> Result<serde_json::Value> {
    let single = images.split(1)?;
    let engine = Engine { policy, compaction: Compaction::Profitable(costs) };
    let (mut ratios, mut rates, mut rows) = (Vec::new(), Vec::new(), Vec::new());
    let batched = || {
        let start = Instant::now();
        for batch in images.split(CLIENTS)? {
            engine.run(model, &batch)?;
        }
        anyhow::Ok(start.elapsed().as_secs_f64())
    };
    let pooled = || {
        let start = Instant::now();
        let rows = ask_all(model, policy, costs, &single)?;
        anyhow::Ok((start.elapsed().as_secs_f64(), rows))
    };
    for round in 0..=rounds {
        // Each goes first in turn.
        let ((pooled_s, mean_rows), batched_s) = if round % 2 == 0 {
            let batched_s = batched()?;
            (pooled()?, batched_s)
        } else {
            (pooled()?, batched()?)
        };
        if round > 0 {
            ratios.push(batched_s / pooled_s);
            rates.push(single.len() as f64 / pooled_s);
            rows.push(mean_rows);
        }
    }
    Ok(
        json!({ "clients": CLIENTS, "over_batches": cases::median(&ratios), "samples_per_s": cases::median(&rates),
        "rows_of_a_batch": cases::median(&rows), "ratios": ratios }),
    )
}

/// Clients on threads of their own, each asking for the next sample as soon as it has its answer. Returns the mean rows of a batch.
fn ask_all(
    model: &(impl Tapped + ?Sized),
    policy: &dyn Policy,
    costs: &CostTable,
    samples: &[Batch],
) -> Result<f64> {
    let pools = PoolConfig { max_batch: CLIENTS, ..Default::default() };
    let (client, server) = serve(ServeConfig { pools, ..Default::default() })?;
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..CLIENTS.min(samples.len()) {
            let (client, next) = (client.clone(), &next);
            scope.spawn(move || {
                while let Some(sample) = samples.get(next.fetch_add(1, Ordering::Relaxed)) {
                    client.ask(sample.clone()).expect("an answer");
                }
            });
        }
        drop(client);
        let work = server.run(model, policy, costs)?.work;
        Ok(work.rows as f64 / work.batches as f64)
    })
}

fn bench() -> Result<()> {
    let mut criterion = cases::criterion(10, (1, 3));
    let mut group = criterion.benchmark_group("exit_speedup");
    let (cases, batches) = match device()?.is_cuda() {
        true => ([Case::Vit384, Case::Bert384], BATCHES_OF_A_GPU),
        false => ([Case::Vit192, Case::Bert384], BATCHES),
    };
    let (model, images) =
        match (std::env::var_os("LAYERWISE_TRAINED"), std::env::var_os("LAYERWISE_TRAINED_DATA")) {
            (Some(model), Some(data)) => {
                let (model, images, _) = trained(Path::new(&model), Path::new(&data), batches[3])?;
                (model, images)
            }
            (None, None) => aligned_digits()?,
            _ => bail!("LAYERWISE_TRAINED and LAYERWISE_TRAINED_DATA: expected both or none"),
        };
    let policy = Thresholds::common(Signal::MaxProbability, THRESHOLD, model.depth());
    let layers = leave_early(&model, &images, &policy)?.layer;
    let trained: Vec<f64> = histogram(&layers, model.depth()).iter().map(|&count| count as f64).collect();
    let held_out = images.rows()?;
    for rows in batches.into_iter().filter(|&rows| rows <= held_out) {
        compare(&mut group, "trained", &model, &first(&images, rows)?, &policy)?;
    }
    for case in cases {
        let loaded = case.load(batches[3], Use::Serve, Numbers::F32)?;
        for (name, weights) in [("uniform", vec![1.; case.depth()]), ("as-trained", trained.clone())] {
            let (name, policy) = (format!("{}/{name}", case.name()), Drawn::new(weights));
            for rows in batches {
                compare(&mut group, &name, &*loaded.model, &first(&loaded.batch, rows)?, &policy)?;
            }
        }
    }
    group.finish();
    criterion.final_summary();
    Ok(())
}

/// Times one batch under every engine.
#[allow(clippy::print_stderr, reason = "the operation count belongs beside the times")]
fn compare(
    group: &mut BenchmarkGroup<'_, WallTime>,
    name: &str,
    model: &(impl Tapped + ?Sized),
    batch: &Batch,
    policy: &dyn Policy,
) -> Result<()> {
    let rows = batch.rows()?;
    let layers = leave_early(model, batch, policy)?.layer;
    let ratio = layer_ratio(&histogram(&layers, model.depth()));
    eprintln!("{name}, batch {rows}: layer ratio {ratio:.2}");
    let costs = CostTable::default();
    costs.prepare(model, batch, rows)?;
    let cut = FixedDepth(((model.depth() as f64 / ratio).round() as usize).max(1));
    let none = Thresholds::none();
    let mut engines: Vec<(&str, &dyn Policy, Compaction<'_>)> = vec![
        ("full", &none, Compaction::Always),
        ("cut", &cut, Compaction::Always),
        ("always", policy, Compaction::Always),
        ("profitable", policy, Compaction::Profitable(&costs)),
    ];
    if device()?.is_cuda() {
        engines.push(("late", policy, Compaction::Late));
    }
    for (engine, policy, compaction) in engines {
        let engine_of = Engine { policy, compaction };
        group.bench_function(BenchmarkId::new(format!("{name}/{engine}"), rows), |bencher| {
            bencher.iter(|| finished(|| Ok(engine_of.run(model, batch)?)).expect("a batch"));
        });
    }
    if rows == CLIENTS {
        // Several times as many as there are clients, so that most are asked while others are on their way.
        let single: Vec<Batch> =
            (0..8).map(|_| batch.split(1)).collect::<candle_core::Result<Vec<_>>>()?.concat();
        group.bench_function(BenchmarkId::new(format!("{name}/pools"), rows), |bencher| {
            bencher.iter_custom(|iterations| {
                let start = Instant::now();
                for _ in 0..iterations {
                    ask_all(model, policy, &costs, &single).expect("answers");
                }
                start.elapsed() / 8
            });
        });
    }
    Ok(())
}

fn first(batch: &Batch, rows: usize) -> candle_core::Result<Batch> {
    let part = |xs: &Tensor| xs.narrow(0, 0, rows);
    Ok(Batch {
        inputs: part(&batch.inputs)?,
        mask: batch.mask.as_ref().map(part).transpose()?,
        token_types: batch.token_types.as_ref().map(part).transpose()?,
    })
}

/// Samples with labels, `size` at a time.
fn batches<'a>(
    images: &'a Batch,
    labels: &'a [u32],
    size: usize,
) -> impl Iterator<Item = candle_core::Result<(Batch, Tensor)>> + 'a {
    (0..labels.len()).step_by(size.max(1)).map(move |start| {
        let rows = size.min(labels.len() - start);
        Ok((
            images.inputs.narrow(0, start, rows)?.into(),
            Tensor::new(&labels[start..start + rows], images.inputs.device())?,
        ))
    })
}

/// A packed model of a folder, and the first images of its data set that were held out.
fn trained(model: &Path, data: &Path, images: usize) -> Result<(Vit, Batch, Vec<u32>)> {
    let vit = Vit::load(model, device()?)?.packed()?;
    let input = Input::open(Some(data), Some(images), model, vit.config())?;
    let labels = input.labels().with_context(|| format!("{}: no labels", data.display()))?.to_vec();
    let parts = labelled(&input, labels.len(), 100, device()?).map(|batch| Ok(batch?.0.inputs));
    let images = Tensor::cat(&parts.collect::<candle_core::Result<Vec<_>>>()?, 0)?;
    Ok((vit, images.into(), labels))
}

/// A 12-layer ViT after 40 epochs of the alternating objective on the digits, and 256 of the images that it did not see.
fn aligned_digits() -> Result<(Vit, Batch)> {
    let data = embedded_digits(usize::MAX, device()?)?;
    let vit = Vit::new(digits_vit(), &mut init::rng(0), device()?)?;
    let settings =
        TrainConfig { epochs: 40, batch_size: 48, schedule: Schedule::OneCycle, ..Default::default() };
    train(&vit, vit.params(), &data, &settings, None, Hooks::default())?;
    let images = data.test_batches().next().context("no images held out")??.0;
    Ok((vit.packed()?, first(&images, 256)?))
}
