//! CIFAR-10 from binary batches and from parquet, with rows, columns and channels where they belong.

use std::{fs, path::Path};

use layerwise_data::{Shape, Split, cifar10};

type Result<T = ()> = std::result::Result<T, Box<dyn std::error::Error>>;

/// A pixel of the tiny images, different in neighbouring images, channels, rows and columns.
fn pixel(image: usize, channel: usize, y: usize, x: usize) -> u8 {
    (image * 101 + channel * 61 + y * 7 + x * 3) as u8
}

/// `count` images from number `first`, as the official files hold them: label, red, green and blue plane, each row by row.
fn batch(first: usize, count: usize) -> Vec<u8> {
    let record = |image: usize| {
        let plane = move |c: usize| (0..32 * 32).map(move |i| pixel(image, c, i / 32, i % 32));
        std::iter::once((image % 10) as u8).chain((0..3).flat_map(plane))
    };
    (first..first + count).flat_map(record).collect()
}

fn write_batches(folder: &Path) -> Result {
    fs::create_dir_all(folder)?;
    for i in 0..5 {
        fs::write(folder.join(format!("data_batch_{}.bin", i + 1)), batch(2 * i, 2))?;
    }
    fs::write(folder.join("test_batch.bin"), batch(20, 3))?;
    Ok(())
}

#[test]
fn binary_batches_here_or_in_the_official_folder() -> Result {
    for subfolder in ["", "cifar-10-batches-bin"] {
        let folder = tempfile::tempdir()?;
        write_batches(&folder.path().join(subfolder))?;
        for (split, first, count) in [(Split::Train, 0, 10), (Split::Test, 20, 3)] {
            let set = cifar10::load(folder.path(), split)?;
            assert_eq!(set.shape(), Shape { channels: 3, height: 32, width: 32 });
            assert_eq!((set.len(), set.max()), (count, 255));
            assert_eq!(set.classes(), cifar10::CLASSES);
            for i in 0..count {
                let image = set.image(i).ok_or("no image")?;
                assert_eq!(set.labels()[i], (first + i) as u32 % 10);
                for (c, y, x) in [(0, 0, 0), (0, 0, 31), (1, 31, 0), (1, 5, 17), (2, 17, 5), (2, 31, 31)] {
                    assert_eq!(image[(c * 32 + y) * 32 + x], pixel(first + i, c, y, x));
                }
            }
        }
    }
    Ok(())
}

/// Equivalent Python:
///
/// ```python
/// rows = pyarrow.parquet.read_table(file).to_pylist()
/// x = np.array([np.asarray(PIL.Image.open(io.BytesIO(row["img"]["bytes"]))) for row in rows])
/// x[0, 5, 17], x.astype(int).sum((0, 1, 2)), (x[0].transpose(2, 0, 1).ravel() * np.arange(1, 3073)).sum()
/// ```
#[cfg(feature = "parquet")]
#[test]
fn the_real_test_set_from_parquet() -> Result {
    let Some(shared) = layerwise_testkit::from_env("LAYERWISE_SHARED") else { return Ok(()) };
    let set = cifar10::load(&shared.join("data/cifar10"), Split::Test)?;
    assert_eq!(set, cifar10::load(&shared.join("data/cifar10/plain_text"), Split::Test)?);
    assert_eq!(set.len(), 10_000);
    for class in 0..10 {
        assert_eq!(set.labels().iter().filter(|&&label| label == class).count(), 1000);
    }
    assert_eq!(set.labels()[..10], [3, 8, 8, 0, 6, 6, 1, 6, 3, 1]);
    let pixels = [
        (0, 0, 0, [158, 112, 49]),
        (0, 0, 31, [116, 85, 33]),
        (0, 31, 0, [54, 107, 160]),
        (0, 5, 17, [66, 56, 45]),
        (0, 17, 5, [94, 102, 105]),
        (9_999, 0, 31, [203, 215, 223]),
        (9_999, 31, 0, [116, 120, 90]),
    ];
    for (i, y, x, want) in pixels {
        let image = set.image(i).ok_or("no image")?;
        assert_eq!([0, 1, 2].map(|c| image[(c * 32 + y) * 32 + x]), want, "image {i}, row {y}, column {x}");
    }
    let first = set.image(0).into_iter().flatten().zip(1u64..);
    assert_eq!(first.map(|(&x, weight)| u64::from(x) * weight).sum::<u64>(), 506_130_044);
    let mut sums = [0u64; 3];
    for image in (0..set.len()).filter_map(|i| set.image(i)) {
        for (sum, plane) in sums.iter_mut().zip(image.chunks_exact(32 * 32)) {
            *sum += plane.iter().map(|&x| u64::from(x)).sum::<u64>();
        }
    }
    assert_eq!(sums, [1_290_492_328, 1_266_775_083, 1_176_108_223]);
    Ok(())
}
