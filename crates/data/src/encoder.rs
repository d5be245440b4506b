use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use tokenizers::{Tokenizer, TruncationParams};

use crate::{Error, Result, Text, error::format, vocabulary};

/// A Hugging Face tokenizer: texts to ids.
#[derive(Clone, Debug)]
pub struct Encoder {
    path: PathBuf,
    tokenizer: Tokenizer,
    pad: u32,
    max_tokens: usize,
}

/// Ids of a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encoded {
    /// One a token, special ones included.
    pub ids: Vec<u32>,
    /// Segment of each token: 1 in the second text of a pair, where the tokenizer tells them apart.
    pub types: Vec<u32>,
    /// Whether tokens were left out because there were too many.
    pub truncated: bool,
}

/// Texts of a batch, filled up to the longest of them.
#[derive(Clone, Debug)]
pub struct Padded {
    /// `(rows, tokens)`, u32.
    pub ids: Tensor,
    /// `(rows, tokens)`, u8: 1 for a token, 0 for padding. `None`: nothing is padding.
    pub mask: Option<Tensor>,
    /// `(rows, tokens)`, u32.
    pub types: Tensor,
}

impl Encoder {
    /// The `tokenizer.json` of a model's folder, or that file.
    ///
    /// Texts of more than `max_tokens` are cut there: of a pair, the longer one first. What the file itself says of cutting and padding
    /// does not count.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] where there is none; [`Error::Format`] for a file that is no tokenizer, and for a `max_tokens` that special tokens
    /// leave nothing of.
    pub fn open(path: &Path, max_tokens: usize) -> Result<Self> {
        let path = if path.is_dir() { path.join("tokenizer.json") } else { path.to_owned() };
        let bytes = std::fs::read(&path).map_err(crate::error::io(&path))?;
        let bad = |error| format(&path, format!("{error}"));
        let mut tokenizer = Tokenizer::from_bytes(bytes).map_err(bad)?;
        let pad = tokenizer.get_padding().map(|padding| padding.pad_id);
        let by_name = ["[PAD]", "<pad>"].iter().find_map(|name| tokenizer.token_to_id(name));
        let truncation = TruncationParams { max_length: max_tokens, ..Default::default() };
        let special = tokenizer.get_post_processor().map_or(0, |post| {
            use tokenizers::PostProcessor;
            post.added_tokens(true)
        });
        if max_tokens <= special {
            let what = format!("{special} special tokens leave nothing of {max_tokens} tokens");
            return Err(format(&path, what));
        }
        tokenizer.with_truncation(Some(truncation)).map_err(bad)?;
        tokenizer.with_padding(None);
        Ok(Self { pad: pad.or(by_name).unwrap_or_default(), tokenizer, path, max_tokens })
    }

    /// Whether this is the tokenizer of a model with a table of `vocabulary` rows.
    ///
    /// # Errors
    ///
    /// [`Error::Vocabulary`] when ids are beyond the table, or far below its end.
    pub fn check(&self, vocabulary: usize) -> Result<()> {
        vocabulary::check(&self.tokenizer, &self.path, vocabulary)
    }

    /// Most tokens of a text.
    #[must_use]
    pub fn max_tokens(&self) -> usize {
        self.max_tokens
    }

    /// The id that [`pad`](Self::pad) fills up with.
    #[must_use]
    pub fn pad_id(&self) -> u32 {
        self.pad
    }

    /// Ids of all texts.
    ///
    /// # Errors
    ///
    /// [`Error::Format`] for what the tokenizer cannot do.
    pub fn encode(&self, texts: &[Text]) -> Result<Vec<Encoded>> {
        let inputs: Vec<tokenizers::EncodeInput<'_>> = texts
            .iter()
            .map(|text| match &text.second {
                Some(second) => (text.first.as_str(), second.as_str()).into(),
                None => text.first.as_str().into(),
            })
            .collect();
        let encodings = self.tokenizer.encode_batch(inputs, true);
        let encodings = encodings.map_err(|error| format(&self.path, format!("{error}")))?;
        Ok(encodings
            .into_iter()
            .map(|encoding| Encoded {
                ids: encoding.get_ids().to_vec(),
                types: encoding.get_type_ids().to_vec(),
                truncated: !encoding.get_overflowing().is_empty(),
            })
            .collect())
    }

    /// Some texts as a batch.
    ///
    /// # Errors
    ///
    /// [`Error::Empty`] for none, or none with a token; when the device cannot allocate.
    pub fn pad(&self, texts: &[&Encoded], device: &Device) -> Result<Padded> {
        self.pad_to(texts, 0, device)
    }

    /// As [`pad`](Self::pad), filled up to `tokens` at least.
    ///
    /// # Errors
    ///
    /// As [`pad`](Self::pad).
    pub fn pad_to(&self, texts: &[&Encoded], tokens: usize, device: &Device) -> Result<Padded> {
        let longest = texts.iter().map(|text| text.ids.len()).max().unwrap_or_default();
        if longest == 0 {
            return Err(Error::Empty { what: "texts of a batch".into() });
        }
        let tokens = tokens.max(longest);
        let shape = (texts.len(), tokens);
        let filled = |of: fn(&Encoded) -> &[u32], fill: u32| {
            let rows = texts.iter().flat_map(|text| {
                let row = of(text);
                row.iter().copied().chain(std::iter::repeat_n(fill, tokens - row.len()))
            });
            Tensor::from_vec(rows.collect::<Vec<u32>>(), shape, device)
        };
        let mask = texts.iter().any(|text| text.ids.len() < tokens).then(|| {
            let rows = texts.iter().flat_map(|text| (0..tokens).map(|i| u8::from(i < text.ids.len())));
            Tensor::from_vec(rows.collect::<Vec<u8>>(), shape, device)
        });
        Ok(Padded {
            ids: filled(|text| &text.ids, self.pad)?,
            mask: mask.transpose()?,
            types: filled(|text| &text.types, 0)?,
        })
    }
}
