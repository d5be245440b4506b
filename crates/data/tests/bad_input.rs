//! Files that are not what they should be end in one line that names the file and what was expected.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
};

use candle_core::Device::Cpu;
use flate2::{Compression, write::GzEncoder};
use layerwise_data::{Augment, Error, ImageSet, Normalise, Result, Shape, Split, cifar10, digits, idx};
use proptest::{collection::vec, prelude::*};
use rand::SeedableRng;
use tempfile::TempDir;

const IMAGES: &str = "t10k-images-idx3-ubyte";
const LABELS: &str = "t10k-labels-idx1-ubyte";

/// Two images of 2x3 pixels.
fn images() -> Vec<u8> {
    let mut bytes = vec![0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 2, 0, 0, 0, 3];
    bytes.extend(0..12);
    bytes
}

fn labels() -> Vec<u8> {
    vec![0, 0, 8, 1, 0, 0, 0, 2, 9, 0]
}

fn folder(files: &[(&str, &[u8])]) -> TempDir {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for (name, bytes) in files {
        fs::write(folder.path().join(name), bytes).expect("a file in it");
    }
    folder
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).and_then(|()| encoder.finish()).expect("room in memory")
}

/// The one line of an error, after the file it names.
fn complaint<T>(result: Result<T>, path: &Path) -> String {
    let Err(error) = result else { panic!("{}: no error", path.display()) };
    let text = error.to_string();
    assert_eq!(text.lines().count(), 1, "{text}");
    let rest = text.strip_prefix(&format!("{}: ", path.display()));
    rest.unwrap_or_else(|| panic!("{text} does not name {}", path.display())).to_owned()
}

/// What is wrong with an idx data set of these files, of which `bad` is named.
fn idx_complaint(files: &[(&str, &[u8])], bad: &str) -> String {
    let folder = folder(files);
    complaint(idx::load(folder.path(), Split::Test), &folder.path().join(bad))
}

#[test]
fn missing_folders_and_files() {
    let nowhere = PathBuf::from("no/such/folder");
    assert_eq!(complaint(idx::load(&nowhere, Split::Test), &nowhere), "expected a folder");
    assert_eq!(complaint(cifar10::load(&nowhere, Split::Train), &nowhere), "expected a folder");

    let empty = folder(&[]);
    let want = "expected t10k-images-idx3-ubyte or t10k-images-idx3-ubyte.gz or t10k-images.idx3-ubyte or \
                t10k-images.idx3-ubyte.gz";
    assert_eq!(complaint(idx::load(empty.path(), Split::Test), empty.path()), want);
    let want = "expected data_batch_1.bin or cifar-10-batches-bin/data_batch_1.bin";
    assert_eq!(complaint(cifar10::load(empty.path(), Split::Train), empty.path()), want);

    let half = folder(&[(IMAGES, &images())]);
    let text = complaint(idx::load(half.path(), Split::Test), half.path());
    assert!(text.starts_with("expected t10k-labels-idx1-ubyte or "), "{text}");
}

#[test]
fn idx_files_that_are_not_whole() {
    let (images, labels) = (images(), labels());
    for cut in [0, 3, 15] {
        let text = idx_complaint(&[(IMAGES, &images[..cut]), (LABELS, &labels)], IMAGES);
        assert_eq!(text, format!("{cut} bytes, expected a header of 16"));
    }
    for cut in [16, 27] {
        let text = idx_complaint(&[(IMAGES, &images[..cut]), (LABELS, &labels)], IMAGES);
        assert_eq!(text, format!("{} bytes after the header, expected [2, 2, 3] = 12", cut - 16));
    }
    let text = idx_complaint(&[(IMAGES, &images), (LABELS, &labels[..9])], LABELS);
    assert_eq!(text, "1 bytes after the header, expected [2] = 2");
    let long = [&images[..], &[0]].concat();
    let text = idx_complaint(&[(IMAGES, &long), (LABELS, &labels)], IMAGES);
    assert_eq!(text, "more bytes after the header, expected [2, 2, 3] = 12");
}

#[test]
fn idx_files_of_something_else() {
    let (images, labels) = (images(), labels());
    let text = idx_complaint(&[(IMAGES, &labels), (LABELS, &labels)], IMAGES);
    assert_eq!(text, "starts with [0, 0, 8, 1], expected [0, 0, 8, 3]");
    let text = idx_complaint(&[(IMAGES, b"<html>not found</html>"), (LABELS, &labels)], IMAGES);
    assert_eq!(text, "starts with [60, 104, 116, 109], expected [0, 0, 8, 3]");
    let text = idx_complaint(&[(IMAGES, &images), (LABELS, &[0, 0, 8, 1, 0, 0, 0, 1, 5])], LABELS);
    assert_eq!(text, "1 labels, expected 2, one an image");
}

