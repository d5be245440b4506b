//! Tables, figures and the page.

use std::path::Path;

use anyhow::Result;
use layerwise::data::glue::Task;
use layerwise_example_common::{
    Report, Results, Table,
    curves::mean_curve,
    glue::Measured,
    plots::{self, Panel, Series},
    progress,
    table::{decimals, percent},
    task_exits::{A_POINT, in_words},
};

/// Tasks, each with its models, each with one entry a seed.
pub(crate) type Tasks = [(Task, Vec<Vec<Measured>>)];

pub(crate) fn show(out: &Path, results: &mut Results, tasks: &Tasks) -> Result<()> {
    let (layers, exits) = (score_table(tasks), exit_table(tasks));
    progress::print(&format!(
        "\nScore after each layer (%), means over seeds:\n{layers}\nLeaving early:\n{exits}"
    ));
    let score = panels(tasks, "score", |model| &model.score);
    let cos = panels(tasks, "COS to the last layer", |model| &model.cos_to_last);
    let score = plots::write(&out.join("scores"), score, 3)?;
    let cos = plots::write(&out.join("cos"), cos, 3)?;
    let ratios = tasks.iter().map(|(task, models)| {
        let series: Vec<Series> = models.iter().filter_map(|seeds| seeds.first()).map(exits_of).collect();
        let x = ("layers of the model / layers taken", None);
        plots::curves(task.name(), x, ("score", None), &series)
    });
    let ratios = plots::write(&out.join("exits"), ratios.collect(), 3)?;
    let metrics = "Scores are the tasks' own: Matthews' correlation (CoLA), the mean of F1 and accuracy (MRPC, QQP), the mean of Pearson's and \
        Spearman's correlation (STS-B), accuracy (the others), of the samples held out.";
    Report::new("BERT on GLUE, layer by layer")
        .paragraph(metrics)
        .paragraph(
            "Layers are those after each block, at the first token, or, where --pooling or the model's folder says so, the mean of all; each exit is pooler and classifier. COS is the cosine of a sample's \
             features in two layers, each centred over the samples; its mean over samples.",
        )
        .figure(&score, "Score of the exit after each layer, means over seeds.")
        .figure(&cos, "Similarity of each layer to the last.")
        .figure(&ratios, "Leaving where the largest probability is above a threshold; of a number, where a learned gate says that it is close to the last layer's (or, without \
            one, where it moved less than a threshold); the first seed.")
        .table(&layers, "Score after each layer in percent, means over seeds.")
        .table(&exits, "The boldest thresholds, and the first layers that they are asked after, that cost at most a point of the score; the first seed. They were compared on the samples that they are scored on.")
        .close(results, out)
}

/// A row for each task and model.
fn score_table(tasks: &Tasks) -> Table {
    let depth = tasks
        .iter()
        .flat_map(|(_, models)| models)
        .map(|seeds| mean(seeds, |model| &model.score).len())
        .max();
    let layers = (1..=depth.unwrap_or_default()).map(|layer| layer.to_string());
    let mut table = Table::new(["task".to_owned(), "model".to_owned()].into_iter().chain(layers));
    for (task, models) in tasks {
        for seeds in models {
            let scores = mean(seeds, |model| &model.score).into_iter().map(percent);
            table.row([task.name().to_owned(), name(seeds)].into_iter().chain(scores));
        }
    }
    table
}

/// What costs at most a point.
fn exit_table(tasks: &Tasks) -> Table {
    let mut table = Table::new([
        "task",
        "model",
        "signal",
        "from layer",
        "threshold",
        "score",
        "points lost",
        "layer ratio",
    ]);
    for (task, models) in tasks {
        for model in models.iter().filter_map(|seeds| seeds.first()) {
            for exits in &model.exits {
                if let Some(exit) = exits.within(A_POINT) {
                    table.row([
                        task.name().to_owned(),
                        model.name.clone(),
                        in_words(&exits.signal).to_owned(),
                        exit.from.to_string(),
                        decimals(exit.threshold, 4),
                        percent(exit.score),
                        decimals(100. * (exits.full - exit.score), 1),
                        decimals(exit.layer_ratio, 2),
                    ]);
                }
            }
        }
    }
    table
}

fn panels(tasks: &Tasks, label: &str, values: fn(&Measured) -> &Vec<f64>) -> Vec<Panel> {
    let panel = |(task, models): &(Task, Vec<Vec<Measured>>)| {
        let series: Vec<Series> =
            models.iter().map(|seeds| Series::per_layer(name(seeds), 1, &mean(seeds, values))).collect();
        plots::lines(task.name(), "layer", label, &series, None)
    };
    tasks.iter().map(panel).collect()
}

fn exits_of(model: &Measured) -> Series {
    let leaving = model.exits_taken().map_or(&[][..], |exits| &exits.leaving);
    Series::new(model.name.clone(), leaving.iter().map(|exit| (exit.layer_ratio, exit.score)))
}

fn name(seeds: &[Measured]) -> String {
    seeds.first().map(|model| model.name.clone()).unwrap_or_default()
}

fn mean(seeds: &[Measured], values: fn(&Measured) -> &Vec<f64>) -> Vec<f64> {
    mean_curve(&seeds.iter().map(|model| values(model).clone()).collect::<Vec<_>>())
}
