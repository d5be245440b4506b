//! `Preprocess` against Pillow (`fixtures/preprocess.py`), on data sets of ours, and as a file.
#![cfg(feature = "images")]

use std::{collections::HashMap, fs};

use candle_core::{DType, Device::Cpu, Tensor};
use image::RgbImage;
use layerwise_data::{Error, ImageSet, Normalise, Preprocess, Shape, Size, digits, resize};

type Result<T = ()> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Filters weigh bytes with integers, whose last bits Pillow and `fast_image_resize` round each in its own way: after two passes
/// of rounding to bytes some values differ by one.
const GREY_LEVEL: f32 = 1.;
/// Most of the values that may differ so: to cut off instead of rounding moves 43 % or more of a photo's.
const SELDOM: f64 = 0.1;
const FILTERS: [(&str, u8); 4] = [("nearest", 0), ("lanczos", 1), ("bilinear", 2), ("bicubic", 3)];

#[test]
fn resampled_as_by_pillow() -> Result {
    let fixture = fixture()?;
    let photo = photo(&fixture)?;
    for (name, resample) in FILTERS {
        for (h, w) in [(11, 13), (41, 52), (23, 50), (7, 37), (46, 18), (1, 1)] {
            let key = format!("resize/{name}/{h}x{w}");
            let got = resize(&photo, (h, w), resample)?;
            assert_eq!((got.height(), got.width()), (h as u32, w as u32));
            let allowed = if resample == 0 { 0. } else { GREY_LEVEL };
            close(&key, got.as_raw(), &bytes(&fixture, &key)?, allowed);

            let config = Preprocess { size: Size::Exact { height: h, width: w }, resample, ..levels(3) };
            close(&key, &interleaved(&config.apply(&photo, &Cpu)?)?, &bytes(&fixture, &key)?, allowed);
        }
    }
    Ok(())
}

/// `fixtures/processor.py` asked transformers itself; a level is 1/255, divided by deviations of at least 0.224.
#[test]
fn images_come_out_as_from_transformers() -> Result {
    let fixture = candle_core::safetensors::load("tests/fixtures/processor.safetensors", &Cpu)?;
    let levels = fixture["photo"].flatten_all()?.to_vec1::<u8>()?;
    let photo = RgbImage::from_raw(32, 32, levels).ok_or("32 x 32")?;
    for (name, resample) in [("bilinear", 2), ("bicubic", 3)] {
        for side in [56, 224, 20] {
            let preprocess = Preprocess {
                resample,
                image_mean: vec![0.485, 0.456, 0.406],
                image_std: vec![0.229, 0.224, 0.225],
                ..Default::default()
            };
            let got = preprocess.resized(side).apply(&photo, &Cpu)?;
            let every_third = Tensor::arange_step(0u32, side as u32, 3, &Cpu)?;
            let got = got.index_select(&every_third, 1)?.index_select(&every_third, 2)?;
            let off = (got - &fixture[&format!("{name}/{side}")])?.abs()?.flatten_all()?.to_vec1::<f32>()?;
            let worst = off.iter().copied().fold(0., f32::max);
            let others = off.iter().filter(|x| **x > 1e-5).count();
            // Both round to levels after each pass; where the exact value lies between two, they may be one apart.
            assert!(worst < 1.01 / 255. / 0.224, "{name} {side}: {worst}");
            // To round once instead of twice moves 7 to 28 %, to cut off 43 to 57 % (Pillow, in floating point).
            assert!(others as f64 <= 0.05 * off.len() as f64, "{name} {side}: {others} of {}", off.len());
        }
    }
    Ok(())
}

#[test]
fn the_shortest_edge_keeps_the_aspect_ratio() -> Result {
    let fixture = fixture()?;
    let wide = photo(&fixture)?;
    let tall = RgbImage::from_fn(wide.height(), wide.width(), |x, y| *wide.get_pixel(y, x));
    for (name, image) in [("wide", wide), ("tall", tall)] {
        for shortest_edge in [10, 23, 31] {
            let key = format!("shortest_edge/{name}/{shortest_edge}");
            let got =
                Preprocess { size: Size::ShortestEdge { shortest_edge }, ..levels(3) }.apply(&image, &Cpu)?;
            assert_eq!(got.dims()[1..], fixture[&key].dims()[..2], "{key}");
            close(&key, &interleaved(&got)?, &bytes(&fixture, &key)?, GREY_LEVEL);
        }
    }
    Ok(())
}