#[test]
fn idx_sizes_that_no_data_set_has() {
    let labels = labels();
    for [n, h, w] in [[u32::MAX; 3], [60_000, 28, 280_000], [0, 28, 28], [5, 0, u32::MAX]] {
        let mut header = vec![0, 0, 8, 3];
        header.extend([n, h, w].iter().flat_map(|dim| dim.to_be_bytes()));
        let text = idx_complaint(&[(IMAGES, &header), (LABELS, &labels)], IMAGES);
        assert_eq!(text, format!("holds [{n}, {h}, {w}] bytes, expected 1 to 1073741824"));
    }
}

#[test]
fn corrupt_gzip() {
    let labels = labels();
    let name = format!("{IMAGES}.gz");
    let whole = gzip(&images());
    let mut bad_checksum = whole.clone();
    let at = bad_checksum.len() - 8;
    bad_checksum[at] ^= 1;
    for bytes in [&b"no gzip at all"[..], &whole[..whole.len() / 2], &whole[..whole.len() - 2], &bad_checksum]
    {
        let text = idx_complaint(&[(&name, bytes), (LABELS, &labels)], &name);
        assert!(!text.is_empty());
    }
}

/// As `cat a.gz b.gz` makes it.
#[test]
fn gzip_in_pieces_is_read_whole() {
    let (images, labels, name) = (images(), labels(), format!("{IMAGES}.gz"));
    let (first, rest) = images.split_at(images.len() / 2);
    let pieces = folder(&[(&name, &[gzip(first), gzip(rest)].concat()), (LABELS, &labels)]);
    let whole = folder(&[(IMAGES, &images), (LABELS, &labels)]);
    let read = |folder: &TempDir| idx::load(folder.path(), Split::Test).expect("two images");
    assert_eq!(read(&pieces), read(&whole));
}

/// Twelve pixels are announced, 64 MB follow, and the end is cut off, which would be the complaint of a reader that got there.
#[test]
fn a_gzip_bomb_is_not_unpacked() {
    let mut bomb = images();
    bomb.resize(1 << 26, 0);
    let bomb = gzip(&bomb);
    let name = format!("{IMAGES}.gz");
    let text = idx_complaint(&[(&name, &bomb[..bomb.len() - 100]), (LABELS, &labels())], &name);
    assert_eq!(text, "more bytes after the header, expected [2, 2, 3] = 12");
}

#[test]
fn cifar_batches_that_are_not_whole() {
    let name = "test_batch.bin";
    let record = vec![9; 3073];
    let wrong_label = [&record[..], &[10], &[0; 3072]].concat();
    let cases: [(&[u8], &str); 4] = [
        (&[], "0 bytes, expected a multiple of 3073, up to 268435456"),
        (&record[..3072], "3072 bytes, expected a multiple of 3073, up to 268435456"),
        (&[record.clone(), vec![1]].concat(), "3074 bytes, expected a multiple of 3073, up to 268435456"),
        (&wrong_label, "label 10 of image 1, expected 0 to 9"),
    ];
    for (bytes, want) in cases {
        let folder = folder(&[(name, bytes)]);
        assert_eq!(complaint(cifar10::load(folder.path(), Split::Test), &folder.path().join(name)), want);
    }
    // All five batches are needed.
    let folder = folder(&[("data_batch_1.bin", &record)]);
    let text = complaint(cifar10::load(folder.path(), Split::Train), folder.path());
    assert_eq!(text, "expected data_batch_2.bin or cifar-10-batches-bin/data_batch_2.bin");
}

#[cfg(feature = "parquet")]
#[test]
fn corrupt_parquet() {
    let name = "test-00000-of-00001.parquet";
    for bytes in [&b""[..], b"PAR1", &[0; 64], b"PAR1 and something that is no footer PAR1"] {
        let folder = folder(&[(name, bytes)]);
        let text = complaint(cifar10::load(folder.path(), Split::Test), &folder.path().join(name));
        assert!(!text.is_empty());
    }
}

