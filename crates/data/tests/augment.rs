//! Shifts, mirrors and rotations move pixels where they should; what training reads is augmented, then normalised.

use std::collections::BTreeSet;

use candle_core::Device::Cpu;
use layerwise_data::{Augment, Error, ImageSet, Normalise, Shape, digits, mirror, rotate, shift};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

type Result<T = (), E = Error> = std::result::Result<T, E>;

const THREE: Shape = Shape { channels: 1, height: 3, width: 3 };
const NINE: [f32; 9] = [1., 2., 3., 4., 5., 6., 7., 8., 9.];

/// The f32 sine and cosine of a right angle are off by 4e-8, times coordinates below 4 and values below 24.
const TOLERANCE: f32 = 1e-5;

fn rng(seed: u64) -> ChaCha8Rng {
    ChaCha8Rng::seed_from_u64(seed)
}

fn close(got: &[f32], want: &[f32]) {
    assert_eq!(got.len(), want.len());
    assert!(got.iter().zip(want).all(|(got, want)| (got - want).abs() < TOLERANCE), "{got:?}, want {want:?}");
}

#[test]
fn shifted_down_and_to_the_right_and_black_outside() {
    assert_eq!(shift(&NINE, THREE, 1, 0), [0., 0., 0., 1., 2., 3., 4., 5., 6.]);
    assert_eq!(shift(&NINE, THREE, 0, 1), [0., 1., 2., 0., 4., 5., 0., 7., 8.]);
    assert_eq!(shift(&NINE, THREE, -1, -2), [6., 0., 0., 9., 0., 0., 0., 0., 0.]);
    assert_eq!(shift(&NINE, THREE, 0, 0), NINE);
    assert_eq!(shift(&NINE, THREE, isize::MIN, 0), [0.; 9]);
    assert!(shift(&[], Shape { width: 0, ..THREE }, 1, 1).is_empty());
    let two = Shape { channels: 2, height: 1, width: 2 };
    assert_eq!(shift(&[1., 2., 3., 4.], two, 0, 1), [0., 1., 0., 3.]);
}

#[test]
fn mirrored_left_to_right() {
    let mut image = [1., 2., 3., 4., 5., 6., 7., 8., 9., 10., 11., 12.];
    mirror(&mut image, Shape { channels: 2, height: 2, width: 3 });
    assert_eq!(image, [3., 2., 1., 6., 5., 4., 9., 8., 7., 12., 11., 10.]);
    mirror(&mut [], Shape { width: 0, ..THREE });
}

/// As `numpy.rot90`, which also turns counter-clockwise.
#[test]
fn right_angles_permute_the_pixels() {
    assert_eq!(rotate(&NINE, THREE, 0.), NINE);
    close(&rotate(&NINE, THREE, 90.), &[3., 6., 9., 2., 5., 8., 1., 4., 7.]);
    close(&rotate(&NINE, THREE, -90.), &[7., 4., 1., 8., 5., 2., 9., 6., 3.]);
    close(&rotate(&NINE, THREE, 180.), &[9., 8., 7., 6., 5., 4., 3., 2., 1.]);
    // The centre of an even side lies between pixels.
    let even = Shape { channels: 2, height: 2, width: 2 };
    close(&rotate(&[1., 2., 3., 4., 5., 6., 7., 8.], even, 90.), &[2., 4., 1., 3., 6., 8., 5., 7.]);
    let wide = Shape { channels: 1, height: 2, width: 3 };
    close(&rotate(&[1., 2., 3., 4., 5., 6.], wide, 180.), &[6., 5., 4., 3., 2., 1.]);
}

/// At 45 degrees, with `s = sqrt(1/2)`, the pixel above the centre comes from `s` above and `s` right of the centre, and the
/// top left corner from `2 s` above the centre: `2 s - 1` beyond the top row.
#[test]
fn between_pixels_values_are_bilinear() {
    let s = 0.5f32.sqrt();
    let got = rotate(&NINE, THREE, 45.);
    let above = s * ((1. - s) * 2. + s * 3.) + (1. - s) * ((1. - s) * 5. + s * 6.);
    let corner = (2. - 2. * s) * 2.;
    close(&[got[0], got[1], got[4]], &[corner, above, 5.]);
}

#[test]
fn the_default_is_the_papers_recipe() {
    assert_eq!(Augment::default(), Augment { crop_padding: 4, flip: 0.5, rotation_degrees: 15. });
}