#[test]
fn the_centre_is_cut_out_and_black_where_there_is_none() -> Result {
    let fixture = fixture()?;
    let photo = photo(&fixture)?;
    for (height, width) in [(10, 14), (11, 13), (23, 37), (30, 20), (24, 40)] {
        let key = format!("crop/{height}x{width}");
        let config = Preprocess {
            do_resize: false,
            do_center_crop: true,
            crop_size: Some(Size::Exact { height, width }),
            ..levels(3)
        };
        assert_eq!(interleaved(&config.apply(&photo, &Cpu)?)?, bytes(&fixture, &key)?, "{key}");
    }
    Ok(())
}

/// The order of Hugging Face: resample, then cut. Nearest, so that both steps are exact.
#[test]
fn the_cut_comes_after_resampling() -> Result {
    let photo = photo(&fixture()?)?;
    let resampled = resize(&photo, (41, 52), 0)?;
    let cut = |image: &RgbImage, config: Preprocess| interleaved(&config.apply(image, &Cpu)?);
    let crop =
        Preprocess { resample: 0, do_center_crop: true, crop_size: Some(Size::Square(9)), ..levels(3) };
    let both = Preprocess { size: Size::Exact { height: 41, width: 52 }, ..crop.clone() };
    let second = Preprocess { do_resize: false, ..crop };
    assert_eq!(cut(&photo, both)?, cut(&resampled, second)?);
    Ok(())
}

/// Bit for bit: both rescale in f64 and normalise in f32.
#[test]
fn an_image_of_the_right_size_is_only_normalised() -> Result {
    let fixture = fixture()?;
    let config = Preprocess {
        size: Size::Exact { height: 23, width: 37 },
        image_mean: vec![0.485, 0.456, 0.406],
        image_std: vec![0.229, 0.224, 0.225],
        ..Preprocess::default()
    };
    let got = config.apply(&photo(&fixture)?, &Cpu)?;
    assert_eq!(got.to_vec3::<f32>()?, fixture["normalised"].to_vec3::<f32>()?);
    Ok(())
}

#[test]
fn a_model_of_one_channel_gets_luma() -> Result {
    let fixture = fixture()?;
    let photo = photo(&fixture)?;
    let same = Preprocess { do_resize: false, ..levels(1) }.apply(&photo, &Cpu)?;
    assert_eq!(same.dims(), [1, 23, 37]);
    assert_eq!(interleaved(&same)?, bytes(&fixture, "grey")?);
    let smaller = Preprocess { size: Size::Exact { height: 12, width: 20 }, ..levels(1) };
    let key = "grey/bilinear/12x20";
    close(key, &interleaved(&smaller.apply(&photo, &Cpu)?)?, &bytes(&fixture, key)?, GREY_LEVEL);
    Ok(())
}

/// Bit for bit what `ImageSet::tensors` gives: `v / 16` for the digits, `v / 255` for others, then normalised.
#[test]
fn sets_that_have_the_right_size_keep_their_exact_values() -> Result {
    let grey = ImageSet::new((0..=255).collect(), vec![0], square(1, 16), 255, vec!["all".into()])?;
    for set in [digits()?, grey, colours()?] {
        let Shape { channels, height, width } = set.shape();
        let normalise = Normalise::from_set(&set);
        let config = Preprocess {
            size: Size::Exact { height, width },
            image_mean: normalise.mean.clone(),
            image_std: normalise.std.clone(),
            ..Preprocess::default()
        };
        let indices: Vec<usize> = (0..set.len()).rev().collect();
        let got = config.apply_set(&set, &indices, &Cpu)?;
        assert_eq!(got.dims(), [set.len(), channels, height, width]);
        let (want, _) = set.tensors(&indices, &normalise, None, &Cpu)?;
        assert_eq!(got.flatten_all()?.to_vec1::<f32>()?, want.flatten_all()?.to_vec1::<f32>()?);
    }
    Ok(())
}

