//! A task ready for training: texts as ids, in batches of about one length, and texts held out.

use anyhow::Result;
use candle_core::{Device, Tensor};
use layerwise_data::{Encoded, Encoder, Padded, Targets, TextSet, bucketed_order};
use layerwise_models::Batch;
use layerwise_ops::init::ChaCha8Rng;
use layerwise_train::Samples;
use serde_json::{Value, json};

use crate::training::{Data, HeldOutBatches};

/// Texts to train on, and texts held out, as ids of one tokenizer.
#[derive(Clone, Debug)]
pub struct Texts {
    /// What a run is called after: `mrpc`.
    pub name: String,
    encoder: Encoder,
    max_tokens: usize,
    train: Part,
    held_out: Part,
    device: Device,
}

#[derive(Clone, Debug)]
struct Part {
    encoded: Vec<Encoded>,
    targets: Targets,
}

/// Held-out texts that go through a model at once.
const AT_ONCE: usize = 64;

impl Texts {
    /// Encodes both parts, of at most `max_tokens` a text.
    ///
    /// # Errors
    ///
    /// When the tokenizer cannot.
    pub fn new(
        name: &str,
        encoder: Encoder,
        max_tokens: usize,
        (train, held_out): (&TextSet, &TextSet),
        device: &Device,
    ) -> Result<Self> {
        let part = |set: &TextSet| {
            anyhow::Ok(Part { encoded: encoder.encode(set.texts())?, targets: set.targets().clone() })
        };
        let (train, held_out) = (part(train)?, part(held_out)?);
        Ok(Self { name: name.to_owned(), train, held_out, encoder, max_tokens, device: device.clone() })
    }

    /// Number of texts held out.
    #[must_use]
    pub fn held_out_len(&self) -> usize {
        self.held_out.encoded.len()
    }

    /// What is to be told of the texts held out.
    #[must_use]
    pub fn held_out_targets(&self) -> &Targets {
        &self.held_out.targets
    }

    /// Texts of either part that are cut because they have more tokens than are taken.
    #[must_use]
    pub fn truncated(&self) -> [usize; 2] {
        [&self.train, &self.held_out].map(|part| part.encoded.iter().filter(|text| text.truncated).count())
    }

    /// The texts held out in batches, the longest first, so that there is little padding; and the place of each row among the texts.
    pub fn held_out_batches(&self) -> impl Iterator<Item = Result<(Batch, Vec<usize>)>> {
        let mut order: Vec<usize> = (0..self.held_out_len()).collect();
        order.sort_by_key(|&text| std::cmp::Reverse(self.held_out.encoded[text].ids.len()));
        let batches: Vec<Vec<usize>> = order.chunks(AT_ONCE).map(<[usize]>::to_vec).collect();
        batches.into_iter().map(|rows| Ok((self.batch_of(&self.held_out, &rows)?, rows)))
    }

    fn batch_of(&self, part: &Part, rows: &[usize]) -> layerwise_data::Result<Batch> {
        let texts: Vec<&Encoded> = rows.iter().map(|&row| &part.encoded[row]).collect();
        let Padded { ids, mask, types } = self.encoder.pad(&texts, &self.device)?;
        Ok(Batch { inputs: ids, mask, token_types: Some(types) })
    }

    fn labels(&self, part: &Part, rows: &[usize]) -> candle_core::Result<Tensor> {
        match &part.targets {
            Targets::Classes { labels, .. } => {
                Tensor::from_iter(rows.iter().map(|&row| labels[row]), &self.device)
            }
            Targets::Numbers(numbers) => {
                Tensor::from_iter(rows.iter().map(|&row| numbers[row]), &self.device)
            }
            Targets::None => candle_core::bail!("{}: texts without labels", self.name),
        }
    }
}

impl Samples for Texts {
    fn len(&self) -> usize {
        self.train.encoded.len()
    }

    fn order(&self, seed: u64, epoch: usize, size: usize) -> Vec<usize> {
        let lengths: Vec<usize> = self.train.encoded.iter().map(|text| text.ids.len()).collect();
        bucketed_order(&lengths, size, seed, epoch)
    }

    fn batch(&self, indices: &[usize], _rng: &mut ChaCha8Rng) -> candle_core::Result<(Batch, Tensor)> {
        let batch = self.batch_of(&self.train, indices).map_err(candle_core::Error::wrap)?;
        Ok((batch, self.labels(&self.train, indices)?))
    }
}

impl Data for Texts {
    fn identity(&self) -> Value {
        let data = json!({ "name": self.name, "train": self.len(), "held_out": self.held_out_len(), "crc32": self.checksum() });
        json!({ "data": data, "max_tokens": self.max_tokens })
    }

    fn held_out(&self) -> Option<HeldOutBatches<'_>> {
        matches!(self.held_out.targets, Targets::Classes { .. }).then(|| {
            let labelled = |batch: Result<(Batch, Vec<usize>)>| {
                let (batch, rows) = batch.map_err(|error| candle_core::Error::Msg(format!("{error:#}")))?;
                Ok((batch, self.labels(&self.held_out, &rows)?))
            };
            Box::new(self.held_out_batches().map(labelled)) as _
        })
    }
}

impl Texts {
    /// CRC-32 of all ids and targets, those held out included.
    fn checksum(&self) -> u32 {
        let mut hasher = crc32fast::Hasher::new();
        for part in [&self.train, &self.held_out] {
            for text in &part.encoded {
                text.ids.iter().chain(&text.types).for_each(|id| hasher.update(&id.to_le_bytes()));
            }
            match &part.targets {
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
