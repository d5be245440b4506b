//! Whether a tokenizer is a model's.

use std::path::Path;

use tokenizers::Tokenizer;

use crate::{Error, Result};

/// A model's vocabulary may be beyond its tokenizer's: tables are filled up to a multiple of this.
const ROUND: usize = 128;

/// Ids that a tokenizer gives: all below this number.
pub(crate) fn pieces(tokenizer: &Tokenizer) -> usize {
    tokenizer.get_vocab(true).into_values().max().map_or(0, |last| last as usize + 1)
}

/// A table of so many rows is one for this tokenizer.
pub(crate) fn check(tokenizer: &Tokenizer, path: &Path, vocabulary: usize) -> Result<()> {
    let pieces = pieces(tokenizer);
    if (pieces..=pieces.next_multiple_of(ROUND)).contains(&vocabulary) {
        return Ok(());
    }
    Err(Error::Vocabulary { path: path.to_owned(), pieces, vocabulary })
}
