//! Figure 7 of the paper: BERT on the nine tasks of GLUE, aligned and not. See the README beside this file.

mod show;

use std::process::ExitCode;

use anyhow::{Context, Result};
use candle_core::Device;
use clap::{Parser, ValueEnum};
use layerwise::{
    data::glue::Task,
    train::{LayerWeights, Objective},
};
use layerwise_example_common::{
    Results,
    glue::{Glue, GlueFlags, Measured, base_config},
    interrupt, run_main,
    training::recipe_settings,
    vision::Plan,
};
use serde_json::json;

layerwise_example_common::fast_allocator!();

const NAME: &str = "f07_aligned_bert";

/// Fine-tunes a BERT on tasks of GLUE, with the last layer's loss and aligned, and scores every layer.
#[derive(Parser)]
#[command(name = NAME)]
struct Flags {
    #[command(flatten)]
    glue: GlueFlags,
    /// Tasks, by name; or all.
    #[arg(long, value_name = "NAMES", value_delimiter = ',', default_value = "all")]
    task: Vec<String>,
    /// How models are trained.
    #[arg(long, value_enum, value_delimiter = ',', default_values = ["standard", "aligned"])]
    objective: Vec<Training>,
    /// Seeds, from --seed on; scores are means over them.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    seeds: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Training {
    /// The last layer's loss.
    Standard,
    /// All layers' losses at every step, one classifier: what we recommend.
    Aligned,
    /// The paper's: both in turn.
    Alternating,
    /// In turn, with a classifier for each layer: the multi-exit/classifiers baseline.
    MultiExit,
}

impl Training {
    fn plan(self, seed: u64) -> Plan {
        match self {
            Self::Standard => Plan::standard(seed),
            Self::Aligned => Plan::new("aligned", Objective::Aligned { weights: LayerWeights::Linear }, seed),
            Self::Alternating => Plan::new("alternating", Objective::default(), seed),
            Self::MultiExit => Plan::multi_exit(seed),
        }
    }
}

fn main() -> ExitCode {
    let flags = Flags::parse();
    run_main(&flags.glue.common, |device| f07(&flags, &device))
}

fn f07(flags: &Flags, device: &Device) -> Result<()> {
    let tasks = match flags.task.as_slice() {
        [all] if all == "all" => Task::ALL.to_vec(),
        names => names.iter().map(|name| name.parse()).collect::<Result<Vec<Task>, _>>().context("--task")?,
    };
    let common = &flags.glue.common;
    let seeds = common.seeds(flags.seeds)?;
    let (out, stop) = (common.out_folder(NAME)?, interrupt::stop_flag()?);
    let config = json!({ "preset": common.preset, "data": flags.glue.data, "model": flags.glue.model,
        "seeds": flags.seeds, "max_tokens": flags.glue.max_tokens, "train": recipe_settings(&Glue::recipe(&flags.glue)),
        "precision": flags.glue.recipe.precision });
    let mut results = Results::new(NAME, config, common.seed, device);
    let base = base_config(&flags.glue, device)?;
    // What is wrong with any task's files is said before anything is trained.
    let opened = tasks
        .iter()
        .map(|&task| Glue::open(&flags.glue, &base, task, device, stop).with_context(|| task.name()))
        .collect::<Result<Vec<_>>>()?;
    let mut shown = Vec::new();
    for (&task, glue) in tasks.iter().zip(&opened) {
        let mut models: Vec<Vec<Measured>> = Vec::new();
        for objective in &flags.objective {
            let of = |seed| glue.measured(&objective.plan(seed)).with_context(|| task.name());
            models.push(seeds.clone().map(of).collect::<Result<_>>()?);
        }
        let entry = json!({ "settings": glue.settings(), "models": models });
        results.more.entry("tasks").or_insert_with(|| json!({}))[task.name()] = entry;
        shown.push((task, models));
    }
    show::show(&out, &mut results, &shown)
}
