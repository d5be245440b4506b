use std::path::{Path, PathBuf};

use tokenizers::{
    AddedToken, DecoderWrapper, Model as _, ModelWrapper, PostProcessorWrapper, PreTokenizerWrapper,
    Tokenizer,
    models::bpe::{BPE, BpeTrainer},
    pre_tokenizers::byte_level::ByteLevel,
};

use crate::{
    Error, Result,
    error::{format, io},
    vocabulary,
};

/// The mark between texts in GPT-2's vocabulary.
pub const END_OF_TEXT: &str = "<|endoftext|>";

/// Byte-level byte-pair encoding, as GPT-2 has it: any text to ids and back, without loss.
///
/// ```
/// use layerwise_data::ByteBpe;
///
/// let bpe = ByteBpe::train(["low lower lowest", "new newer newest"], 270)?;
/// let ids = bpe.ids("lower ☃")?;
/// assert_eq!(bpe.text(&ids)?, "lower ☃");
/// assert!(ids.len() < "lower ☃".len());
/// # Ok::<(), layerwise_data::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct ByteBpe {
    path: PathBuf,
    tokenizer: Tokenizer,
}

/// Text that comes token by token: characters of several bytes are kept until they are whole.
pub struct TextStream<'a> {
    path: &'a Path,
    tokenizer: &'a Tokenizer,
    /// Ids of a character that is not whole.
    kept: Vec<u32>,
    #[allow(clippy::type_complexity, reason = "the tokenizers' own")]
    stream: tokenizers::tokenizer::DecodeStream<
        'a,
        ModelWrapper,
        tokenizers::NormalizerWrapper,
        PreTokenizerWrapper,
        PostProcessorWrapper,
        DecoderWrapper,
    >,
}

impl ByteBpe {
    /// The `tokenizer.json` of a model's folder, or its `vocab.json` and `merges.txt`.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`] where there is neither; [`Error::Format`] for files that are no tokenizer, or one that is not of pairs of bytes, or not of all bytes.
    pub fn open(folder: &Path) -> Result<Self> {
        let [whole, vocabulary, merges] =
            ["tokenizer.json", "vocab.json", "merges.txt"].map(|name| folder.join(name));
        let bpe = if whole.is_file() {
            Self { tokenizer: by_bytes(&whole)?, path: whole }
        } else if vocabulary.is_file() && merges.is_file() {
            Self { tokenizer: of_pairs(&vocabulary, &merges)?, path: vocabulary }
        } else {
            let expected = "tokenizer.json, or vocab.json and merges.txt".to_owned();
            return Err(Error::NotFound { folder: folder.to_owned(), expected });
        };
        bpe.check_bytes()?;
        Ok(bpe)
    }

    /// Every byte has a piece: a text with one that has none would lose it.
    fn check_bytes(&self) -> Result<()> {
        let model = self.tokenizer.get_model();
        let is_piece = |symbol: &char| model.token_to_id(&symbol.to_string()).is_some();
        match ByteLevel::alphabet().iter().filter(|symbol| !is_piece(symbol)).count() {
            0 => Ok(()),
            without => {
                Err(format(&self.path, format!("{without} of the 256 bytes have no piece of their own")))
            }
        }
    }