#[test]
fn another_size_keeps_the_filter_and_the_values() {
    let made = Preprocess {
        size: Size::ShortestEdge { shortest_edge: 256 },
        resample: 3,
        do_center_crop: true,
        crop_size: Some(Size::Square(224)),
        image_mean: vec![0.1, 0.2, 0.3],
        ..Default::default()
    };
    let small = made.clone().resized(56);
    assert_eq!((small.size, small.do_center_crop, small.crop_size), (Size::Square(56), false, None));
    assert_eq!((small.resample, small.image_mean), (3, made.image_mean));
}

#[test]
fn digits_are_sixteenths_also_when_cut() -> Result {
    let config = Preprocess {
        do_resize: false,
        do_center_crop: true,
        crop_size: Some(Size::Square(2)),
        do_normalize: false,
        image_mean: vec![0.5],
        image_std: vec![0.5],
        ..Preprocess::default()
    };
    let got = config.apply_set(&digits()?, &[0], &Cpu)?.flatten_all()?.to_vec1::<f32>()?;
    // Rows and columns 3 and 4 of the first image, a 0.
    assert_eq!(got, [0., 0., 0., 0.]);
    let wider = Preprocess { crop_size: Some(Size::Exact { height: 2, width: 6 }), ..config };
    let got = wider.apply_set(&digits()?, &[0], &Cpu)?.flatten_all()?.to_vec1::<f32>()?;
    assert_eq!(got, [4., 12., 0., 0., 8., 8., 5., 8., 0., 0., 9., 8.].map(|v: f32| v / 16.));
    Ok(())
}

#[test]
fn digits_are_resampled_as_bytes_and_repeated_for_colour_models() -> Result {
    let fixture = fixture()?;
    let key = "digit/bilinear/28x28";
    let config = Preprocess { size: Size::Square(28), ..levels(3) };
    let got = config.apply_set(&digits()?, &[0], &Cpu)?;
    assert_eq!(got.dims(), [1, 3, 28, 28]);
    for channel in 0..3 {
        let plane = got.narrow(1, channel, 1)?.squeeze(0)?;
        close(key, &interleaved(&plane)?, &bytes(&fixture, key)?, GREY_LEVEL);
    }
    Ok(())
}

/// A set's image is the same as the file: planes become pixels.
#[test]
fn colour_sets_give_what_their_images_give() -> Result {
    let set = colours()?;
    let image = set.image(1).ok_or("no image")?;
    let file = RgbImage::from_fn(4, 4, |x, y| {
        image::Rgb([0, 1, 2].map(|c| image[c * 16 + y as usize * 4 + x as usize]))
    });
    for channels in [1, 3] {
        for size in [Size::Square(4), Size::Exact { height: 7, width: 5 }] {
            let config = Preprocess { size, ..levels(channels) };
            let got = config.apply_set(&set, &[1], &Cpu)?.squeeze(0)?;
            assert_eq!(got.to_vec3::<f32>()?, config.apply(&file, &Cpu)?.to_vec3::<f32>()?);
        }
    }
    Ok(())
}

#[test]
fn no_images_are_an_empty_tensor() -> Result {
    assert_eq!(levels(3).apply_set(&digits()?, &[], &Cpu)?.dims(), [0, 3, 224, 224]);
    Ok(())
}

