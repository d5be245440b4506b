//! Figure 10 of the paper: what each block adds to its input. See the README beside this file.

use std::{path::Path, process::ExitCode};

use anyhow::Result;
use candle_core::Device;
use clap::Parser;
use layerwise::similarity::{BlockRelations, Centring, block_influence, block_relations};
use layerwise_example_common::{
    Report, Results, Table,
    curves::named,
    hub, plots, progress, run_main,
    table::{columns, per_layer, thousandths},
    vision::{Subject, Vision, VisionFlags},
};
use ndarray::Array1;
use serde_json::json;

layerwise_example_common::fast_allocator!();

const NAME: &str = "f10_residual_branch";

/// Measures how alike the input and the output of each block are, and how large and how orthogonal what it adds is.
#[derive(Parser)]
#[command(name = NAME)]
struct Flags {
    #[command(flatten)]
    vision: VisionFlags,
}

/// What was measured of one model.
struct Measured {
    subject: Subject,
    /// Of blocks `2..=L`: all inputs of block 1 are equal, so that centred nothing is left of them.
    relations: BlockRelations,
    /// Of blocks `1..=L`.
    influence: Vec<f64>,
}

fn main() -> ExitCode {
    let flags = Flags::parse().vision;
    run_main(&flags.train.common, |device| f10(&flags.clone().fetched(hub!())?, &device))
}

fn f10(flags: &VisionFlags, device: &Device) -> Result<()> {
    let vision = Vision::open(flags, device)?;
    let out = flags.train.common.out_folder(NAME)?;
    let seed = flags.train.common.seed;
    let mut results = Results::new(NAME, vision.settings(), seed, device);
    let models: Vec<Measured> =
        vision.standard_and_aligned()?.into_iter().map(measure).collect::<Result<_>>()?;
    record(&mut results, &models);
    show(&out, &mut results, &vision, &models)
}

fn record(results: &mut Results, models: &[Measured]) {
    for Measured { subject, relations, influence } in models {
        let mut entry = subject.results();
        entry.more.insert("adjacent_cos".into(), json!(relations.adjacent_cos.to_vec()));
        entry.more.insert("norm_ratio".into(), json!(relations.norm_ratio.to_vec()));
        entry.more.insert("branch_cos".into(), json!(relations.branch_cos.to_vec()));
        entry.more.insert("block_influence".into(), json!(influence));
        results.models.insert(subject.name.clone(), entry);
    }
}

fn show(out: &Path, results: &mut Results, vision: &Vision<'_>, models: &[Measured]) -> Result<()> {
    let table = table(models);
    progress::print(&format!(
        "\nPer block, with input h and output h + f: COS of both, |h| / |f|, COS of h and f; block influence:\n{table}"
    ));

    let panel = |title: &str, label: &str, first: usize, values: fn(&Measured) -> Vec<f64>, range| {
        plots::lines(title, "block", label, &plots::series(first, curves(models, values)), range)
    };
    let panels = vec![
        panel("Input and output", "COS", 2, |model| model.relations.adjacent_cos.to_vec(), Some((0., 1.))),
        panel("Norm ratio", "|h| / |f|", 2, |model| model.relations.norm_ratio.to_vec(), None),
        panel(
            "Input and what is added",
            "COS",
            2,
            |model| model.relations.branch_cos.to_vec(),
            Some((-1., 1.)),
        ),
        panel("Block influence", "1 - cos", 1, |model| model.influence.clone(), None),
    ];
    let figure = plots::write(&out.join("blocks"), panels, 2)?;
    Report::new("What each block adds")
        .paragraph(&vision.about())
        .paragraph(
            "A block turns h into h + f. Norms are of centred features, too, and all are means over samples. The inputs of block 1 are equal \
             for all images, so that nothing is left of them. Block influence (Men et al., 2024) is 1 less the mean cosine of input and output, \
             not centred.",
        )
        .figure(&figure, "Similarity of each block's input and output, size of the input over the size of what is added, similarity of both, and \
            block influence.")
        .table(&table, "Per block.")
        .close(results, out)
}

fn measure(subject: Subject) -> Result<Measured> {
    let relations = block_relations(subject.layers(), Centring::Samples)?;
    let influence = block_influence(&subject.features)?.to_vec();
    Ok(Measured { subject, relations, influence })
}

fn table(models: &[Measured]) -> Table {
    let column = |name: &str, values| columns(name, thousandths, curves(models, values));
    let all = [
        column("COS(h, h + f)", |model| from_block_2(&model.relations.adjacent_cos)),
        column("|h| / |f|", |model| from_block_2(&model.relations.norm_ratio)),
        column("COS(h, f)", |model| from_block_2(&model.relations.branch_cos)),
        column("influence", |model| model.influence.clone()),
    ];
    per_layer(1, &all.concat())
}

fn curves(models: &[Measured], values: fn(&Measured) -> Vec<f64>) -> Vec<(&str, Vec<f64>)> {
    named(models, |model| &model.subject.name, values)
}

/// A row for block 1, which has none.
fn from_block_2(values: &Array1<f64>) -> Vec<f64> {
    [vec![f64::NAN], values.to_vec()].concat()
}
