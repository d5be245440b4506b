//! Which parquet files of a folder are read, and what is said of those that are not there.
#![cfg(feature = "parquet")]

use std::{
    fmt,
    fs::File,
    io::Cursor,
    path::Path,
    sync::{Arc, Mutex},
};

use image::{ImageFormat, RgbImage};
use layerwise_data::{ImageSet, Split, cifar10};
use parquet::{
    data_type::{ByteArrayType, Int64Type},
    file::writer::SerializedFileWriter,
    schema::parser::parse_message_type,
};
use tracing::{
    Event, Metadata, Subscriber,
    field::{Field, Visit},
    span,
};

type Result<T = ()> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Black images with these labels, as the hub holds them.
fn write(path: &Path, labels: &[i64]) -> Result {
    let mut png = Vec::new();
    RgbImage::new(32, 32).write_to(&mut Cursor::new(&mut png), ImageFormat::Png)?;
    let schema = "message rows { required group img { required binary bytes; } required int64 label; }";
    let schema = Arc::new(parse_message_type(schema)?);
    let mut file = SerializedFileWriter::new(File::create(path)?, schema, Default::default())?;
    let mut rows = file.next_row_group()?;
    let mut column = rows.next_column()?.ok_or("no column img.bytes")?;
    column.typed::<ByteArrayType>().write_batch(&vec![png.into(); labels.len()], None, None)?;
    column.close()?;
    let mut column = rows.next_column()?.ok_or("no column label")?;
    column.typed::<Int64Type>().write_batch(labels, None, None)?;
    column.close()?;
    rows.close()?;
    file.close()?;
    Ok(())
}

/// What `cifar10::load` makes of these files, each of one image with the label given, and its warnings.
fn loaded(files: &[(&str, i64)], split: Split) -> Result<(Vec<u32>, Vec<String>)> {
    let folder = tempfile::tempdir()?;
    for (name, label) in files {
        write(&folder.path().join(format!("{name}.parquet")), &[*label])?;
    }
    let (set, warnings) = warned(|| cifar10::load(folder.path(), split));
    Ok((set?.labels().to_vec(), warnings))
}

#[test]
fn missing_shards_are_named() -> Result {
    let files = [("train-00003-of-00004", 3), ("train-00001-of-00004", 1), ("test-00000-of-00009", 5)];
    let (labels, warnings) = loaded(&files, Split::Train)?;
    assert_eq!(labels, [1, 3]);
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    let missing = r#"missing={"train-00000-of-00004", "train-00002-of-00004"}"#;
    assert!(warnings[0].contains(missing) && warnings[0].contains("folder="), "{warnings:?}");
    Ok(())
}

#[test]
fn nothing_is_said_of_what_is_whole() -> Result {
    for files in [
        [("train-00000-of-00002", 1), ("train-00001-of-00002", 2)],
        // Older files of the hub: a checksum follows.
        [("train-00000-of-00002-2f1a", 1), ("train-00001-of-00002-77c0", 2)],
        [("train-first", 1), ("train-second", 2)],
        [("train-x-of-y", 1), ("train-é-of-0é0000", 2)],
    ] {
        assert_eq!(loaded(&files, Split::Train)?, (vec![1, 2], vec![]), "{files:?}");
    }
    Ok(())
}

#[test]
fn a_validation_set_is_the_test_set_only_where_there_is_none() -> Result {
    let (test, validation) = (("test-00000-of-00001", 1), ("validation-00000-of-00001", 2));
    assert_eq!(loaded(&[test, validation], Split::Test)?, (vec![1], vec![]));
    assert_eq!(loaded(&[validation], Split::Test)?, (vec![2], vec![]));
    Ok(())
}

/// 30,000 of the 50,000 training images are kept for development.
#[test]
fn the_real_part_of_the_training_set() -> Result {
    let Some(shared) = layerwise_testkit::from_env("LAYERWISE_SHARED") else { return Ok(()) };
    let (set, warnings) = warned(|| cifar10::load(&shared.join("data/cifar10"), Split::Train));
    let set: ImageSet = set?;
    assert_eq!(set.len(), 30_000);
    for class in 0..10 {
        assert_eq!(set.labels().iter().filter(|&&label| label == class).count(), 3000);
    }
    assert!(warnings.concat().contains(r#"missing={"train-00001-of-00002"}"#), "{warnings:?}");
    Ok(())
}

/// What `f` returns, and what it tells `tracing`.
fn warned<T>(f: impl FnOnce() -> T) -> (T, Vec<String>) {
    let lines = Arc::new(Mutex::new(Vec::new()));
    let value = tracing::subscriber::with_default(Lines(Arc::clone(&lines)), f);
    let lines = std::mem::take(&mut *lines.lock().expect("no panic while writing"));
    (value, lines)
}

struct Lines(Arc<Mutex<Vec<String>>>);

impl Subscriber for Lines {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn event(&self, event: &Event<'_>) {
        struct Line(String);
        impl Visit for Line {
            fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
                self.0 += &format!("{field}={value:?} ");
            }
        }
        let mut line = Line(format!("{} ", event.metadata().level()));
        event.record(&mut line);
        self.0.lock().expect("no panic while writing").push(line.0);
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
    fn enter(&self, _: &span::Id) {}
    fn exit(&self, _: &span::Id) {}
}
