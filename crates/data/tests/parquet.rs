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
use layerwise_data::{Error, ImageSet, Shape, Split, cifar10, hugging_face};
use parquet::{
    data_type::{ByteArray, ByteArrayType, Int64Type},
    file::{metadata::KeyValue, properties::WriterProperties, writer::SerializedFileWriter},
    schema::parser::parse_message_type,
};
use tracing::{
    Event, Metadata, Subscriber,
    field::{Field, Visit},
    span,
};

type Result<T = ()> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Black images of 32 x 32 pixels with these labels, as the hub holds them.
fn write(path: &Path, labels: &[i64]) -> Result {
    write_images(path, labels, &[(32, 32)], None)
}

/// Black images of these sizes in turn, and what the schema's metadata says under `huggingface`.
fn write_images(path: &Path, labels: &[i64], sizes: &[(u32, u32)], huggingface: Option<&str>) -> Result {
    let png = |&(width, height): &(u32, u32)| -> Result<ByteArray> {
        let mut png = Vec::new();
        RgbImage::new(width, height).write_to(&mut Cursor::new(&mut png), ImageFormat::Png)?;
        Ok(png.into())
    };
    let images: Vec<ByteArray> = sizes.iter().cycle().take(labels.len()).map(png).collect::<Result<_>>()?;
    let entry = |text: &str| vec![KeyValue::new("huggingface".to_owned(), text.to_owned())];
    let properties = WriterProperties::builder().set_key_value_metadata(huggingface.map(entry)).build();
    let schema = "message rows { required group img { required binary bytes; } required int64 label; }";
    let schema = Arc::new(parse_message_type(schema)?);
    let mut file = SerializedFileWriter::new(File::create(path)?, schema, properties.into())?;
    let mut rows = file.next_row_group()?;
    let mut column = rows.next_column()?.ok_or("no column img.bytes")?;
    column.typed::<ByteArrayType>().write_batch(&images, None, None)?;
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
    let missing = r#"missing=["train-00000-of-00004.parquet", "train-00002-of-00004.parquet"]"#;
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
    assert!(warnings.concat().contains(r#"missing=["train-00001-of-00002.parquet"]"#), "{warnings:?}");
    Ok(())
}

const TWO_CLASSES: &str =
    r#"{"info": {"features": {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}}}"#;

#[test]
fn any_data_set_names_its_classes_and_its_size() -> Result {
    let folder = tempfile::tempdir()?;
    let data = folder.path().join("data");
    std::fs::create_dir(&data)?;
    write_images(&data.join("train-00000-of-00001.parquet"), &[1, 0, 1], &[(6, 4)], Some(TWO_CLASSES))?;
    write_images(&data.join("validation-00000-of-00001.parquet"), &[0], &[(6, 4)], Some(TWO_CLASSES))?;
    let set = hugging_face::load(folder.path(), Split::Train)?;
    assert_eq!((set.labels(), set.classes()), (&[1, 0, 1][..], &["cat".to_owned(), "dog".to_owned()][..]));
    assert_eq!(set.shape(), Shape { channels: 3, height: 4, width: 6 });
    assert_eq!(hugging_face::load(&data, Split::Test)?.labels(), [0]);
    Ok(())
}

#[test]
fn what_is_no_data_set_is_named_with_what_was_expected() -> Result {
    let folder = tempfile::tempdir()?;
    let error = hugging_face::load(folder.path(), Split::Test).unwrap_err();
    assert!(matches!(&error, Error::NotFound { expected, .. } if expected.contains("test-00000")), "{error}");
    let error = hugging_face::load(&folder.path().join("absent"), Split::Train).unwrap_err();
    assert!(error.to_string().contains("absent"), "{error}");

    let file = folder.path().join("train-00000-of-00001.parquet");
    for (labels, sizes, metadata, wrong) in [
        (&[0, 1][..], &[(8, 8), (8, 9)][..], Some(TWO_CLASSES), "row 1: 8x9 pixels, expected 8x8"),
        (&[0, 2], &[(8, 8)], Some(TWO_CLASSES), "row 1: label 2, expected 0 to 1"),
        (&[-1], &[(8, 8)], Some(TWO_CLASSES), "row 0: label -1"),
        (&[0], &[(8, 8)], None, "names of the classes"),
        (
            &[0],
            &[(8, 8)],
            Some(r#"{"info": {"features": {"label": {"names": []}}}}"#),
            "names of the classes",
        ),
        (&[0], &[(8, 8)], Some("{"), "huggingface"),
        (&[], &[(8, 8)], Some(TWO_CLASSES), "no rows"),
    ] {
        write_images(&file, labels, sizes, metadata)?;
        let error = hugging_face::load(folder.path(), Split::Train).unwrap_err().to_string();
        assert!(error.contains(wrong) && error.contains("train-00000-of-00001.parquet"), "{error}");
    }
    std::fs::write(&file, "PAR1 but not really PAR1")?;
    let error = hugging_face::load(folder.path(), Split::Train).unwrap_err();
    assert!(matches!(&error, Error::Format { path, .. } if path == &file), "{error}");
    Ok(())
}

#[test]
fn the_real_part_of_tiny_imagenet() -> Result {
    let Some(shared) = layerwise_testkit::from_env("LAYERWISE_SHARED") else { return Ok(()) };
    let folder = shared.join("data/tiny-imagenet-20");
    let [train, test] = [Split::Train, Split::Test].map(|split| hugging_face::load(&folder, split));
    let (train, test) = (train?, test?);
    assert_eq!((train.len(), test.len(), train.classes().len()), (6000, 1000, 20));
    assert_eq!(train.shape(), Shape { channels: 3, height: 64, width: 64 });
    assert!(train.classes()[0].contains("goldfish"), "{}", train.classes()[0]);
    for class in 0..20 {
        assert_eq!(train.labels().iter().filter(|&&label| label == class).count(), 300);
    }
    // The same files through the other reader.
    let shift = shared.join("data/cifar10-shift-tinyimagenet");
    assert_eq!(hugging_face::load(&shift, Split::Test)?, cifar10::load(&shift, Split::Test)?);
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
