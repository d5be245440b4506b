//! The embedded digits are scikit-learn's, and sets split as promised.

use layerwise_data::{Error, ImageSet, Shape, digits};

type Result<T = (), E = Error> = std::result::Result<T, E>;

/// Equivalent Python:
///
/// ```python
/// digits = sklearn.datasets.load_digits()
/// x, y, n = digits.images.astype(int), digits.target, 1797
/// np.bincount(y)
/// x.sum(), (x.reshape(n, -1) * np.arange(1, 65)).sum(), (x.reshape(n, -1).sum(1) * np.arange(1, n + 1)).sum()
/// (y * np.arange(1, n + 1)).sum()
/// ```
#[test]
fn all_images_are_those_of_scikit_learn() -> Result {
    let set = digits()?;
    assert_eq!((set.len(), set.max()), (1797, 16));
    assert_eq!(set.shape(), Shape { channels: 1, height: 8, width: 8 });
    assert_eq!(set.classes(), ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"]);
    assert_eq!(counts(&set), [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]);

    let (mut sum, mut by_pixel, mut by_image) = (0, 0, 0);
    for (i, image) in images(&set).enumerate() {
        let of_image: usize = image.iter().map(|&x| usize::from(x)).sum();
        sum += of_image;
        by_pixel += image.iter().enumerate().map(|(j, &x)| (j + 1) * usize::from(x)).sum::<usize>();
        by_image += (i + 1) * of_image;
    }
    assert_eq!((sum, by_pixel, by_image), (561_718, 18_222_371, 503_904_265));
    let labels: usize = set.labels().iter().enumerate().map(|(i, &label)| (i + 1) * label as usize).sum();
    assert_eq!(labels, 7_272_861);
    Ok(())
}

#[test]
fn the_first_image_is_a_0() -> Result {
    let set = digits()?;
    #[rustfmt::skip]
    let want = [
        0, 0,  5, 13,  9,  1, 0, 0,
        0, 0, 13, 15, 10, 15, 5, 0,
        0, 3, 15,  2,  0, 11, 8, 0,
        0, 4, 12,  0,  0,  8, 8, 0,
        0, 5,  8,  0,  0,  9, 8, 0,
        0, 4, 11,  0,  1, 12, 7, 0,
        0, 2, 14,  5, 10, 12, 0, 0,
        0, 0,  6, 13, 10,  0, 0, 0,
    ];
    assert_eq!(set.image(0), Some(want.as_slice()));
    assert_eq!(set.labels()[..10], [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
    assert_eq!(set.image(1797), None);
    Ok(())
}

#[test]
fn a_split_keeps_the_proportion_of_the_classes() -> Result {
    let set = digits()?;
    for fraction in [0.1, 0.25, 0.9] {
        let (rest, held_out) = set.split(fraction, 7)?;
        for ((all, rest), held_out) in counts(&set).iter().zip(counts(&rest)).zip(counts(&held_out)) {
            assert_eq!(held_out, (*all as f64 * fraction).round() as usize);
            assert_eq!(rest + held_out, *all);
        }
    }
    Ok(())
}

#[test]
fn the_parts_of_a_split_are_disjoint_and_in_order() -> Result {
    let set = numbered(300)?;
    let (rest, held_out) = set.split(0.3, 1)?;
    let (rest, held_out) = (numbers(&rest), numbers(&held_out));
    assert!(rest.is_sorted() && held_out.is_sorted());
    let mut all = [rest, held_out].concat();
    all.sort_unstable();
    assert_eq!(all, numbers(&set));
    Ok(())
}

#[test]
fn a_split_depends_on_its_seed_only() -> Result {
    let set = numbered(300)?;
    assert_eq!(set.split(0.3, 1)?, set.split(0.3, 1)?);
    assert_ne!(set.split(0.3, 1)?, set.split(0.3, 2)?);
    Ok(())
}

#[test]
fn subsets_keep_the_order_asked_for() -> Result {
    let set = numbered(300)?;
    let subset = set.subset(&[299, 0, 7, 7])?;
    assert_eq!(numbers(&subset), [299, 0, 7, 7]);
    assert_eq!(subset.labels(), [299 % 4, 0, 3, 3]);
    assert_eq!(numbers(&set.take(3)?), [0, 1, 2]);
    assert_eq!(set.take(1000)?, set);
    Ok(())
}

/// Images whose two pixels tell their index, in four classes.
fn numbered(n: usize) -> Result<ImageSet> {
    let pixels = (0..n).flat_map(|i| [(i / 256) as u8, (i % 256) as u8]).collect();
    let labels = (0..n).map(|i| i as u32 % 4).collect();
    let classes = ["a", "b", "c", "d"].map(String::from).to_vec();
    ImageSet::new(pixels, labels, Shape { channels: 1, height: 1, width: 2 }, 255, classes)
}

fn numbers(set: &ImageSet) -> Vec<usize> {
    images(set).map(|image| usize::from(image[0]) * 256 + usize::from(image[1])).collect()
}

fn images(set: &ImageSet) -> impl Iterator<Item = &[u8]> {
    (0..set.len()).filter_map(|i| set.image(i))
}

fn counts(set: &ImageSet) -> Vec<usize> {
    let classes = 0..set.classes().len() as u32;
    classes.map(|class| set.labels().iter().filter(|&&label| label == class).count()).collect()
}