#[test]
fn the_same_generator_gives_the_same_image() -> Result {
    let (shape, image) = ramp(32, |y, x| y * 32. + x);
    let draw = |seed| Augment::default().apply(&image, shape, &mut rng(seed));
    assert_eq!(draw(1)?, draw(1)?);
    assert_ne!(draw(1)?, draw(2)?);
    Ok(())
}

#[test]
fn nothing_to_change_changes_nothing() -> Result {
    let nothing = Augment { crop_padding: 0, flip: 0., rotation_degrees: 0. };
    assert_eq!(nothing.apply(&NINE, THREE, &mut rng(1))?, NINE);
    let flip = Augment { flip: 1., ..nothing };
    assert_eq!(flip.apply(&NINE, THREE, &mut rng(1))?, [3., 2., 1., 6., 5., 4., 9., 8., 7.]);
    Ok(())
}

/// 600 draws miss one of nine shifts with a probability of 9 (8/9)^600, which is never.
#[test]
fn crops_reach_the_padding_on_all_sides_and_are_black_there() -> Result {
    let (shape, image) = ramp(32, |y, x| 1. + y * 32. + x);
    let crop = Augment { flip: 0., rotation_degrees: 0., ..Augment::default() };
    let (mut rows, mut columns, mut rng) = (BTreeSet::new(), BTreeSet::new(), rng(3));
    for _ in 0..600 {
        let got = crop.apply(&image, shape, &mut rng)?;
        // What the centre shows tells the shift.
        let source = got[16 * 32 + 16] as isize - 1;
        let (dy, dx) = (16 - source / 32, 16 - source % 32);
        assert_eq!(got, shift(&image, shape, dy, dx));
        rows.insert(dy);
        columns.insert(dx);
    }
    assert!(rows.iter().copied().eq(-4..=4) && columns.iter().copied().eq(-4..=4), "{rows:?} {columns:?}");
    Ok(())
}

/// 1,000 draws: 500 with a deviation of 16, of which 6 are allowed.
#[test]
fn half_of_the_images_are_mirrored() -> Result {
    let flip = Augment { crop_padding: 0, rotation_degrees: 0., ..Augment::default() };
    let mut rng = rng(5);
    let mut mirrored = 0;
    for _ in 0..1000 {
        mirrored += usize::from(flip.apply(&NINE, THREE, &mut rng)? != NINE);
    }
    assert!((404..=596).contains(&mirrored), "{mirrored}");
    Ok(())
}

/// Bilinear interpolation keeps a ramp a ramp, so the pixel 8 below the centre tells the sine of the angle.
#[test]
fn rotations_reach_15_degrees_both_ways() -> Result {
    let (shape, image) = ramp(33, |_, x| x);
    let rotation = Augment { crop_padding: 0, flip: 0., ..Augment::default() };
    let mut rng = rng(7);
    let (mut least, mut most) = (f32::INFINITY, f32::NEG_INFINITY);
    for _ in 0..300 {
        let got = rotation.apply(&image, shape, &mut rng)?;
        let degrees = ((16. - got[24 * 33 + 16]) / 8.).asin().to_degrees();
        (least, most) = (least.min(degrees), most.max(degrees));
    }
    // The last degree on one side is missed with a probability of (29/30)^300, or 4 in 100,000.
    assert!((-15.01..=-14.).contains(&least) && (14. ..=15.01).contains(&most), "{least} {most}");
    Ok(())
}

#[test]
fn augmented_images_are_what_tensors_would_be_in_whole_levels() -> Result {
    let set = digits()?.take(5)?;
    let augment = Augment { crop_padding: 1, flip: 0.5, rotation_degrees: 20. };
    let (rows, normalise) = ([3, 0, 3], Normalise { mean: vec![0.], std: vec![1.] });
    let changed = set.augmented(&rows, &augment, &mut rng(4))?;
    let (tensors, labels) = set.tensors(&rows, &normalise, Some((&augment, &mut rng(4))), &Cpu)?;
    assert_eq!((changed.labels(), changed.max()), (&labels.to_vec1::<u32>()?[..], 16));
    let levels = (0..3).flat_map(|i| changed.image(i).unwrap_or_default().to_vec());
    for (level, value) in levels.zip(tensors.flatten_all()?.to_vec1::<f32>()?) {
        // Half a level, and the rounding of f32.
        assert!((f32::from(level) - 16. * value).abs() <= 0.5 + 1e-5, "{level} {value}");
    }
    assert_ne!(changed.image(0), changed.image(2), "each copy is changed by itself");
    assert!(matches!(set.augmented(&[5], &augment, &mut rng(0)), Err(Error::Index { index: 5, .. })));
    let wrong = Augment { flip: 2., ..augment };
    assert!(matches!(set.augmented(&[0], &wrong, &mut rng(0)), Err(Error::Setting { field: "flip", .. })));
    Ok(())
}

