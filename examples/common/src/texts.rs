//! A task ready for training: texts as ids, in batches of about one length, and texts held out.

use anyhow::Result;
use candle_core::{Device, Tensor};
use layerwise_data::{Encoder, Targets, TextSet, bucketed_order};
use layerwise_models::Batch;
use layerwise_ops::init::ChaCha8Rng;
use layerwise_train::Samples;
use serde_json::{Value, json};

use crate::{
    encoded::EncodedTexts,
    layers::Source,
    training::{Data, HeldOutBatches},
};

/// Texts to train on, and texts held out, as ids of one tokenizer.
#[derive(Clone, Debug)]
pub struct Texts {
    /// What a run is called after: `mrpc`.
    pub name: String,
    /// To train on.
    pub train: EncodedTexts,
    /// Held out.
    pub held_out: EncodedTexts,
    device: Device,
}

impl Texts {
    /// Encodes both parts by what [`encoder_of`](crate::encoded::encoder_of) gives.
    ///
    /// # Errors
    ///
    /// When the tokenizer cannot.
    pub fn new(
        name: &str,
        encoder: Encoder,
        (train, held_out): (&TextSet, &TextSet),
        device: &Device,
    ) -> Result<Self> {
        let train = EncodedTexts::new(encoder.clone(), train)?;
        let held_out = EncodedTexts::new(encoder, held_out)?;
        Ok(Self { name: name.to_owned(), train, held_out, device: device.clone() })
    }
}

impl Samples for Texts {
    fn len(&self) -> usize {
        self.train.samples()
    }

    fn order(&self, seed: u64, epoch: usize, size: usize) -> Vec<usize> {
        bucketed_order(&self.train.lengths(), size, seed, epoch)
    }

    fn batch(&self, indices: &[usize], _rng: &mut ChaCha8Rng) -> candle_core::Result<(Batch, Tensor)> {
        let batch = self.train.rows(indices, &self.device).map_err(candle_core::Error::wrap)?;
        Ok((batch, self.train.labels_of(indices, &self.device)?))
    }
}

impl Data for Texts {
    fn identity(&self) -> Value {
        let data = json!({ "name": self.name, "train": self.len(), "held_out": self.held_out.samples(), "crc32": self.checksum() });
        json!({ "data": data, "max_tokens": self.train.max_tokens() })
    }

    fn held_out(&self) -> Option<HeldOutBatches<'_>> {
        self.held_out.labels().is_some().then(|| {
            let all: Vec<usize> = (0..self.held_out.samples()).collect();
            let labelled = |(batch, rows): (layerwise_data::Result<Batch>, Vec<usize>)| {
                let batch = batch.map_err(candle_core::Error::wrap)?;
                Ok((batch, self.held_out.labels_of(&rows, &self.device)?))
            };
            Box::new(self.held_out.by_length(&all, &self.device).map(labelled)) as _
        })
    }
}

impl Texts {
    /// CRC-32 of all ids and targets, those held out included.
    fn checksum(&self) -> u32 {
        let mut hasher = crc32fast::Hasher::new();
        for part in [&self.train, &self.held_out] {
            for text in part.ids() {
                text.ids.iter().chain(&text.types).for_each(|id| hasher.update(&id.to_le_bytes()));
            }
            match part.targets() {
                Targets::Classes { labels, .. } => {
                    labels.iter().for_each(|label| hasher.update(&label.to_le_bytes()))
                }
                Targets::Numbers(numbers) => {
                    numbers.iter().for_each(|number| hasher.update(&number.to_le_bytes()))
                }
                Targets::None => {}
            }
        }
        hasher.finalize()
    }
}
