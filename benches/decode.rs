//! Tokens a second in every way to decode, all in turn: all layers, a fixed depth, leaving where a measure is sure (with the whole head after every layer, with
//! some words, without a head), and drafts that are verified.
//!
//! ```sh
//! cargo bench --bench decode
//! cargo bench --bench decode -- --json --model out/runs/models/NAME --text FILE --batch 8
//! ```
//!
//! Without `--json` a GPT-2 of random weights is measured, of 8 layers, d = 256 and a vocabulary of 4,096: what a check costs does not depend on
//! them, what it saves does. With `--json` it is a trained one, on the beginnings of blocks of a text; the ratios are of one run.

mod cases;

use std::{collections::BTreeMap, ops::ControlFlow, path::PathBuf, time::Instant};

use anyhow::{Result, ensure};
use clap::Parser;
use criterion::{BenchmarkId, Throughput};
use layerwise::{
    data::{TokenBlocks, most_frequent, text_file},
    exit::{
        Decoding, FixedDepth, GenerationConfig, Policy, Sampling, Signal, Speculate, Thresholds, generate,
    },
    models::{Gpt2, Tapped},
    ops::init,
};
use layerwise_example_common::{
    Preset,
    language::{gate, language_model, open_language_model},
};
use serde_json::json;

use self::cases::{Measured, Peak, Timing, device, median};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// A trained model on real text.
#[derive(Parser)]
struct Flags {
    #[command(flatten)]
    timing: Timing,
    /// Folder of a trained GPT-2.
    #[arg(long)]
    model: PathBuf,
    /// Text that prompts are taken from, and that a gate learns from: its second half.
    #[arg(long)]
    text: PathBuf,
    /// Prompts that are continued together.
    #[arg(long, default_value_t = 1)]
    batch: usize,
    /// Such groups of prompts.
    #[arg(long, default_value_t = 4)]
    groups: usize,
    /// Tokens of a prompt.
    #[arg(long, default_value_t = 32)]
    prompt: usize,
    /// Tokens that are said behind it.
    #[arg(long, default_value_t = 128)]
    tokens: usize,
    /// 0: always the likeliest token.
    #[arg(long, default_value_t = 0.)]
    temperature: f64,
    /// Words that cheap checks and drafts look at: those that the text's second half has most often.
    #[arg(long, default_value_t = 512)]
    words: usize,
    /// Most drafts.
    #[arg(long, default_value_t = 6)]
    drafts: usize,
    /// Only the ways whose names begin so, beside the first [default: all].
    #[arg(long)]
    way: Option<String>,
    /// Also write the prompts to this file, a list of lists of ids: what peers are measured on.
    #[arg(long)]
    dump: Option<PathBuf>,
}

fn main() -> Result<()> {
    cases::run::<Flags>(|flags| &flags.timing, line, bench)
}

/// What is said of a way to decode.
#[derive(Default)]
struct Way {
    /// Of each round.
    seconds: Vec<f64>,
    tokens: usize,
    layers: f64,
    drafted: usize,
    accepted: usize,
    /// All that was said.
    said: Vec<Vec<u32>>,
}

