//! Figure 12 of the paper: one checkpoint, every depth, and what each costs. See the README beside this file.

mod cost;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, Result, ensure};
use candle_core::Device;
use clap::Parser;
use layerwise::{
    exit::{self, DeviceLimits, best_depth, evaluate},
    models::Vit,
};
use layerwise_example_common::{
    Report, Results, Table,
    cut::{save, weights_size},
    hub,
    images::TEST_BATCH,
    layers::labelled,
    plots::{self, Series},
    progress, run_main,
    table::{decimals, percent},
    vision::{Plan, Vision, VisionFlags},
};
use serde_json::json;

layerwise_example_common::fast_allocator!();

const NAME: &str = "f12_elastic";
/// Images at once, for the latency of a batch.
const BATCH: usize = 64;

/// Cuts one aligned model at every depth, measures file, memory, latency and accuracy, and picks the most accurate within a budget.
#[derive(Parser)]
#[command(name = NAME)]
struct Flags {
    #[command(flatten)]
    vision: VisionFlags,
    /// Largest time to answer one image, in milliseconds [default: half of the whole model's].
    #[arg(long, value_name = "MS")]
    latency: Option<f64>,
    /// Largest memory of a process that loads the model and answers a batch, beyond what it has before, in MiB.
    #[arg(long, value_name = "MIB")]
    memory: Option<f64>,
    /// Measures the memory of this folder's model, and nothing else.
    #[arg(long, value_name = "DIR", hide = true)]
    memory_of: Option<PathBuf>,
}

/// A depth and what it costs.
struct Depth {
    depth: usize,
    accuracy: f64,
    bytes: u64,
    /// Median milliseconds of one image, and of [`BATCH`].
    latency: [f64; 2],
    /// MiB; none where the system does not tell.
    memory: Option<f64>,
}

impl Depth {
    fn cost(&self) -> exit::Depth {
        let Self { depth, accuracy, latency, memory, .. } = *self;
        // What cannot be told is within no limit.
        let bytes = memory.map_or(u64::MAX, bytes_of);
        exit::Depth { depth, accuracy, latency_s: latency[0] / 1e3, bytes }
    }
}

fn bytes_of(mib: f64) -> u64 {
    (mib * f64::from(1 << 20)) as u64
}

fn main() -> ExitCode {
    let flags = Flags::parse();
    run_main(&flags.vision.train.common, |device| match &flags.memory_of {
        Some(folder) => cost::print_memory(folder, BATCH, &device),
        None => f12(&flags, &device),
    })
}

fn f12(flags: &Flags, device: &Device) -> Result<()> {
    let vision_flags = flags.vision.clone().fetched(hub!())?;
    let vision = Vision::open(&vision_flags, device)?;
    let common = &vision_flags.train.common;
    let out = common.out_folder(NAME)?;
    let mut results = Results::new(NAME, vision.settings(), common.seed, device);
    vision.labels().context("--data: accuracy needs labels, so a data set, not a folder of images")?;
    let subject = vision.study(&[Plan::aligned(common.seed)])?.pop().context("no model")?;
    ensure!(subject.scores.is_some(), "{}: no head for these classes", subject.name);
    results.models.insert(subject.name.clone(), subject.results());
    let whole = vision.whole(&Plan::aligned(common.seed))?;
    let mut models = Vec::new();
    for depth in 1..=subject.layers().len() {
        let folder = out.join(format!("depth-{depth}"));
        save(&whole.cut(depth)?, vision.preprocess(), &folder)?;
        models.push((folder.clone(), Vit::load(&folder, device)?.packed()?));
    }
    let latency = cost::latencies(&models, vision.source(), [1, BATCH], device)?;
    let mut depths = Vec::new();
    for (i, ((folder, model), latency)) in models.iter().zip(latency).enumerate() {
        let memory = cost::memory_of(folder, common)?;
        let scores = evaluate(model, labelled(vision.source(), vision.samples(), TEST_BATCH, device))?;
        let (accuracy, bytes) = (scores.accuracy[i], weights_size(folder)?);
        depths.push(Depth { depth: i + 1, accuracy, bytes, latency, memory });
    }
    let budget = flags.latency.unwrap_or(depths.last().context("no layer")?.latency[0] / 2.);
    let limits = DeviceLimits { latency_s: Some(budget / 1e3), bytes: flags.memory.map(bytes_of) };
    let costs: Vec<exit::Depth> = depths.iter().map(Depth::cost).collect();
    let picked = best_depth(&costs, &limits).map(|best| &depths[best.depth - 1]);
    results.more.insert("depths".into(), depths.iter().map(|d| json!({ "depth": d.depth, "accuracy": d.accuracy, "bytes": d.bytes,
        "latency_ms": d.latency[0], "batch_latency_ms": d.latency[1], "batch": BATCH, "memory_mib": d.memory })).collect());
    results.more.insert(
        "budget".into(),
        json!({ "latency_ms": budget, "memory_mib": flags.memory, "picked": picked.map(|depth| depth.depth) }),
    );
    let told = match picked {
        Some(Depth { depth, accuracy, .. }) => format!(
            "The most accurate depth that answers an image in {budget:.2} ms{} has {depth} layers and {} % accuracy: {}.",
            flags.memory.map(|most| format!(" and {most} MiB")).unwrap_or_default(),
            percent(*accuracy),
            out.join(format!("depth-{depth}")).display()
        ),
        None => format!("No depth fits the budget: {budget:.2} ms an image, memory {:?} MiB.", flags.memory),
    };
    show(&out, &mut results, &depths, &told)
}

fn show(out: &Path, results: &mut Results, depths: &[Depth], told: &str) -> Result<()> {
    let mut table =
        Table::new(["depth", "accuracy", "file, MB", "memory, MiB", "one image, ms", "64 images, ms"]);
    for Depth { depth, accuracy, bytes, latency: [one, batch], memory } in depths {
        let memory = decimals(memory.unwrap_or(f64::NAN), 1);
        let (file, one, batch) = (decimals(*bytes as f64 / 1e6, 2), decimals(*one, 2), decimals(*batch, 1));
        table.row([depth.to_string(), percent(*accuracy), file, memory, one, batch]);
    }
    progress::print(&format!("\nOne checkpoint at every depth:\n{table}\n{told}\n"));
    let line = |name: &str, x: fn(&Depth) -> f64| {
        Series::new(name, depths.iter().map(|depth| (x(depth), depth.accuracy)))
    };
    let panel = |title: &str, label: &str, x| {
        plots::curves(title, (label, None), ("fraction correct", None), &[line("one aligned model", x)])
    };
    let panels = vec![
        panel("Time of one image", "milliseconds", |depth| depth.latency[0]),
        panel("Size of the file", "MB", |depth| depth.bytes as f64 / 1e6),
    ];
    let figure = plots::write(&out.join("depths"), panels, 2)?;
    Report::new("One checkpoint, every depth")
        .paragraph(told)
        .figure(&figure, "Accuracy against what a depth costs: a point each, from layer 1 on.")
        .table(&table, "Medians of all depths measured in turn. Memory is the peak of a process of its own that loads the model and answers 64 \
            images, beyond what it had before: the median of five.")
        .close(results, out)
}
