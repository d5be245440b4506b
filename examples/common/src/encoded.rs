//! Texts as the ids of a model's tokenizer, in batches.

use std::{cmp::Reverse, ops::Range, path::Path};

use anyhow::{Context, Result, bail, ensure};
use candle_core::{Device, Tensor};
use layerwise_data::{
    Encoded, Encoder, Padded, Targets, TextSet,
    glue::{Part, Task},
    text_lines,
};
use layerwise_models::{Batch, BertConfig};
use serde_json::{Map, Value, json};

use crate::{files::write_atomic, glue::part, layers::Source};

/// Texts of a batch that is only measured.
const AT_ONCE: usize = 64;
/// Most tokens of a text where nobody says another number: the paper's.
pub(crate) const TOKENS: usize = 256;
const TOKENIZER: &str = "tokenizer.json";
const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
/// What that calls the most tokens of a text.
const MOST: &str = "model_max_length";
/// Python's `transformers` write 1e30 where they do not know.
const UNKNOWN: f64 = 1e9;

/// The tokenizer of a BERT's folder, which must be the model's. Texts are cut where the folder says: at `model_max_length` of its
/// `tokenizer_config.json`, or 256 tokens where nobody says; at most at as many as the model has positions for.
///
/// # Errors
///
/// When there is no tokenizer, it is another model's, or `tokenizer_config.json` is damaged; the message names it.
pub fn encoder_of(folder: &Path, config: &BertConfig) -> Result<Encoder> {
    encoder_cutting_at(max_tokens_of(folder, config)?, folder, config)
}

/// As [`encoder_of`]; longer texts are cut, whatever the folder says.
///
/// # Errors
///
/// When there is no tokenizer, it is another model's, or the model has no positions for so many tokens.
pub(crate) fn encoder_cutting_at(max_tokens: usize, folder: &Path, config: &BertConfig) -> Result<Encoder> {
    let positions = config.max_position_embeddings;
    ensure!(
        max_tokens <= positions,
        "--max-tokens {max_tokens}: {} has positions for {positions}",
        folder.display()
    );
    let encoder = Encoder::open(folder, max_tokens)?;
    encoder.check(config.vocab_size)?;
    Ok(encoder)
}

/// Where [`encoder_of`] cuts.
fn max_tokens_of(folder: &Path, config: &BertConfig) -> Result<usize> {
    let most = match tokenizer_config(folder)?.get(MOST) {
        None | Some(Value::Null) => None,
        Some(most) if most.as_f64() >= Some(UNKNOWN) => None,
        Some(most) => {
            let number = most.as_u64().filter(|most| *most > 0);
            let file = folder.join(TOKENIZER_CONFIG);
            Some(number.with_context(|| {
                format!("{}: {MOST} is {most}, expected a number of tokens", file.display())
            })?)
        }
    };
    Ok(most.map_or(TOKENS, |most| most as usize).min(config.max_position_embeddings))
}

/// Puts the tokenizer of a model into the folder of one that was trained from it, with the most tokens that it was trained on; `tokenizer.json` last.
///
/// # Errors
///
/// When files cannot be read or written.
pub(crate) fn keep_tokenizer(
    from: &Path,
    mut config: Map<String, Value>,
    to: &Path,
    max_tokens: usize,
) -> Result<()> {
    config.insert(MOST.into(), max_tokens.into());
    write_atomic(&to.join(TOKENIZER_CONFIG), &serde_json::to_vec_pretty(&config)?)?;
    let file = from.join(TOKENIZER);
    let tokenizer = std::fs::read(&file).with_context(|| file.display().to_string())?;
    write_atomic(&to.join(TOKENIZER), &tokenizer)
}

/// What a folder says of its tokenizer beside `tokenizer.json`, if anything.
pub(crate) fn tokenizer_config(folder: &Path) -> Result<Map<String, Value>> {
    let path = folder.join(TOKENIZER_CONFIG);
    if !path.exists() {
        return Ok(Map::new());
    }
    let bytes = std::fs::read(&path).with_context(|| path.display().to_string())?;
    serde_json::from_slice(&bytes).with_context(|| path.display().to_string())
}

/// The texts of a file, one a line; or the labelled samples of GLUE that a task's folder, called as in the paper, has to score models with.
///
/// # Errors
///
/// When it is neither; the message names it.
pub fn texts_of(path: &Path) -> Result<TextSet> {
    if !path.is_dir() {
        return text_lines(path).with_context(|| format!("{}: expected a text file", path.display()));
    }
    match task_of(path) {
        Some(task) => Ok(part(task, path, Part::Dev)?.0),
        None => bail!(
            "{}: expected a text file, or a folder of GLUE with the name of its task: {}",
            path.display(),
            Task::ALL.map(Task::name).join(", ")
        ),
    }
}

/// The first so many texts, or all that there are.
///
/// # Errors
///
/// For none.
pub fn first(set: TextSet, most: usize) -> layerwise_data::Result<TextSet> {
    if most >= set.len() {
        return Ok(set);
    }
    set.select(&(0..most).collect::<Vec<_>>())
}

/// The task that a folder is called after.
#[must_use]
pub fn task_of(folder: &Path) -> Option<Task> {
    folder.file_name()?.to_str()?.parse().ok()
}

