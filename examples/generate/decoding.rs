//! From flags to a way to decode.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use candle_core::Device;
use clap::{Args, ValueEnum};
use layerwise::{
    data::{ByteBpe, TokenBlocks, text_file},
    exit::{Decoding, FixedDepth, Signal, Speculate, Thresholds},
    models::{Gpt2, Tapped},
};
use layerwise_example_common::language::gate;

#[derive(Args)]
pub(crate) struct WayFlags {
    /// Every token is of the exit after this layer; the layers behind it are not run.
    #[arg(long, value_name = "LAYER", conflicts_with_all = ["speculate", "policy"])]
    exit_layer: Option<usize>,
    /// The exit after this layer drafts tokens, and the layers behind it verify them; what is said is what all layers say.
    #[arg(long, value_name = "LAYER", conflicts_with = "policy")]
    speculate: Option<usize>,
    /// Most tokens that are drafted before they are verified; fewer where drafts are often wrong.
    #[arg(long, value_name = "N", default_value_t = 6)]
    drafts: usize,
    /// A token leaves where it is sure enough by this measure.
    #[arg(long, value_enum)]
    policy: Option<Measure>,
    /// When it is [default: 0.9 of a probability, a margin, a cosine or a gate; 1 nat of entropy; 3 checks].
    #[arg(long, value_name = "X", requires = "policy")]
    threshold: Option<f64>,
    /// Layers that are checked [default: all but the last].
    #[arg(long, value_name = "LAYERS", value_delimiter = ',', requires = "policy")]
    check: Vec<usize>,
    /// Checks and drafts look at the first so many pieces of the tokenizer only, which cost less than all [default: all].
    #[arg(long, value_name = "N")]
    words: Option<usize>,
    /// Text that the gate learns from: a file, plain or .gz.
    #[arg(long, value_name = "FILE", required_if_eq("policy", "gate"))]
    gate_text: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Measure {
    /// Largest probability.
    Confidence,
    /// Largest less second largest probability.
    Margin,
    /// Entropy of the probabilities.
    Entropy,
    /// Checks in a row with one answer.
    Patience,
    /// Cosine of the states before and after a block; needs no head.
    Saturation,
    /// A learned probability that the exit says what the last one says; needs no head.
    Gate,
}

/// A way to decode.
pub(crate) enum How {
    Full,
    Fixed(FixedDepth),
    Exits { thresholds: Thresholds, words: Option<Vec<u32>>, name: String },
    Drafts { layer: usize, drafts: usize, words: Option<Vec<u32>> },
}

impl WayFlags {
    pub(crate) fn how(&self, model: &Gpt2, bpe: &ByteBpe, device: &Device) -> Result<How> {
        let pieces = model.config().vocab_size;
        let words = self.words.map(|words| {
            ensure!((1..=pieces).contains(&words), "--words {words}: expected 1 to {pieces}");
            Ok((0..words as u32).collect::<Vec<u32>>())
        });
        let words = words.transpose()?;
        if let Some(layer) = self.exit_layer {
            ensure!(
                (1..=model.depth()).contains(&layer),
                "--exit-layer {layer}: expected 1 to {}",
                model.depth()
            );
            return Ok(How::Fixed(FixedDepth(layer)));
        }
        if let Some(layer) = self.speculate {
            ensure!(
                (1..model.depth()).contains(&layer),
                "--speculate {layer}: expected 1 to {}",
                model.depth() - 1
            );
            return Ok(How::Drafts { layer, drafts: self.drafts, words });
        }
        let Some(measure) = self.policy else { return Ok(How::Full) };
        let signal = match measure {
            Measure::Confidence => Signal::MaxProbability,
            Measure::Margin => Signal::Margin,
            Measure::Entropy => Signal::Entropy,
            Measure::Patience => Signal::Patience,
            Measure::Saturation => Signal::Saturation,
            Measure::Gate => {
                let file = self.gate_text.as_deref().context("--gate-text")?;
                let tokens = model.config().n_positions.min(256);
                let blocks = TokenBlocks::new(bpe.ids(&text_file(file)?)?, tokens);
                Signal::Gate(gate(model, &blocks.with_context(|| file.display().to_string())?, device)?)
            }
        };
        let threshold = self.threshold.unwrap_or(match measure {
            Measure::Entropy => 1.,
            Measure::Patience => 3.,
            _ => 0.9,
        });
        let checked = if self.check.is_empty() { (1..model.depth()).collect() } else { self.check.clone() };
        let at = checked.into_iter().map(|layer| (layer, threshold)).collect();
        Ok(How::Exits {
            thresholds: Thresholds { signal, at },
            words,
            name: format!("{measure:?} {threshold}").to_lowercase(),
        })
    }
}

impl How {
    pub(crate) fn decoding(&self) -> Decoding<'_> {
        match self {
            Self::Full => Decoding::Full,
            Self::Fixed(policy) => Decoding::Leave { policy, words: None },
            Self::Exits { thresholds, words, .. } => {
                Decoding::Leave { policy: thresholds, words: words.as_deref() }
            }
            Self::Drafts { layer, drafts, words } => {
                let (layer, drafts, words) = (*layer, *drafts, words.as_deref());
                Decoding::Speculate(Speculate { layer, drafts, adaptive: true, words })
            }
        }
    }

    pub(crate) fn name(&self) -> String {
        match self {
            Self::Full => "all layers".into(),
            Self::Fixed(FixedDepth(layer)) => format!("layer {layer}"),
            Self::Exits { name, .. } => name.clone(),
            Self::Drafts { layer, drafts, .. } => format!("drafts of layer {layer}, at most {drafts}"),
        }
    }
}