#[test]
fn files_of_hugging_face_are_read() -> Result {
    // google/vit-base-patch16-224-in21k, facebook/deit-tiny-patch16-224, facebook/dinov2-small
    let vit = r#"{"do_normalize": true, "do_resize": true, "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5], "resample": 2, "size": 224}"#;
    let deit = r#"{"crop_size": 224, "do_center_crop": true, "do_normalize": true, "do_resize": true,
        "feature_extractor_type": "DeiTFeatureExtractor", "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225], "resample": 3, "size": {"height": 256, "width": 256}}"#;
    let dino = r#"{"crop_size": {"height": 224, "width": 224}, "do_center_crop": true, "do_convert_rgb": true,
        "do_normalize": true, "do_rescale": true, "do_resize": true, "image_mean": [0.485, 0.456, 0.406],
        "image_processor_type": "BitImageProcessor", "image_std": [0.229, 0.224, 0.225], "resample": 3,
        "rescale_factor": 0.00392156862745098, "size": {"shortest_edge": 256}}"#;
    let imagenet = Preprocess {
        resample: 3,
        do_center_crop: true,
        image_mean: vec![0.485, 0.456, 0.406],
        image_std: vec![0.229, 0.224, 0.225],
        ..Preprocess::default()
    };
    let cases = [
        (vit, Preprocess { size: Size::Square(224), ..Preprocess::default() }),
        (
            deit,
            Preprocess {
                size: Size::Exact { height: 256, width: 256 },
                crop_size: Some(Size::Square(224)),
                ..imagenet.clone()
            },
        ),
        (
            dino,
            Preprocess {
                size: Size::ShortestEdge { shortest_edge: 256 },
                crop_size: Some(Size::Exact { height: 224, width: 224 }),
                ..imagenet
            },
        ),
    ];
    for (text, want) in cases {
        let folder = tempfile::tempdir()?;
        fs::write(folder.path().join("preprocessor_config.json"), text)?;
        assert_eq!(Preprocess::load(folder.path())?, Some(want));
    }
    assert_eq!(Preprocess::load(tempfile::tempdir()?.path())?, None);
    Ok(())
}

/// As transformers 4.5x saves a "fast" processor: what is not set is null.
#[test]
fn a_null_means_the_default() -> Result {
    let fast = r#"{"crop_size": null, "data_format": "channels_first", "default_to_square": true, "device": null,
        "disable_grouping": null, "do_center_crop": null, "do_convert_rgb": null, "do_normalize": true,
        "do_rescale": true, "do_resize": true, "image_mean": [0.5, 0.5, 0.5],
        "image_processor_type": "ViTImageProcessorFast", "image_std": [0.5, 0.5, 0.5], "input_data_format": null,
        "resample": 2, "rescale_factor": 0.00392156862745098, "return_tensors": null,
        "size": {"height": 224, "width": 224}}"#;
    let nulls = r#"{"do_resize": null, "size": null, "resample": null, "do_center_crop": null, "crop_size": null,
        "do_rescale": null, "rescale_factor": null, "do_normalize": null, "image_mean": null, "image_std": null}"#;
    let nested = r#"{"size": {"height": 224, "longest_edge": null, "shortest_edge": null, "width": 224}}"#;
    for text in [fast, nulls, nested, "{}"] {
        let folder = tempfile::tempdir()?;
        fs::write(folder.path().join("preprocessor_config.json"), text)?;
        assert_eq!(Preprocess::load(folder.path())?, Some(Preprocess::default()), "{text}");
    }
    Ok(())
}

#[test]
fn a_saved_file_reads_back_and_is_hugging_faces() -> Result {
    let folder = tempfile::tempdir()?;
    let model = folder.path().join("model");
    let digits = Preprocess {
        size: Size::Exact { height: 8, width: 8 },
        image_mean: vec![0.3],
        image_std: vec![0.38],
        ..Preprocess::default()
    };
    let cut = Preprocess {
        size: Size::ShortestEdge { shortest_edge: 36 },
        do_center_crop: true,
        crop_size: Some(Size::Square(32)),
        ..Preprocess::default()
    };
    // The second replaces the first.
    for config in [&digits, &cut] {
        config.save(&model)?;
        assert_eq!(Preprocess::load(&model)?.as_ref(), Some(config));
        assert_eq!(fs::read_dir(&model)?.count(), 1);
    }
    digits.save(&model)?;
    let text = fs::read_to_string(model.join("preprocessor_config.json"))?;
    let want: serde_json::Value = serde_json::from_str(
        r#"{"image_processor_type": "ViTImageProcessor", "do_resize": true, "size": {"height": 8, "width": 8},
        "resample": 2, "do_center_crop": false, "do_rescale": true, "rescale_factor": 0.00392156862745098,
        "do_normalize": true, "image_mean": [0.3], "image_std": [0.38], "do_convert_rgb": false}"#,
    )?;
    assert_eq!(serde_json::from_str::<serde_json::Value>(&text)?, want);
    Ok(())
}

