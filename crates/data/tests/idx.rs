//! MNIST's files in every layout they come in, and the real ones.

use std::{fs, io::Write, path::Path};

use flate2::{Compression, write::GzEncoder};
use layerwise_data::{Shape, Split, idx};

type Result<T = ()> = std::result::Result<T, Box<dyn std::error::Error>>;

fn write(folder: &Path, stem: &str, header: &[u8], body: &[u8], zipped: bool) -> Result {
    let bytes = [header, body].concat();
    if zipped {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(&bytes)?;
        fs::write(folder.join(format!("{stem}.gz")), encoder.finish()?)?;
    } else {
        fs::write(folder.join(stem), bytes)?;
    }
    Ok(())
}

#[test]
fn every_layout_gives_the_same_images() -> Result {
    // Two images of 2 rows and 3 columns.
    let header = [0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 2, 0, 0, 0, 3];
    let pixels = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 255, 0];
    for (split, prefix) in [(Split::Train, "train"), (Split::Test, "t10k")] {
        for separator in ["-", "."] {
            for zipped in [false, true] {
                let folder = tempfile::tempdir()?;
                let stem = format!("{prefix}-images{separator}idx3-ubyte");
                write(folder.path(), &stem, &header, &pixels, zipped)?;
                let stem = format!("{prefix}-labels{separator}idx1-ubyte");
                write(folder.path(), &stem, &[0, 0, 8, 1, 0, 0, 0, 2], &[9, 0], zipped)?;

                let set = idx::load(folder.path(), split)?;
                assert_eq!(set.shape(), Shape { channels: 1, height: 2, width: 3 });
                assert_eq!(set.image(0), Some([1, 2, 3, 4, 5, 6].as_slice()));
                assert_eq!(set.image(1), Some([7, 8, 9, 10, 255, 0].as_slice()));
                assert_eq!((set.labels(), set.max(), set.classes().len()), ([9, 0].as_slice(), 255, 10));
            }
        }
    }
    Ok(())
}

/// EMNIST's letters count from 1; Kuzushiji-49 has 49 classes.
#[test]
fn there_are_as_many_classes_as_the_labels_need() -> Result {
    for (labels, classes) in [([9, 0], 10), ([1, 3], 10), ([1, 26], 27), ([48, 0], 49), ([255, 7], 256)] {
        let folder = tempfile::tempdir()?;
        let header = [0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 1];
        write(folder.path(), "train-images-idx3-ubyte", &header, &[1, 2], false)?;
        write(folder.path(), "train-labels-idx1-ubyte", &[0, 0, 8, 1, 0, 0, 0, 2], &labels, false)?;
        let set = idx::load(folder.path(), Split::Train)?;
        assert_eq!(set.labels(), labels.map(u32::from));
        let names: Vec<String> = (0..classes).map(|class: usize| class.to_string()).collect();
        assert_eq!(set.classes(), names);
    }
    Ok(())
}

/// Equivalent Python: `np.frombuffer(gzip.open(images).read()[16:], np.uint8).reshape(-1, 28, 28)`, of it the sum, the sum of
/// image 0 weighted by `np.arange(1, 785)`, and `[0, 5]`; labels from byte 8, `np.bincount`.
#[test]
fn the_real_mnist() -> Result {
    let Some(shared) = layerwise_testkit::from_env("LAYERWISE_SHARED") else { return Ok(()) };
    let train = idx::load(&shared.join("data/mnist"), Split::Train)?;
    let test = idx::load(&shared.join("data/mnist"), Split::Test)?;
    assert_eq!(train.shape(), Shape { channels: 1, height: 28, width: 28 });
    assert_eq!((train.len(), test.len()), (60_000, 10_000));
    assert_eq!(train.labels()[..5], [5, 0, 4, 1, 9]);
    assert_eq!(test.labels()[..5], [7, 2, 1, 0, 4]);
    for (set, sum, weighted) in [(&train, 1_567_298_545, 11_220_489), (&test, 264_923_200, 7_715_336)] {
        let images = || (0..set.len()).filter_map(|i| set.image(i));
        assert_eq!(images().flatten().map(|&x| u64::from(x)).sum::<u64>(), sum);
        let first = images().next().into_iter().flatten().zip(1u64..);
        assert_eq!(first.map(|(&x, weight)| u64::from(x) * weight).sum::<u64>(), weighted);
    }
    let row = &train.image(0).ok_or("no image")?[5 * 28 + 12..][..12];
    assert_eq!(row, [3, 18, 18, 18, 126, 136, 175, 26, 166, 255, 247, 127]);
    let counts: Vec<usize> =
        (0..10).map(|class| test.labels().iter().filter(|&&label| label == class).count()).collect();
    assert_eq!(counts, [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]);
    Ok(())
}
