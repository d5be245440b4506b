//! Figure 4 of the paper: one aligned model cut at many depths against models trained at each. See the README beside this file.

use std::{path::Path, process::ExitCode};

use anyhow::{Context, Result, ensure};
use candle_core::Device;
use clap::Parser;
use layerwise::exit::minimal_depth;
use layerwise_example_common::{
    Report, Results, Table,
    cut::{Cut, cut_and_check},
    images::TEST_BATCH,
    layers::labelled,
    layerwise::{Layerwise, record},
    plots::{self, Series},
    progress, run_main,
    table::{decimals, percent},
    vision::{Plan, TrainFlags, Vision},
};
use serde_json::json;

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
    let vision = Vision::training(&flags.train, device)?;
    for depth in &flags.depths {
        let most = vision.depth();
        ensure!(
            (1..most).contains(depth),
            "--depths {depth}: the models have {most} layers, expected fewer and at least 1"
        );
    }
    let common = &flags.train.common;
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

fn show(
    out: &Path,
    results: &mut Results,
    vision: &Vision<'_>,
    models: &[Layerwise],
    cuts: &[Cut],
) -> Result<()> {
    let (aligned, standard) = models.split_last().context("no model")?;
    let mut depths = Table::new(["depth", "trained at it", "aligned, cut there", "difference", "bytes"]);
    for cut in cuts {
        let own =
            standard.iter().find(|model| model.cos.len() == cut.depth).map(Layerwise::last).transpose()?;
        let own = own.unwrap_or(f64::NAN);
        let (trained, difference) = (percent(own), decimals(100. * (cut.accuracy - own), 1));
        depths.row([
            cut.depth.to_string(),
            trained,
            percent(cut.accuracy),
            difference,
            cut.bytes.to_string(),
        ]);
    }
    let mut minimal = Table::new(["points lost to the best layer", "standard", "aligned"]);
    for points in TOLERANCES {
        let of = |model: &Layerwise| minimal_depth(&model.subject.accuracy(), points / 100.);
        let found = [standard.last().and_then(of), of(aligned)];
        results.more.entry("minimal_depth").or_insert_with(|| json!({}))[points.to_string()] = json!(found);
        let [standard, aligned] = found.map(|depth| depth.map_or("-".to_owned(), |depth| depth.to_string()));
        minimal.row([points.to_string(), standard, aligned]);
    }
    progress::print(&format!(
        "\nAccuracy (%) by depth:\n{depths}\nSmallest depth within a tolerance:\n{minimal}"
    ));

    let layer = |model: &Layerwise, layer: usize, name: String| {
        let points = model.subject.evaluations.iter();
        Series::new(name, points.map(|e| (e.epoch as f64, e.evaluation.accuracy[layer - 1])))
    };
    let mut learning: Vec<Series> =
        standard.iter().map(|model| layer(model, model.cos.len(), model.name().to_owned())).collect();
    let kept = cuts.iter().filter(|cut| standard.iter().any(|model| model.cos.len() == cut.depth));
    learning.extend(kept.map(|cut| layer(aligned, cut.depth, format!("aligned, layer {}", cut.depth))));
    let by_depth = [
        Series::new(
            "trained at this depth",
            standard.iter().map(|m| (m.cos.len() as f64, m.last().unwrap_or(f64::NAN))),
        ),
        Series::per_layer("aligned, cut at this depth", 1, &aligned.subject.accuracy()),
    ];
    let by_depth = plots::lines("Accuracy by depth", "layers", "fraction correct", &by_depth, None);
    let by_depth = plots::write(&out.join("depth"), vec![by_depth], 1)?;
    let learning = plots::lines("Convergence", "epoch", "fraction correct", &learning, None);
    let convergence = plots::write(&out.join("convergence"), vec![learning], 1)?;
    Report::new("One aligned model, cut, against models trained at each depth")
        .paragraph(&vision.about())
        .figure(&by_depth, "Accuracy of models trained at a depth, and of the one aligned model cut there.")
        .figure(&convergence, "Accuracy on held-out images during training.")
        .table(&depths, "Each cut model was saved, read back, and answers bit for bit as the exit does.")
        .table(&minimal, "The first layer within so many points of the model's best.")
        .close(results, out)
}
