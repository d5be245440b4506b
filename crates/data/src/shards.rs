//! Numbered parts of a data set, as the Hugging Face hub names them.

use std::collections::{BTreeMap, BTreeSet};

/// The parts that `names` count and lack: with `train-00000-of-00002.parquet` alone, `train-00001-of-00002.parquet`. Names may
/// have folders before them and a checksum after the count; those of another form are passed over.
///
/// ```
/// use layerwise_data::missing_shards;
///
/// let names = ["data/test-00000-of-00001-1a2b.parquet", "data/train-00001-of-00002.parquet", "README.md"];
/// assert!(missing_shards(names).eq(["data/train-00000-of-00002.parquet"]));
/// ```
pub fn missing_shards<'a>(names: impl IntoIterator<Item = &'a str>) -> impl Iterator<Item = String> {
    let mut present = BTreeMap::<_, BTreeSet<u32>>::new();
    for (split, part, count) in names.into_iter().filter_map(numbered) {
        present.entry((split, count)).or_default().insert(part);
    }
    present.into_iter().flat_map(|((split, count), parts)| {
        let lacking = (0..count).filter(move |part| !parts.contains(part));
        lacking.map(move |part| format!("{split}-{part:05}-of-{count:05}.parquet"))
    })
}

/// `train`, 0 and 2 of `train-00000-of-00002.parquet` or `train-00000-of-00002-1a2b.parquet`.
fn numbered(name: &str) -> Option<(&str, u32, u32)> {
    let (head, tail) = name.rsplit_once("-of-")?;
    let (split, part) = head.rsplit_once('-')?;
    let count = tail.split(['-', '.']).next()?;
    Some((split, part.parse().ok()?, count.parse().ok()?))
}
