//! A prompt in, text out, in any of the ways to decode. See the README beside this file.

mod decoding;

use std::{
    io::Write as _, num::NonZeroUsize, ops::ControlFlow, path::PathBuf, process::ExitCode,
    sync::atomic::Ordering, time::Instant,
};

use anyhow::{Context, Result, bail};
use candle_core::Device;
use clap::Parser;
use layerwise::{
    data::{ByteBpe, TextStream, text_file},
    exit::{Continuation, Decoding, GenerationConfig, GenerationCounts, Sampling, Token, generate},
    models::{Gpt2, Tapped},
};
use layerwise_example_common::{
    CommonFlags, Preset, Results, interrupt, language::open_language_model, progress, run::Interrupted,
    run_main,
};
use serde_json::json;

use crate::decoding::WayFlags;

layerwise_example_common::fast_allocator!();

const NAME: &str = "generate";

/// Continues prompts with a GPT-2, by all layers, by one, by as many as a token needs, or by drafts that are verified.
#[derive(Parser)]
#[command(name = NAME)]
struct Flags {
    #[command(flatten)]
    common: CommonFlags,
    /// Folder of a GPT-2: config.json, model.safetensors, and tokenizer.json or vocab.json and merges.txt.
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// Text to go on with.
    #[arg(long, value_name = "TEXT", required_unless_present = "prompts", conflicts_with = "prompts")]
    prompt: Option<String>,
    /// A text file with one prompt a line; all are continued together.
    #[arg(long, value_name = "FILE")]
    prompts: Option<PathBuf>,
    /// Most tokens of a continuation [default: 100; with --preset smoke 8].
    #[arg(long, value_name = "N")]
    max_new_tokens: Option<NonZeroUsize>,
    /// Divides the logits; 0: always the likeliest token.
    #[arg(long, value_name = "T", default_value_t = 1.)]
    temperature: f64,
    /// Draw from the likeliest tokens whose probabilities sum to so much.
    #[arg(long, value_name = "P", default_value_t = 0.95)]
    top_p: f64,
    #[command(flatten)]
    way: WayFlags,
}

fn main() -> ExitCode {
    let flags = Flags::parse();
    run_main(&flags.common, |device| continue_prompts(&flags, &device))
}

fn continue_prompts(flags: &Flags, device: &Device) -> Result<()> {
    let (model, bpe) = open_language_model(&flags.model, device)?;
    let model = model.packed()?;
    let prompts = prompts(flags)?;
    let ids = prompts.iter().map(|prompt| bpe.ids(prompt)).collect::<Result<Vec<_>, _>>()?;
    let how = flags.way.how(&model, &bpe, device)?;
    let few = if flags.common.preset == Preset::Smoke { 8 } else { 100 };
    let config = GenerationConfig {
        max_new_tokens: flags.max_new_tokens.map_or(few, NonZeroUsize::get),
        end: model.config().eos_token_id.or(bpe.end_of_text()),
        sampling: Sampling { temperature: flags.temperature, top_p: flags.top_p },
        seed: flags.common.seed,
    };
    let out = flags.common.out_folder(NAME)?;
    let settings = json!({ "model": flags.model, "decoding": how.name(), "text": flags.way.text, "continuation": config, "prompts": prompts });
    let mut results = Results::new(NAME, settings, flags.common.seed, device);
    let (said, counts, seconds) = spoken((&model, &bpe), &prompts, &ids, how.decoding(), &config)?;
    let texts = said.iter().map(|text| bpe.text(&text.ids)).collect::<Result<Vec<_>, _>>()?;
    if prompts.len() > 1 {
        for (prompt, text) in prompts.iter().zip(&texts) {
            progress::print(&format!("{prompt}|{text}\n\n"));
        }
    }
    let layers: Vec<usize> = said.iter().flat_map(|text| &text.layers).copied().collect();
    let mean = layers.iter().sum::<usize>() as f64 / layers.len().max(1) as f64;
    let speed = layers.len() as f64 / seconds;
    let accepted = counts
        .acceptance()
        .map(|share| format!(", {:.0} % of {} drafts right", 100. * share, counts.drafted));
    progress::line(&format!(
        "{}: {} tokens in {seconds:.2} s, {speed:.1} tokens/s, {mean:.1} of {} layers a token{}",
        how.name(),
        layers.len(),
        model.depth(),
        accepted.unwrap_or_default()
    ));
    results.more.insert("continuations".into(), json!(texts));
    results.more.insert(
        "speed".into(),
        json!({ "seconds": seconds, "tokens": layers.len(), "tokens_per_s": speed, "steps": counts.steps, "layers": mean,
            "drafted": counts.drafted, "accepted": counts.accepted }),
    );
    results.write(&out)?;
    if interrupt::stop_flag()?.load(Ordering::Relaxed) {
        return Err(Interrupted("stopped; what was said so far is written").into());
    }
    Ok(())
}

fn prompts(flags: &Flags) -> Result<Vec<String>> {
    match (&flags.prompt, &flags.prompts) {
        (Some(prompt), _) => Ok(vec![prompt.clone()]),
        (None, Some(file)) => {
            let text = text_file(file)?;
            if let Some(line) = text.lines().position(str::is_empty) {
                bail!("{}: line {} is empty, expected a prompt", file.display(), line + 1)
            }
            Ok(text.lines().map(str::to_owned).collect())
        }
        (None, None) => bail!("--prompt or --prompts"),
    }
}

/// Continues all prompts, and meanwhile prints what is said if there is one only; with the seconds that it took, those of reading the prompts included.
fn spoken(
    (model, bpe): (&Gpt2, &ByteBpe),
    prompts: &[String],
    ids: &[Vec<u32>],
    decoding: Decoding<'_>,
    config: &GenerationConfig,
) -> Result<(Vec<Continuation>, GenerationCounts, f64)> {
    let stop = interrupt::stop_flag()?;
    let mut aloud = (prompts.len() == 1).then(|| bpe.stream());
    if aloud.is_some() {
        progress::print(&prompts[0]);
    }
    let mut broken = None;
    let heard = |token: Token| {
        if let Some(Err(error)) = aloud.as_mut().map(|stream| say(stream, token.id)) {
            broken = Some(error);
            return ControlFlow::Break(());
        }
        if stop.load(Ordering::Relaxed) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let start = Instant::now();
    let (said, counts) = generate(model, ids, decoding, config, heard)?;
    let seconds = start.elapsed().as_secs_f64();
    if let Some(stream) = aloud {
        progress::print(&format!("{}\n", stream.finish()?.unwrap_or_default()));
    }
    if let Some(error) = broken {
        return Err(error);
    }
    Ok((said, counts, seconds))
}

fn say(stream: &mut TextStream<'_>, id: u32) -> Result<()> {
    if let Some(text) = stream.push(id)? {
        progress::print(&text);
        std::io::stdout().flush().context("the output")?;
    }
    Ok(())
}