#[cfg(feature = "images")]
#[test]
fn corrupt_images() {
    use layerwise_data::{image_files, read_image};

    let nowhere = PathBuf::from("no/such/folder");
    assert_eq!(complaint(image_files(&nowhere), &nowhere), "expected PNG or JPEG files");
    assert!(matches!(read_image(&nowhere.join("a.png")), Err(Error::Io { .. })));

    let mut png = Vec::new();
    let image = image::RgbImage::from_fn(9, 9, |x, y| image::Rgb([(x * 28) as u8, (y * 28) as u8, 7]));
    image.write_to(&mut std::io::Cursor::new(&mut png), image::ImageFormat::Png).unwrap();
    let mut jpeg = Vec::new();
    image.write_to(&mut std::io::Cursor::new(&mut jpeg), image::ImageFormat::Jpeg).unwrap();
    let mut flipped = png.clone();
    flipped[60] ^= 0xff;
    let jpeg_start = [0xff, 0xd8, 0xff, 0xe0, 0, 16];
    let bad: [(&str, &[u8]); 6] = [
        ("cut.PNG", &png[..png.len() / 2]),
        ("empty.png", &[]),
        ("flipped.png", &flipped),
        ("cut short.jpg", &jpeg[..jpeg.len() - 10]),
        ("short.jpeg", &jpeg_start),
        ("text.jpg", b"no image"),
    ];
    let folder =
        folder(&[&bad[..], &[("fine.jpg", &jpeg), ("fine.png", &png), ("notes.txt", b"no image")]].concat());
    let files = image_files(folder.path()).unwrap();
    let names: Vec<_> = files.iter().map(|path| path.file_name().unwrap().to_str().unwrap()).collect();
    let all = [
        "cut short.jpg",
        "cut.PNG",
        "empty.png",
        "fine.jpg",
        "fine.png",
        "flipped.png",
        "short.jpeg",
        "text.jpg",
    ];
    assert_eq!(names, all);
    for (name, _) in bad {
        let path = folder.path().join(name);
        assert!(!complaint(read_image(&path), &path).is_empty());
    }
    assert_eq!(read_image(&folder.path().join("fine.png")).unwrap(), image);
    assert_eq!(read_image(&folder.path().join("fine.jpg")).unwrap().dimensions(), (9, 9));
}

/// A header that promises 60,000 x 60,000 pixels: 11 GB.
#[cfg(feature = "images")]
#[test]
fn an_image_bomb_is_not_unpacked() {
    let side = 60_000u32.to_be_bytes();
    let header = [&b"IHDR"[..], &side, &side, &[8, 2, 0, 0, 0]].concat();
    let data = [&b"IDAT"[..], &gzip(&[0; 1 << 16])].concat();
    let mut png = b"\x89PNG\r\n\x1a\n".to_vec();
    for chunk in [&header[..], &data, b"IEND"] {
        let mut checksum = flate2::Crc::new();
        checksum.update(chunk);
        png.extend((chunk.len() as u32 - 4).to_be_bytes());
        png.extend(chunk);
        png.extend(checksum.sum().to_be_bytes());
    }
    let folder = folder(&[("bomb.png", &png)]);
    let path = folder.path().join("bomb.png");
    let text = complaint(layerwise_data::read_image(&path), &path);
    assert!(text.to_lowercase().contains("limit"), "{text}");
}

#[test]
fn sets_whose_parts_do_not_belong_together() {
    let shape = Shape { channels: 1, height: 1, width: 2 };
    let set = |pixels: &[u8], labels: &[u32], shape| {
        ImageSet::new(pixels.to_vec(), labels.to_vec(), shape, 16, vec!["a".into(), "b".into()])
    };
    let message = |result: Result<ImageSet>| result.unwrap_err().to_string();
    assert_eq!(message(set(&[], &[], shape)), "images: no samples");
    assert_eq!(message(set(&[], &[0], Shape { width: 0, ..shape })), "images: no samples");
    assert_eq!(message(set(&[1, 2, 3], &[0], shape)), "pixels is 3, expected 1 labels x 2 pixels");
    assert_eq!(message(set(&[1, 17], &[0], shape)), "pixel is 17, expected at most 16");
    let text = message(set(&[1], &[0], Shape { height: usize::MAX, width: 2, ..shape }));
    assert_eq!(text, format!("pixels is 1, expected 1 labels x {} pixels", usize::MAX));
    let black = ImageSet::new(vec![0, 0], vec![0], shape, 0, vec!["a".into()]);
    assert_eq!(message(black), "max is 0, expected 1 to 255");
    let two = Shape { channels: 2, width: 1, ..shape };
    assert_eq!(message(set(&[1, 2], &[0], two)), "channels is 2, expected 1 or 3");
    let text = message(set(&[1, 2, 3, 4], &[0, 2], shape));
    assert_eq!(text, "sample 1: label 2 is out of range, there are 2 classes");
}