    /// Learns `vocabulary` pieces of some texts, the 256 bytes and [`END_OF_TEXT`] among them: fewer where the texts do not have so many.
    ///
    /// # Errors
    ///
    /// [`Error::Setting`] for fewer than 257 pieces.
    pub fn train<'t>(
        texts: impl IntoIterator<Item = &'t str, IntoIter: Send>,
        vocabulary: usize,
    ) -> Result<Self> {
        if vocabulary < 257 {
            let expected = "257 at least: the bytes and the mark between texts".to_owned();
            return Err(Error::Setting { field: "vocabulary", value: vocabulary.to_string(), expected });
        }
        let mut trainer = BpeTrainer::builder()
            .vocab_size(vocabulary)
            .min_frequency(2)
            .show_progress(false)
            .special_tokens(vec![AddedToken::from(END_OF_TEXT, true)])
            .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
            .build();
        let path = PathBuf::from("a tokenizer of byte pairs");
        let failed = |error: tokenizers::Error| format(&path, error.to_string());
        let mut tokenizer = tokenizers::TokenizerImpl::<
            BPE,
            tokenizers::NormalizerWrapper,
            ByteLevel,
            ByteLevel,
            ByteLevel,
        >::new(BPE::default());
        tokenizer.with_pre_tokenizer(Some(pieces()));
        tokenizer.train(&mut trainer, texts.into_iter()).map_err(failed)?;
        let mut tokenizer = byte_level(tokenizer.get_model().clone());
        tokenizer.add_special_tokens([AddedToken::from(END_OF_TEXT, true)]).map_err(failed)?;
        Ok(Self { tokenizer, path })
    }

    /// Writes `tokenizer.json` into a folder, which other programs read, too.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] where it cannot be written.
    pub fn save(&self, folder: &Path) -> Result<()> {
        let path = folder.join("tokenizer.json");
        let text = self.tokenizer.to_string(true).map_err(|error| format(&path, error.to_string()))?;
        crate::whole_file::write_whole(&path, text.as_bytes()).map_err(io(&path))
    }

    /// Ids of a text, nothing added.
    ///
    /// # Errors
    ///
    /// [`Error::Format`] for what the tokenizer cannot do.
    pub fn ids(&self, text: &str) -> Result<Vec<u32>> {
        let mut ids = Vec::new();
        for parts in parts(text).chunks(AT_ONCE) {
            let encodings = self.tokenizer.encode_batch_fast(parts.to_vec(), false);
            let encodings = encodings.map_err(|error| format(&self.path, error.to_string()))?;
            ids.extend(encodings.iter().flat_map(|encoding| encoding.get_ids()));
        }
        Ok(ids)
    }

    /// The text of ids; what is no UTF-8 among it becomes U+FFFD.
    ///
    /// # Errors
    ///
    /// [`Error::Setting`] for an id that there is not.
    pub fn text(&self, ids: &[u32]) -> Result<String> {
        if let Some(&id) = ids.iter().find(|id| self.tokenizer.id_to_token(**id).is_none()) {
            return Err(no_piece(id, &self.tokenizer));
        }
        self.tokenizer.decode(ids, false).map_err(|error| format(&self.path, error.to_string()))
    }

    /// For text that comes token by token.
    #[must_use]
    pub fn stream(&self) -> TextStream<'_> {
        TextStream {
            path: &self.path,
            tokenizer: &self.tokenizer,
            kept: Vec::new(),
            stream: self.tokenizer.decode_stream(false),
        }
    }

    /// Ids that there are: all below this number.
    #[must_use]
    pub fn vocabulary(&self) -> usize {
        vocabulary::pieces(&self.tokenizer)
    }

    /// The id of [`END_OF_TEXT`], if there is one.
    #[must_use]
    pub fn end_of_text(&self) -> Option<u32> {
        self.tokenizer.token_to_id(END_OF_TEXT)
    }

    /// Whether this is the tokenizer of a model with a table of `vocabulary` rows.
    ///
    /// # Errors
    ///
    /// [`Error::Vocabulary`] when ids are beyond the table, or far below its end.
    pub fn check(&self, vocabulary: usize) -> Result<()> {
        vocabulary::check(&self.tokenizer, &self.path, vocabulary)
    }
}

impl TextStream<'_> {
    /// What the next id adds; nothing while a character is not whole.
    ///
    /// # Errors
    ///
    /// [`Error::Setting`] for an id that there is not; [`Error::Format`] for what the tokenizer cannot do.
    pub fn push(&mut self, id: u32) -> Result<Option<String>> {
        if self.tokenizer.id_to_token(id).is_none() {
            return Err(no_piece(id, self.tokenizer));
        }
        self.kept.push(id);
        let text = self.stream.step(id).map_err(|error| format(self.path, error.to_string()))?;
        if text.is_some() {
            self.kept.clear();
        }
        Ok(text)
    }

    /// What is left when no id comes any more: a character that is not whole becomes U+FFFD.
    ///
    /// # Errors
    ///
    /// [`Error::Format`] for what the tokenizer cannot do.
    pub fn finish(self) -> Result<Option<String>> {
        if self.kept.is_empty() {
            return Ok(None);
        }
        let text = self.tokenizer.decode(&self.kept, false);
        text.map(Some).map_err(|error| format(self.path, error.to_string()))
    }
}

impl std::fmt::Debug for TextStream<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TextStream").field("path", &self.path).finish_non_exhaustive()
    }
}

