//! Texts as points: what is about the same lies in the same direction.

use std::path::Path;

use anyhow::Result;
use candle_core::{Device, Tensor};
use layerwise_data::{Text, TextSet};
use layerwise_models::{Bert, BertConfig, Head, LoadOptions, Pass, Pooling, Tapped};

use crate::encoded::{EncodedTexts, encoder_of};

/// A BERT that was trained so that the mean of its tokens tells what a text is about, as the sentence-transformers are.
#[derive(Debug)]
pub struct Sentences {
    model: Bert,
    encoder: layerwise_data::Encoder,
    device: Device,
}

impl Sentences {
    /// Loads a model and its tokenizer.
    ///
    /// # Errors
    ///
    /// When either is missing or wrong, or they are of different models.
    pub fn open(folder: &Path, device: &Device) -> Result<Self> {
        let config = BertConfig::from_hf(folder)?;
        let encoder = encoder_of(folder, &config)?;
        let options = LoadOptions { head: Head::None, pooling: Some(Pooling::Mean), ..Default::default() };
        let model = Bert::load_with(folder, &options, device)?.model;
        Ok(Self { model: model.packed()?, encoder, device: device.clone() })
    }

    /// The mean of each text's tokens after the last block, of length 1: `(texts, width)`.
    ///
    /// # Errors
    ///
    /// When the tokenizer or the model cannot.
    pub fn embed(&self, texts: &[String]) -> Result<Tensor> {
        let texts = texts.iter().map(|text| Text::from(text.as_str())).collect();
        let texts =
            EncodedTexts::new(self.encoder.clone(), &TextSet::new(texts, layerwise_data::Targets::None)?)?;
        let all: Vec<usize> = (0..texts.ids().len()).collect();
        let batch = texts.rows(&all, &self.device)?;
        let mut hidden = self.model.embed(&batch, Pass::EVAL)?;
        for layer in 1..=self.model.depth() {
            hidden = self.model.block(layer, &hidden, Pass::EVAL)?;
        }
        let xs = self.model.feature(&hidden)?;
        let lengths = xs.sqr()?.sum_keepdim(1)?.sqrt()?;
        Ok(xs.broadcast_div(&lengths)?)
    }
}
