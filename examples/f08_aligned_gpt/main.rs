//! Figure 8 of the paper: GPT-2 on text of Wikipedia, aligned and not. See the README beside this file.

mod show;

use std::process::ExitCode;

use anyhow::Result;
use candle_core::Device;
use clap::{Parser, ValueEnum};
use layerwise::train::{LayerWeights, Objective};
use layerwise_example_common::{
    Results, interrupt,
    language::{Language, LanguageFlags, LayersOfLanguage},
    run_main,
    training::recipe_settings,
    vision::Plan,
};
use serde_json::json;

layerwise_example_common::fast_allocator!();

const NAME: &str = "f08_aligned_gpt";

/// Trains a GPT-2 with the last layer's loss and aligned, and measures what every layer knows and says.
#[derive(Parser)]
#[command(name = NAME)]
struct Flags {
    #[command(flatten)]
    language: LanguageFlags,
    /// How models are trained.
    #[arg(long, value_enum, value_delimiter = ',', default_values = ["standard", "aligned", "alternating", "rotating"])]
    objective: Vec<Training>,
    /// Seeds, from --seed on; numbers are means over them.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    seeds: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Training {
    /// The last layer's loss.
    Standard,
    /// All layers' losses at every step.
    Aligned,
    /// The paper's: both in turn.
    Alternating,
    /// All layers' losses at every step, half of the weight on the last.
    Mixed,
    /// The same, the last layer and one in four of the others a step, by turns.
    Rotating,
    /// The last layer's loss for half of the steps, then as mixed.
    StandardFirst,
}

impl Training {
    fn plan(self, seed: u64) -> Plan {
        let linear = LayerWeights::Linear;
        let mixed = Objective::Aligned { weights: LayerWeights::HalfLast };
        let (name, objective) = match self {
            Self::Standard => return Plan::standard(seed),
            Self::Aligned => ("aligned", Objective::Aligned { weights: linear }),
            Self::Alternating => ("alternating", Objective::default()),
            Self::Mixed => ("mixed", mixed),
            Self::Rotating => {
                ("mixed, rotating", Objective::Rotating { weights: LayerWeights::HalfLast, period: 4 })
            }
            Self::StandardFirst => {
                ("standard first", Objective::StandardFirst { share: 0.5, then: Box::new(mixed) })
            }
        };
        Plan::new(name, objective, seed)
    }
}

fn main() -> ExitCode {
    let flags = Flags::parse();
    run_main(&flags.language.common, |device| f08(&flags, &device))
}

fn f08(flags: &Flags, device: &Device) -> Result<()> {
    let LanguageFlags { common, train, test, model, encoder, .. } = &flags.language;
    let seeds = common.seeds(flags.seeds)?;
    let (out, stop) = (common.out_folder(NAME)?, interrupt::stop_flag()?);
    let language = Language::open(&flags.language, device, stop)?;
    let config = json!({ "preset": common.preset, "train": train, "test": test, "model": model, "encoder": encoder,
        "seeds": flags.seeds, "text": language.settings()?, "training": recipe_settings(&Language::recipe(&flags.language)),
        "precision": flags.language.recipe.precision });
    let mut results = Results::new(NAME, config, common.seed, device);
    let mut models: Vec<Vec<LayersOfLanguage>> = Vec::new();
    for objective in &flags.objective {
        let of = |seed| language.measured(&objective.plan(seed));
        models.push(seeds.clone().map(of).collect::<Result<_>>()?);
    }
    results.more.insert("language_models".into(), json!(models));
    show::show(&out, &mut results, &models)
}