/// Bytes of a text that a thread encodes at a time.
const PART: usize = 1 << 14;

/// Parts that are encoded together: what the tokenizer keeps of each is much larger than its ids.
const AT_ONCE: usize = 256;

/// A text in parts whose ids are those of the whole: a space before a word belongs to the word.
fn parts(text: &str) -> Vec<&str> {
    let mut parts = Vec::new();
    let mut rest = text;
    while rest.len() > PART {
        let spaces = rest.as_bytes().windows(2).enumerate().skip(PART);
        let word = |(_, pair): &(usize, &[u8])| pair[0] == b' ' && pair[1].is_ascii_graphic();
        let Some((at, _)) = spaces.into_iter().find(word) else { break };
        let (part, after) = rest.split_at(at);
        parts.push(part);
        rest = after;
    }
    parts.push(rest);
    parts
}

fn no_piece(id: u32, tokenizer: &Tokenizer) -> Error {
    let expected = format!("one of the tokenizer's {} pieces", vocabulary::pieces(tokenizer));
    Error::Setting { field: "an id", value: id.to_string(), expected }
}

/// The tokenizer of a `tokenizer.json`, if it is one of byte pairs as GPT-2 has them.
fn by_bytes(path: &Path) -> Result<Tokenizer> {
    let bytes = std::fs::read(path).map_err(io(path))?;
    let bad = |error: tokenizers::Error| format(path, error.to_string());
    let mut tokenizer = Tokenizer::from_bytes(bytes).map_err(bad)?;
    // What the file says of samples is nothing to a corpus.
    tokenizer.with_truncation(None).map_err(bad)?;
    tokenizer.with_padding(None);
    let by_bytes = matches!(tokenizer.get_model(), ModelWrapper::BPE(pairs) if pairs.dropout.is_none())
        && matches!(tokenizer.get_pre_tokenizer(), Some(PreTokenizerWrapper::ByteLevel(level)) if level.use_regex && !level.add_prefix_space)
        && matches!(tokenizer.get_decoder(), Some(DecoderWrapper::ByteLevel(_)));
    if !by_bytes || tokenizer.get_normalizer().is_some() {
        let expected = "expected pairs of bytes, as GPT-2 has them: a ByteLevel pre-tokenizer with use_regex and without add_prefix_space, BPE without dropout, a ByteLevel decoder, \
            and no normaliser";
        return Err(format(path, expected));
    }
    Ok(tokenizer)
}

/// The tokenizer of a `vocab.json` and a `merges.txt`.
fn of_pairs(vocabulary: &Path, merges: &Path) -> Result<Tokenizer> {
    let name = |path: &Path| path.to_str().map(str::to_owned).ok_or_else(|| format(path, "a name in UTF-8"));
    let bad = |error: tokenizers::Error| format(vocabulary, error.to_string());
    let mut tokenizer = byte_level(BPE::from_file(&name(vocabulary)?, &name(merges)?).build().map_err(bad)?);
    if tokenizer.token_to_id(END_OF_TEXT).is_some() {
        tokenizer.add_special_tokens([AddedToken::from(END_OF_TEXT, true)]).map_err(bad)?;
    }
    Ok(tokenizer)
}

/// How GPT-2 cuts texts before pairs are joined: no space is put before the first word.
fn pieces() -> ByteLevel {
    ByteLevel::default().add_prefix_space(false)
}

fn byte_level(model: BPE) -> Tokenizer {
    let mut tokenizer = Tokenizer::new(model);
    tokenizer.with_pre_tokenizer(Some(pieces()));
    tokenizer.with_decoder(Some(pieces()));
    tokenizer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_have_the_ids_of_the_whole() -> Result<()> {
        let odd = "  and\n\n the \u{a0} end\r\n (it  is); \t'tis 12 34\n= ☃ ";
        let text: String = (0..1500).map(|i| odd.repeat(1 + i % 3)).collect();
        assert!(text.len() > 4 * PART && parts(&text).len() > 3);
        let bpe = ByteBpe::train(odd.split_inclusive(' ').cycle().take(400), 290)?;
        let whole =
            bpe.tokenizer.encode_fast(text.as_str(), false).map_err(|e| format(&bpe.path, e.to_string()))?;
        assert_eq!(bpe.ids(&text)?, whole.get_ids());
        Ok(())
    }
}
