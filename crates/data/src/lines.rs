//! Files of lines.

use std::path::{Path, PathBuf};

use crate::{
    Result,
    error::{at_line, format},
    files::{open, read},
};

/// Bytes of a file, unpacked; the largest of GLUE has 80 million.
const LIMIT: usize = 1 << 30;
/// A byte order mark.
const MARK: &[u8] = b"\xef\xbb\xbf";

/// A file of lines, plain or `.gz`.
pub(crate) struct Lines {
    path: PathBuf,
    bytes: Vec<u8>,
}

impl Lines {
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let mut bytes = read(&mut open(path)?, LIMIT + 1, path)?;
        if bytes.len() > LIMIT {
            return Err(format(path, format!("more than {LIMIT} bytes")));
        }
        if bytes.last() == Some(&b'\n') {
            bytes.pop();
        }
        Ok(Self { path: path.to_owned(), bytes })
    }

    /// Lines, each with its number from 1, without what ends it; a mark at the beginning of the first is taken away.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Result<(usize, &str)>> {
        let bytes = self.bytes.strip_prefix(MARK).unwrap_or(&self.bytes);
        let lines = bytes.split(|byte| *byte == b'\n').take(if bytes.is_empty() { 0 } else { usize::MAX });
        lines.enumerate().map(|(i, line)| {
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            let text = std::str::from_utf8(line).map_err(|error| {
                at_line(
                    &self.path,
                    i + 1,
                    format!("not UTF-8 from byte {} of the line on", error.valid_up_to()),
                )
            })?;
            Ok((i + 1, text))
        })
    }
}