#[test]
fn tensors_have_the_order_and_the_values_asked_for() -> Result {
    let set = digits()?;
    let plain = Normalise { mean: vec![0.25], std: vec![0.5] };
    let (images, labels) = set.tensors(&[5, 1796, 0], &plain, None, &Cpu)?;
    assert_eq!(images.dims(), [3, 1, 8, 8]);
    assert_eq!(labels.to_vec1::<u32>()?, [5, 8, 0]);
    for (row, index) in [5, 1796, 0].into_iter().enumerate() {
        let got = images.get(row)?.flatten_all()?.to_vec1::<f32>()?;
        // Sixteenths, quarters and halves are exact.
        let want = set.image(index).into_iter().flatten().map(|&x| (f32::from(x) / 16. - 0.25) / 0.5);
        assert_eq!(got, want.collect::<Vec<_>>());
    }
    Ok(())
}

/// Means of 115,008 and 8 values computed in f32 here: 1e-5 leaves room for their rounding.
#[test]
fn normalised_by_itself_a_set_has_mean_0_and_deviation_1() -> Result {
    let pixels = vec![0, 10, 20, 255, 1, 1, 2, 2, 7, 7, 7, 7, 9, 3, 50, 4, 8, 1, 9, 90, 7, 7, 7, 7];
    let shape = Shape { channels: 3, height: 2, width: 2 };
    let colour = ImageSet::new(pixels, vec![0, 0], shape, 255, vec!["all".into()])?;
    for set in [digits()?, colour] {
        let all: Vec<usize> = (0..set.len()).collect();
        let (images, _) = set.tensors(&all, &Normalise::from_set(&set), None, &Cpu)?;
        for channel in 0..set.shape().channels {
            let values = images.narrow(1, channel, 1)?.flatten_all()?;
            let mean = values.mean_all()?.to_scalar::<f32>()?;
            let square = values.sqr()?.mean_all()?.to_scalar::<f32>()?;
            // The third channel of `colour` is constant.
            let want = if channel == 2 { 0. } else { 1. };
            close(&[mean, square], &[0., want]);
        }
    }
    Ok(())
}

/// In floating point the mean of the squares of 25/255 is not the square of the mean.
#[test]
fn a_constant_channel_has_a_deviation_of_1() -> Result {
    for value in 0..=255 {
        let shape = Shape { channels: 1, height: 5, width: 7 };
        let set = ImageSet::new(vec![value; 35], vec![0], shape, 255, vec!["all".into()])?;
        assert_eq!(
            Normalise::from_set(&set),
            Normalise { mean: vec![f32::from(value) / 255.], std: vec![1.] }
        );
    }
    Ok(())
}

#[test]
fn black_is_put_in_before_normalisation() -> Result {
    let white = ImageSet::new(vec![255; 9], vec![0], THREE, 255, vec!["all".into()])?;
    let normalise = Normalise { mean: vec![0.5], std: vec![0.25] };
    let crop = Augment { crop_padding: 2, flip: 0., rotation_degrees: 0. };
    let (all, mut rng) = (vec![0; 50], rng(1));
    let (images, _) = white.tensors(&all, &normalise, Some((&crop, &mut rng)), &Cpu)?;
    let values = images.flatten_all()?.to_vec1::<f32>()?;
    assert!(values.iter().all(|&x| x == 2. || x == -2.));
    assert!(values.contains(&-2.) && values.contains(&2.));
    Ok(())
}

/// One channel, `side` by `side`, of `value(row, column)`.
fn ramp(side: usize, value: impl Fn(f32, f32) -> f32) -> (Shape, Vec<f32>) {
    let image = (0..side * side).map(|i| value((i / side) as f32, (i % side) as f32)).collect();
    (Shape { channels: 1, height: side, width: side }, image)
}