#[test]
fn settings_out_of_range() -> Result<()> {
    let set = digits()?;
    for fraction in [0., 1., -0.5, f64::NAN] {
        let text = set.split(fraction, 1).unwrap_err().to_string();
        assert!(text.starts_with("fraction is "), "{text}");
    }
    assert!(matches!(set.take(2)?.split(0.1, 1), Err(Error::Empty { .. })));
    assert!(matches!(set.subset(&[1797]), Err(Error::Index { index: 1797, len: 1797 })));

    let tensors = |normalise: &Normalise| set.tensors(&[0], normalise, None, &Cpu).unwrap_err().to_string();
    let three = Normalise { mean: vec![0.5; 3], std: vec![0.5; 3] };
    assert_eq!(tensors(&three), "mean is 3 values, expected 1, one a channel");
    for std in [0., -1., f32::NAN, f32::INFINITY] {
        let text = tensors(&Normalise { mean: vec![0.5], std: vec![std] });
        assert_eq!(text, format!("std is [{std:?}], expected positive"));
    }
    assert_eq!(tensors(&Normalise { mean: vec![f32::NAN], std: vec![1.] }), "mean is [NaN], expected finite");

    let plain = Normalise { mean: vec![0.5], std: vec![0.5] };
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(1);
    for (augment, field) in [
        (Augment { flip: 1.5, ..Augment::default() }, "flip"),
        (Augment { flip: f64::NAN, ..Augment::default() }, "flip"),
        (Augment { rotation_degrees: f32::NAN, ..Augment::default() }, "rotation_degrees"),
        (Augment { rotation_degrees: f32::INFINITY, ..Augment::default() }, "rotation_degrees"),
        (Augment { rotation_degrees: -1., ..Augment::default() }, "rotation_degrees"),
        (Augment { crop_padding: usize::MAX, ..Augment::default() }, "crop_padding"),
    ] {
        let text = set.tensors(&[0], &plain, Some((&augment, &mut rng)), &Cpu).unwrap_err().to_string();
        assert!(text.starts_with(&format!("{field} is ")), "{text}");
    }
    let text = Augment::default().apply(&[0.; 63], set.shape(), &mut rng).unwrap_err().to_string();
    assert_eq!(text, "image is 63 values, expected 64");
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_bytes_are_an_error_or_a_set(images in vec(any::<u8>(), 0..80), labels in vec(any::<u8>(), 0..20)) {
        for ending in ["", ".gz"] {
            let folder = folder(&[(&format!("{IMAGES}{ending}"), &images), (&format!("{LABELS}{ending}"), &labels)]);
            prop_assert!(idx::load(folder.path(), Split::Test).is_err());
        }
        let folder = folder(&[("test_batch.bin", &images)]);
        prop_assert!(cifar10::load(folder.path(), Split::Test).is_err());
    }

    /// A right beginning, then sizes and contents that may or may not fit.
    #[test]
    fn any_sizes_are_an_error_or_a_set(dims in vec(0u32..4, 3), count in 0u32..4, body in vec(0u8..12, 0..30), labels in vec(0u8..12, 0..4)) {
        let image_bytes = [vec![0, 0, 8, 3], dims.iter().flat_map(|dim| dim.to_be_bytes()).collect(), body.clone()].concat();
        let label_bytes = [vec![0, 0, 8, 1], count.to_be_bytes().to_vec(), labels.clone()].concat();
        let folder = folder(&[(IMAGES, &image_bytes), (LABELS, &label_bytes)]);
        let fits = count > 0
            && dims.iter().product::<u32>() as usize == body.len()
            && dims[0] == count
            && labels.len() == count as usize
            && !body.is_empty();
        match idx::load(folder.path(), Split::Test) {
            Ok(set) => prop_assert!(fits && set.len() == count as usize),
            Err(error) => prop_assert!(!fits, "{error}"),
        }
    }

    #[test]
    fn any_records_are_an_error_or_a_set(bytes in vec(any::<u8>(), 3073..3080), label in 0u8..12) {
        let mut bytes = bytes;
        bytes[0] = label;
        let folder = folder(&[("test_batch.bin", &bytes)]);
        let loaded = cifar10::load(folder.path(), Split::Test);
        prop_assert_eq!(loaded.is_ok(), bytes.len() == 3073 && label < 10);
    }
}