/// transformers 4: `ViTImageProcessor` leaves out the cut, and only `BitImageProcessor` knows a shortest edge.
#[test]
fn the_saved_type_is_one_that_does_what_is_set() -> Result {
    let (edge, exact) = (Size::ShortestEdge { shortest_edge: 36 }, Size::Exact { height: 36, width: 36 });
    let cases = [
        (exact, false, "ViTImageProcessor"),
        (Size::Square(36), false, "ViTImageProcessor"),
        (exact, true, "DeiTImageProcessor"),
        (Size::Square(36), true, "DeiTImageProcessor"),
        (edge, false, "BitImageProcessor"),
        (edge, true, "BitImageProcessor"),
    ];
    let folder = tempfile::tempdir()?;
    for (size, do_center_crop, want) in cases {
        let crop_size = do_center_crop.then_some(Size::Square(32));
        Preprocess { size, do_center_crop, crop_size, ..Preprocess::default() }.save(folder.path())?;
        let text = fs::read_to_string(folder.path().join("preprocessor_config.json"))?;
        let document: serde_json::Value = serde_json::from_str(&text)?;
        assert_eq!(document["image_processor_type"], want, "{size:?}, cut: {do_center_crop}");
        assert_eq!(document["do_convert_rgb"], true);
    }
    Ok(())
}

#[test]
fn a_file_that_cannot_be_replaced_leaves_nothing_behind() -> Result {
    let folder = tempfile::tempdir()?;
    fs::create_dir(folder.path().join("preprocessor_config.json"))?;
    let error = Preprocess::default().save(folder.path()).unwrap_err();
    assert!(matches!(error, Error::Io { .. }), "{error}");
    assert_eq!(fs::read_dir(folder.path())?.count(), 1);
    Ok(())
}

