//! From flags to a way to decode.

use std::{num::NonZeroUsize, path::PathBuf};

use anyhow::{Context, Result, ensure};
use candle_core::Device;
use clap::{Args, ValueEnum};
use layerwise::{
    data::{ByteBpe, TokenBlocks, most_frequent, text_file},
    exit::{Decoding, FixedDepth, Signal, Speculate, Thresholds},
    models::{Gpt2, Tapped},
};
use layerwise_example_common::language::gate;

#[derive(Args)]
pub(crate) struct WayFlags {
    /// Every token is of the exit after this layer; the layers behind it are not run.
    #[arg(long, value_name = "LAYER", conflicts_with_all = ["speculate", "policy"])]
    exit_layer: Option<usize>,
    /// The exit after this layer drafts tokens, and the layers behind it verify them; what is said is as likely as from all layers, with --temperature 0 the same.
    #[arg(long, value_name = "LAYER", conflicts_with = "policy")]
    speculate: Option<usize>,
    /// Most tokens that are drafted before they are verified; fewer where drafts are often wrong.
    #[arg(long, value_name = "N", default_value_t = 6, requires = "speculate")]
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
    /// Checks and drafts look at so many words only, those that --text has most often; they cost less than all [default: all].
    #[arg(long, value_name = "N", requires = "text")]
    words: Option<NonZeroUsize>,
    /// Text that words are counted in, and that the gate learns from: a file, plain or .gz.
    #[arg(long, value_name = "FILE", required_if_eq("policy", "gate"))]
    pub(crate) text: Option<PathBuf>,
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

impl Measure {
    fn reads_logits(self) -> bool {
        !matches!(self, Self::Saturation | Self::Gate)
    }
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
        ensure!(
            self.words.is_none()
                || self.speculate.is_some()
                || self.policy.is_some_and(Measure::reads_logits),
            "--words: of --speculate, or of a --policy that reads logits"
        );
        let text = self
            .text
            .as_deref()
            .map(|file| Ok::<_, anyhow::Error>(bpe.ids(&text_file(file)?)?))
            .transpose()?;
        let words = self.words.zip(text.as_ref()).map(|(words, text)| most_frequent(text, words.get()));
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
                let tokens = model.config().n_positions.min(256);
                let blocks = TokenBlocks::new(text.context("--text")?, tokens);
                let file = || self.text.iter().map(|file| file.display().to_string()).collect::<String>();
                Signal::Gate(gate(model, &blocks.with_context(file)?, device)?)
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
        let few = |words: &Option<Vec<u32>>| {
            words.as_ref().map(|words| format!(" of {} words", words.len())).unwrap_or_default()
        };
        match self {
            Self::Full => "all layers".into(),
            Self::Fixed(FixedDepth(layer)) => format!("layer {layer}"),
            Self::Exits { name, words, thresholds } => {
                let layers: Vec<String> = thresholds.at.keys().map(usize::to_string).collect();
                format!("{name}{} after layers {}", few(words), layers.join(", "))
            }
            Self::Drafts { layer, drafts, words } => {
                format!("drafts{} of layer {layer}, at most {drafts}", few(words))
            }
        }
    }
}
