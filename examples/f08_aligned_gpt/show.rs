//! Tables, figures and the page.

use std::path::Path;

use anyhow::Result;
use layerwise_example_common::{
    Report, Results, Table,
    curves::mean_curve,
    language::LayersOfLanguage,
    plots::{self, Panel, Series},
    progress,
    table::{decimals, percent},
};

/// Models, each with one entry a seed.
pub(crate) type Models = [Vec<LayersOfLanguage>];

type Values = fn(&LayersOfLanguage) -> Vec<f64>;

pub(crate) fn show(out: &Path, results: &mut Results, models: &Models) -> Result<()> {
    let perplexity = table(models, geometric(|model| model.perplexity.clone()), |value| decimals(value, 1));
    let accuracy = table(models, mean(|model| model.accuracy.clone()), percent);
    let agreement = table(models, mean(|model| model.agreement.clone()), percent);
    progress::print(&format!(
        "\nPerplexity after each layer, geometric means over seeds:\n{perplexity}\nTokens told rightly (%):\n{accuracy}\n\
         Tokens for which a layer says what the last one says (%):\n{agreement}"
    ));
    let log =
        |model: &LayersOfLanguage| model.loss.iter().map(|loss| loss / std::f64::consts::LN_10).collect();
    let mut panels = vec![
        panel(models, "accuracy", |model| model.accuracy.clone()),
        panel(models, "log10 of perplexity", log),
        panel(models, "diversity", |model| model.said.diversity.clone()),
    ];
    let coherent = models.iter().flatten().all(|model| model.said.coherence.is_some());
    if coherent {
        panels
            .insert(2, panel(models, "coherence", |model| model.said.coherence.clone().unwrap_or_default()));
    }
    let quality = plots::write(&out.join("layers"), panels, 2)?;
    let alike = vec![
        panel(models, "COS to the last layer", |model| model.cos_to_last.clone()),
        panel(models, "agreement with the last layer", |model| model.agreement.clone()),
        panel(models, "share of tokens saturated so far", saturated),
    ];
    let alike = plots::write(&out.join("alike"), alike, 3)?;
    let mut report = Report::new("GPT-2, layer by layer");
    report
        .paragraph(
            "Every layer predicts the next token through the final norm and the table of words. Accuracy and perplexity are of all text held out; COS (each \
             layer centred over the tokens), agreement and saturation of 16 blocks from all over it. Texts are continued by nucleus sampling, p = 0.95, by one layer alone. \
             Diversity is the product of the shares of different 2-, 3- and 4-grams in a continuation; coherence the cosine of prompt and continuation under a sentence \
             encoder.",
        )
        .figure(&quality, "What each layer knows and says, means over seeds.")
        .figure(&alike, "How alike layers are to the last one, means over seeds.")
        .table(&perplexity, "Perplexity after each layer, geometric means over seeds.")
        .table(&accuracy, "Tokens told rightly after each layer in percent, means over seeds.")
        .table(&agreement, "Tokens for which a layer says what the last one says in percent, means over seeds.");
    if let Some(first) = models.iter().find_map(|seeds| seeds.first()) {
        report.heading("What layers say").paragraph(&format!("Prompt: {}", first.said.prompt));
    }
    for model in models.iter().filter_map(|seeds| seeds.first()) {
        let mut said = Table::new([format!("layer of {}", model.name), "continuation".to_owned()]);
        for (layer, text) in (1..).zip(&model.said.continuations) {
            said.row([layer.to_string(), text.clone()]);
        }
        report.table(&said, &format!("{}, first seed.", model.name));
    }
    report.close(results, out)
}

/// Share of tokens whose answer no longer changes after each layer.
fn saturated(model: &LayersOfLanguage) -> Vec<f64> {
    let all: usize = model.saturation.iter().sum();
    let mut so_far = 0;
    let share = |count: &usize| {
        so_far += count;
        so_far as f64 / all as f64
    };
    model.saturation.iter().map(share).collect()
}

fn mean(values: Values) -> impl Fn(&[LayersOfLanguage]) -> Vec<f64> {
    move |seeds| mean_curve(&seeds.iter().map(values).collect::<Vec<_>>())
}

/// What the mean loss is the logarithm of.
fn geometric(values: Values) -> impl Fn(&[LayersOfLanguage]) -> Vec<f64> {
    move |seeds| {
        let logs = seeds.iter().map(|model| values(model).iter().map(|value| value.ln()).collect());
        mean_curve(&logs.collect::<Vec<_>>()).into_iter().map(f64::exp).collect()
    }
}

fn table(
    models: &Models,
    values: impl Fn(&[LayersOfLanguage]) -> Vec<f64>,
    cell: fn(f64) -> String,
) -> Table {
    let rows: Vec<(String, Vec<f64>)> = models.iter().map(|seeds| (name(seeds), values(seeds))).collect();
    let depth = rows.iter().map(|(_, row)| row.len()).max().unwrap_or_default();
    let mut table =
        Table::new(["model".to_owned()].into_iter().chain((1..=depth).map(|layer| layer.to_string())));
    for (name, row) in rows {
        table.row([name].into_iter().chain(row.into_iter().map(cell)));
    }
    table
}

fn panel(models: &Models, label: &str, values: Values) -> Panel {
    let series: Vec<Series> =
        models.iter().map(|seeds| Series::per_layer(name(seeds), 1, &mean(values)(seeds))).collect();
    plots::lines(label, "layer", label, &series, None)
}

fn name(seeds: &[LayersOfLanguage]) -> String {
    seeds.first().map(|model| model.name.clone()).unwrap_or_default()
}