#[test]
fn bad_files_are_named_with_what_was_expected() -> Result {
    let cases = [
        ("{", "EOF while parsing"),
        ("[1]", "invalid"),
        (r#"{"size": {"longest_edge": 3}}"#, "size: expected a number, {height, width} or {shortest_edge}"),
        (
            r#"{"size": {"shortest_edge": 3, "longest_edge": 4}}"#,
            "size: expected a number, {height, width} or",
        ),
        (
            r#"{"crop_size": {"height": 3}}"#,
            "crop_size: expected a number, {height, width} or {shortest_edge}",
        ),
        (r#"{"size": -1}"#, "size: expected a number, {height, width} or {shortest_edge}"),
        (r#"{"do_resize": "yes"}"#, "do_resize: invalid type: string \"yes\", expected a boolean"),
        (r#"{"resample": 5}"#, "resample is 5, expected 0 to 3"),
        (r#"{"image_mean": [0.5, 0.5]}"#, "image_mean is [0.5, 0.5], expected 1 or 3 values, one a channel"),
        (r#"{"image_mean": []}"#, "image_mean is [], expected 1 or 3 values"),
        (r#"{"image_mean": [1e39, 0, 0]}"#, "image_mean is [inf, 0.0, 0.0], expected finite"),
        (r#"{"image_mean": [0.5]}"#, "image_std is 3 values, expected 1, one a channel"),
        (r#"{"image_std": [0.5, 0, 0.5]}"#, "image_std is [0.5, 0.0, 0.5], expected positive"),
        (r#"{"do_center_crop": true}"#, "crop_size is missing, expected a number or {height, width}"),
        (
            r#"{"do_center_crop": true, "crop_size": {"shortest_edge": 3}}"#,
            "crop_size is a shortest edge, expected a number or {height, width}",
        ),
    ];
    let folder = tempfile::tempdir()?;
    for (text, want) in cases {
        fs::write(folder.path().join("preprocessor_config.json"), text)?;
        let error = Preprocess::load(folder.path()).unwrap_err();
        let got = error.to_string();
        assert!(matches!(error, Error::Format { .. }), "{got}");
        assert!(got.contains("preprocessor_config.json: ") && got.contains(want), "{text}: {got}");
        assert_eq!(got.lines().count(), 1, "{got}");
    }
    let missing = folder.path().join("nowhere");
    let text = Preprocess::load(&missing).unwrap_err().to_string();
    assert!(text.contains("nowhere: expected a folder"), "{text}");
    Ok(())
}

#[test]
fn settings_and_images_that_do_not_do() -> Result {
    let image = RgbImage::new(4, 3);
    let message = |config: &Preprocess| config.apply(&image, &Cpu).unwrap_err().to_string();
    let size = |size| Preprocess { size, ..levels(3) };
    assert_eq!(message(&size(Size::Square(0))), "size is 0x0, expected 1x1 to 16384x16384");
    assert_eq!(
        message(&size(Size::Exact { height: 4, width: 0 })),
        "size is 4x0, expected 1x1 to 16384x16384"
    );
    assert!(message(&size(Size::Square(usize::MAX))).starts_with("size is 18446744073709551615x"));
    assert!(message(&size(Size::ShortestEdge { shortest_edge: usize::MAX })).starts_with("size is "));
    let crop = |size| Preprocess { do_resize: false, do_center_crop: true, crop_size: size, ..levels(3) };
    assert_eq!(message(&crop(Some(Size::Square(0)))), "crop_size is 0x0, expected 1x1 to 16384x16384");
    assert!(message(&crop(None)).starts_with("crop_size is missing"));
    assert!(message(&Preprocess { resample: 4, ..levels(3) }).starts_with("resample is 4"));
    assert!(crop(None).save(tempfile::tempdir()?.path()).is_err());

    for (width, height) in [(0, 0), (0, 3), (3, 0)] {
        let empty = RgbImage::new(width, height);
        for size in [Size::Square(2), Size::ShortestEdge { shortest_edge: 2 }] {
            let text = Preprocess { size, ..levels(3) }.apply(&empty, &Cpu).unwrap_err().to_string();
            assert_eq!(text, format!("image is {height}x{width}, expected 1x1 to 16384x16384"));
        }
        assert!(resize(&empty, (2, 2), 2).is_err());
    }
    assert!(resize(&image, (2, 2), 9).is_err());
    let text = levels(1).apply_set(&digits()?, &[1797], &Cpu).unwrap_err().to_string();
    assert_eq!(text, "sample 1797 is out of range, there are 1797");
    Ok(())
}

/// Settings that leave grey levels as they are.
fn levels(channels: usize) -> Preprocess {
    Preprocess {
        do_rescale: false,
        do_normalize: false,
        image_mean: vec![0.5; channels],
        image_std: vec![0.5; channels],
        ..Preprocess::default()
    }
}

fn square(channels: usize, side: usize) -> Shape {
    Shape { channels, height: side, width: side }
}

/// Two colour images of 4x4, whose channels, rows and columns all differ.
fn colours() -> Result<ImageSet> {
    let pixels = (0..96).map(|i| (i * i * 31 + i * 7) as u8).collect();
    Ok(ImageSet::new(pixels, vec![0, 0], square(3, 4), 255, vec!["all".into()])?)
}

fn fixture() -> Result<HashMap<String, Tensor>> {
    let bytes = include_bytes!("fixtures/preprocess.safetensors");
    Ok(candle_core::safetensors::load_buffer(bytes, &Cpu)?)
}

fn photo(fixture: &HashMap<String, Tensor>) -> Result<RgbImage> {
    Ok(RgbImage::from_raw(37, 23, bytes(fixture, "photo")?).ok_or("wrong number of bytes")?)
}

fn bytes(fixture: &HashMap<String, Tensor>, name: &str) -> Result<Vec<u8>> {
    Ok(fixture[name].flatten_all()?.to_vec1()?)
}

/// `(channels, height, width)` grey levels as the bytes of an image.
fn interleaved(levels: &Tensor) -> Result<Vec<u8>> {
    Ok(levels.permute((1, 2, 0))?.to_dtype(DType::U8)?.flatten_all()?.to_vec1()?)
}

fn close(name: &str, got: &[u8], want: &[u8], allowed: f32) {
    assert_eq!(got.len(), want.len(), "{name}");
    let worst = got.iter().zip(want).map(|(got, want)| got.abs_diff(*want)).max().unwrap_or_default();
    assert!(f32::from(worst) <= allowed, "{name}: {worst} grey levels");
    let others = got.iter().zip(want).filter(|(got, want)| got != want).count();
    assert!(others as f64 <= SELDOM * got.len() as f64, "{name}: {others} of {} differ", got.len());
}
