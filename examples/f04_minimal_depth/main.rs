//! Figure 4 of the paper: one aligned model cut at many depths against models trained at each. See the README beside this file.

mod show;

use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use candle_core::Device;
use clap::Parser;
use layerwise::exit::minimal_depth;
use layerwise_example_common::{
    Results,
    cut::cut_and_check,
    hub,
    images::TEST_BATCH,
    layers::labelled,
    layerwise::{Layerwise, record},
    run_main,
    vision::{Plan, TrainFlags, Vision},
};
use serde_json::json;

use show::show;

layerwise_example_common::fast_allocator!();

const NAME: &str = "f04_minimal_depth";
/// Points that a cut model may lose to the best layer.
const TOLERANCES: [f64; 3] = [0.5, 1., 2.];

/// Trains standard models of several depths and one aligned one, cuts that at the same depths, and finds the smallest that will do.
#[derive(Parser)]
#[command(name = NAME)]
struct Flags {
    #[command(flatten)]
    train: TrainFlags,
    /// Depths of the shallower standard models.
    #[arg(long, value_name = "LAYERS", value_delimiter = ',', default_value = "6,9")]
    depths: Vec<usize>,
}

fn main() -> ExitCode {
    let flags = Flags::parse();
    run_main(&flags.train.common, |device| f04(&flags, &device))
}

fn f04(flags: &Flags, device: &Device) -> Result<()> {
    let train = flags.train.clone().fetched(hub!())?;
    let vision = Vision::training(&train, device)?;
    for depth in &flags.depths {
        let most = vision.depth();
        ensure!(
            (1..most).contains(depth),
            "--depths {depth}: the models have {most} layers, expected fewer and at least 1"
        );
    }
    let common = &train.common;
    let out = common.out_folder(NAME)?;
    let mut results = Results::new(NAME, vision.settings(), common.seed, device);
    let shallow = flags.depths.iter().map(|&layers| {
        let name = format!("standard, {layers} layers");
        Plan {
            run: format!("standard-{layers}-layers"),
            layers: Some(layers),
            name,
            ..Plan::standard(common.seed)
        }
    });
    let aligned = Plan::aligned(common.seed);
    let plans: Vec<Plan> = shallow.chain([Plan::standard(common.seed), aligned.clone()]).collect();
    let models = vision.study(&plans)?.into_iter().map(Layerwise::of).collect::<Result<Vec<_>>>()?;
    record(&mut results, &models);
    for model in &models {
        let entry = results.models.entry(model.name().to_owned()).or_default();
        entry.more.insert("evaluations".into(), json!(model.subject.evaluations));
    }

    let whole = vision.whole(&aligned)?;
    let aligned = models.last().context("no model")?;
    let accuracy = aligned.subject.accuracy();
    let depths = flags.depths.iter().copied().chain([accuracy.len()]);
    let minimal = TOLERANCES.map(|points| minimal_depth(&accuracy, points / 100.));
    let mut wanted: Vec<usize> = depths.chain(minimal.into_iter().flatten()).collect();
    wanted.sort_unstable();
    wanted.dedup();
    let mut cuts = Vec::new();
    for depth in wanted {
        let batches = labelled(vision.source(), vision.samples(), TEST_BATCH, device);
        let folder = out.join(format!("cut-{depth}"));
        cuts.push(cut_and_check(&whole, depth, vision.preprocess(), batches, &folder, device)?);
    }
    results.more.insert("cuts".into(), json!(cuts));
    show(&out, &mut results, &vision, &models, &cuts)
}