/// Texts in order, as ids, and what is to be told of them.
#[derive(Clone, Debug)]
pub struct EncodedTexts {
    encoder: Encoder,
    encoded: Vec<Encoded>,
    targets: Targets,
    /// Tokens that every batch is filled up to at least.
    width: usize,
}

impl EncodedTexts {
    /// Encodes a set by what [`encoder_of`] gives.
    ///
    /// # Errors
    ///
    /// When the tokenizer cannot.
    pub fn new(encoder: Encoder, set: &TextSet) -> Result<Self> {
        let encoded = encoder.encode(set.texts())?;
        Ok(Self { encoder, encoded, targets: set.targets().clone(), width: 0 })
    }

    /// All batches filled up to the longest text.
    #[must_use]
    pub fn of_one_width(self) -> Self {
        Self { width: self.lengths().into_iter().max().unwrap_or_default(), ..self }
    }

    /// Each text's tokens.
    #[must_use]
    pub fn lengths(&self) -> Vec<usize> {
        self.encoded.iter().map(|text| text.ids.len()).collect()
    }

    /// Each text's ids.
    #[must_use]
    pub fn ids(&self) -> &[Encoded] {
        &self.encoded
    }

    /// Most tokens of a text.
    #[must_use]
    pub fn max_tokens(&self) -> usize {
        self.encoder.max_tokens()
    }

    /// Texts that are cut because they have more.
    #[must_use]
    pub fn truncated(&self) -> usize {
        self.encoded.iter().filter(|text| text.truncated).count()
    }

    /// What is to be told of each.
    #[must_use]
    pub fn targets(&self) -> &Targets {
        &self.targets
    }

    /// Some of the texts, as the model takes them.
    ///
    /// # Errors
    ///
    /// For none; when the device cannot allocate.
    pub fn rows(&self, rows: &[usize], device: &Device) -> layerwise_data::Result<Batch> {
        let texts: Vec<&Encoded> = rows.iter().map(|&row| &self.encoded[row]).collect();
        let Padded { ids, mask, types } = self.encoder.pad_to(&texts, self.width, device)?;
        Ok(Batch { inputs: ids, mask, token_types: Some(types) })
    }

    /// Some of the texts in batches, the longest first, so that there is little padding; and which rows of all each has.
    pub fn by_length<'a>(
        &'a self,
        rows: &[usize],
        device: &'a Device,
    ) -> impl Iterator<Item = (layerwise_data::Result<Batch>, Vec<usize>)> + 'a {
        let mut order = rows.to_vec();
        order.sort_by_key(|&row| Reverse(self.encoded[row].ids.len()));
        let batches: Vec<Vec<usize>> = order.chunks(AT_ONCE).map(<[usize]>::to_vec).collect();
        batches.into_iter().map(|rows| (self.rows(&rows, device), rows))
    }

    /// The targets of some of the texts.
    ///
    /// # Errors
    ///
    /// Where there are none.
    pub fn labels_of(&self, rows: &[usize], device: &Device) -> candle_core::Result<Tensor> {
        match &self.targets {
            Targets::Classes { labels, .. } => Tensor::from_iter(rows.iter().map(|&row| labels[row]), device),
            Targets::Numbers(numbers) => Tensor::from_iter(rows.iter().map(|&row| numbers[row]), device),
            Targets::None => candle_core::bail!("texts without labels"),
        }
    }
}

impl Source for EncodedTexts {
    fn samples(&self) -> usize {
        self.encoded.len()
    }

    fn batch(&self, rows: Range<usize>, device: &Device) -> Result<Batch> {
        Ok(self.rows(&rows.collect::<Vec<_>>(), device)?)
    }

    fn name(&self, sample: usize) -> String {
        format!("text {}", sample + 1)
    }

    fn labels(&self) -> Option<&[u32]> {
        match &self.targets {
            Targets::Classes { labels, .. } => Some(labels),
            _ => None,
        }
    }

    fn classes(&self) -> &[String] {
        match &self.targets {
            Targets::Classes { names, .. } => names,
            _ => &[],
        }
    }

    fn settings(&self) -> Value {
        json!({ "max_tokens": self.max_tokens(), "truncated": self.truncated() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_says_how_many_tokens_a_text_has() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let config = BertConfig { max_position_embeddings: 300, ..Default::default() };
        let most = || max_tokens_of(folder.path(), &config);
        assert_eq!(most()?, TOKENS);
        let file = folder.path().join(TOKENIZER_CONFIG);
        for (says, expected) in [
            ("{}", TOKENS),
            (r#"{"model_max_length": null}"#, TOKENS),
            (r#"{"model_max_length": 1000000000000000019884624838656}"#, TOKENS),
            (r#"{"model_max_length": 128}"#, 128),
            (r#"{"model_max_length": 512}"#, 300),
        ] {
            std::fs::write(&file, says)?;
            assert_eq!(most()?, expected, "{says}");
        }
        for says in ["0", "-1", "12.5", "\"128\""] {
            std::fs::write(&file, format!("{{\"model_max_length\": {says}}}"))?;
            let text = most().unwrap_err().to_string();
            assert!(text.contains(TOKENIZER_CONFIG) && text.contains(says), "{text}");
        }
        Ok(())
    }
}