fn line(flags: &Flags) -> Result<Measured> {
    let (model, bpe) = open_language_model(&flags.model, device()?)?;
    let model = model.packed()?;
    let depth = model.depth();
    let ids = bpe.ids(&text_file(&flags.text)?)?;
    let (prompts, learned_from) = ids.split_at(ids.len() / 2);
    let apart = prompts.len() / (flags.batch * flags.groups);
    ensure!(
        apart >= flags.prompt,
        "--text: {} tokens for {} prompts",
        prompts.len(),
        flags.batch * flags.groups
    );
    let prompts: Vec<Vec<u32>> =
        prompts.chunks(apart).map(|part| part[..flags.prompt.min(part.len())].to_vec()).collect();
    let prompts = &prompts[..flags.batch * flags.groups];
    if let Some(file) = &flags.dump {
        std::fs::write(file, serde_json::to_vec(prompts)?)?;
    }
    let words = most_frequent(learned_from, flags.words);
    let blocks = TokenBlocks::new(learned_from.to_vec(), model.config().n_positions.min(256))?;
    let gate = Thresholds::common(Signal::Gate(gate(&model, &blocks, device()?)?), 0.9, depth);
    let confidence = Thresholds::common(Signal::MaxProbability, 0.9, depth);
    let saturation = Thresholds::common(Signal::Saturation, 0.97, depth);
    let cut = FixedDepth(depth / 2);
    let leave = |policy, words| Decoding::Leave { policy, words };
    let few = Some(words.as_slice());
    let mut ways = vec![
        ("full".to_owned(), Decoding::Full),
        (format!("layer {}", depth / 2), leave(&cut as &dyn Policy, None)),
        ("confidence".to_owned(), leave(&confidence, None)),
        (format!("confidence of {} words", words.len()), leave(&confidence, few)),
        ("saturation".to_owned(), leave(&saturation, None)),
        ("gate".to_owned(), leave(&gate, None)),
    ];
    // What it costs that there could be some.
    let none = Speculate { layer: 1, drafts: 0, adaptive: false, words: None };
    ways.push(("no drafts".to_owned(), Decoding::Speculate(none)));
    for layer in 1..=depth / 2 {
        for (name, words) in [(String::new(), None), (format!(" of {} words", words.len()), few)] {
            let how = Speculate { layer, drafts: flags.drafts, adaptive: true, words };
            ways.push((format!("drafts{name}, layer {layer}"), Decoding::Speculate(how)));
        }
    }
    if let Some(only) = &flags.way {
        ways.retain(|(name, decoding)| matches!(decoding, Decoding::Full) || name.starts_with(only.as_str()));
    }
    let mut measured: Vec<Way> = ways.iter().map(|_| Way::default()).collect();
    let sampling = Sampling { temperature: flags.temperature, ..Default::default() };
    let config = GenerationConfig { max_new_tokens: flags.tokens, sampling, ..Default::default() };
    for round in 0..=flags.timing.rounds {
        for (i, group) in prompts.chunks(flags.batch).enumerate() {
            // There and back again, so that no way is always the first.
            let mut turns: Vec<_> = ways.iter().zip(&mut measured).collect();
            if (round + i) % 2 == 1 {
                turns.reverse();
            }
            for ((_, decoding), way) in turns {
                let start = Instant::now();
                let (said, counts) =
                    generate(&model, group, *decoding, &config, |_| ControlFlow::Continue(()))?;
                let seconds = start.elapsed().as_secs_f64();
                // The first round warms up.
                if round == 0 {
                    way.tokens += counts.tokens;
                    way.layers += said.iter().flat_map(|text| &text.layers).sum::<usize>() as f64;
                    way.drafted += counts.drafted;
                    way.accepted += counts.accepted;
                    way.said.extend(said.into_iter().map(|text| text.ids));
                } else if way.seconds.len() < round {
                    way.seconds.push(seconds);
                } else if let Some(last) = way.seconds.last_mut() {
                    *last += seconds;
                }
            }
        }
    }
    let full = &measured[0];
    let told = |(name, way): (&(String, Decoding<'_>), &Way)| {
        let ratios: Vec<f64> =
            full.seconds.iter().zip(&way.seconds).map(|(full, seconds)| full / seconds).collect();
        let told = json!({ "tokens_per_s": way.tokens as f64 / median(&way.seconds), "over_full": median(&ratios),
            "layers": way.layers / way.tokens as f64, "drafted": way.drafted,
            "acceptance": (way.drafted > 0).then(|| way.accepted as f64 / way.drafted as f64), "same_as_full": way.said == full.said });
        (name.0.clone(), told)
    };
    let all: BTreeMap<String, serde_json::Value> = ways.iter().zip(&measured).map(told).collect();
    let more = json!({ "model": flags.model.file_name().map(|name| name.to_string_lossy()), "batch": flags.batch, "groups": flags.groups,
        "prompt": flags.prompt, "tokens": flags.tokens, "temperature": flags.temperature, "ways": all, "said": full.said });
    Ok(Measured { seconds: full.seconds.clone(), peak: Peak::now()?, more })
}

fn bench() -> Result<()> {
    let model = Gpt2::new(language_model(Preset::Small, 4096), &mut init::rng(0), device()?)?.packed()?;
    let depth = model.depth();
    let confidence = Thresholds::common(Signal::MaxProbability, 0.9, depth);
    let saturation = Thresholds::common(Signal::Saturation, 1., depth);
    let drafts = Speculate { layer: depth / 2, drafts: 4, adaptive: false, words: None };
    let ways: [(&str, Decoding<'_>); 4] = [
        ("full", Decoding::Full),
        ("checked by confidence", Decoding::Leave { policy: &confidence, words: None }),
        ("checked by saturation", Decoding::Leave { policy: &saturation, words: None }),
        ("drafts", Decoding::Speculate(drafts)),
    ];
    let mut criterion = cases::criterion(10, (3, 5));
    let mut group = criterion.benchmark_group("decode");
    let config = GenerationConfig { max_new_tokens: 32, sampling: Sampling::GREEDY, ..Default::default() };
    for batch in [1, 8] {
        let prompts = vec![vec![7; 32]; batch];
        for (name, decoding) in ways {
            group.throughput(Throughput::Elements(32 * batch as u64));
            group.bench_function(BenchmarkId::new(name, batch), |bencher| {
                bencher.iter(|| {
                    generate(&model, &prompts, decoding, &config, |_| ControlFlow::Continue(()))
                        .expect("text")
                });
            });
        }
    }
    group.finish();
    criterion.final_summary();
    Ok(())
}
