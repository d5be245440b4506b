//! What clients send: a data set's samples.

use std::{io::Cursor, path::Path};

use anyhow::{Context, Result, bail};
use image::{ImageFormat, Rgb, RgbImage};
use layerwise::data::{ImageSet, Targets, Text};
use layerwise_example_common::{
    encoded::{first, task_of, texts_of},
    input::test_set,
};

/// A sample as it goes over the wire, and its class.
pub(crate) struct Request {
    pub(crate) body: Vec<u8>,
    /// The first half of it, which is not whole: refused.
    pub(crate) half: Vec<u8>,
    pub(crate) label: usize,
}

/// The first `most` samples that a data set scores models with: images, as PNG files, of its test part or of the embedded digits; or texts of a folder
/// of GLUE with the name of its task.
pub(crate) fn requests(data: Option<&Path>, most: usize) -> Result<Vec<Request>> {
    if let Some(folder) = data.filter(|folder| task_of(folder).is_some()) {
        return of_texts(folder, most);
    }
    let set = test_set(data)?.take(most)?;
    let request = |i: usize| {
        let body = png(&set, i)?;
        Ok(Request { half: body[..body.len() / 2].to_vec(), body, label: set.labels()[i] as usize })
    };
    (0..set.len()).map(request).collect()
}

fn of_texts(folder: &Path, most: usize) -> Result<Vec<Request>> {
    let set = first(texts_of(folder)?, most)?;
    let Targets::Classes { labels, .. } = set.targets() else {
        bail!("{}: no classes to tell, expected labelled samples of a task with classes", folder.display())
    };
    let request = |(text, label): (&Text, &u32)| {
        let body = match &text.second {
            Some(second) => format!("{}\t{second}", text.first),
            None => text.first.clone(),
        };
        // Cut within a character.
        let half = [&body.as_bytes()[..body.len() / 2], b"\xe2\x82"].concat();
        Request { half, body: body.into_bytes(), label: *label as usize }
    };
    Ok(set.texts().iter().zip(labels).map(request).collect())
}

fn png(set: &ImageSet, index: usize) -> Result<Vec<u8>> {
    let (shape, pixels) = (set.shape(), set.image(index).context("an image of the set")?);
    let image = RgbImage::from_fn(shape.width as u32, shape.height as u32, |x, y| {
        let at = y as usize * shape.width + x as usize;
        let plane = |channel: usize| channel.min(shape.channels - 1) * shape.height * shape.width;
        let level = |x: u8| (f64::from(x) * 255. / f64::from(set.max())).round() as u8;
        Rgb([0, 1, 2].map(|channel| level(pixels[plane(channel) + at])))
    });
    let mut bytes = Cursor::new(Vec::new());
    image.write_to(&mut bytes, ImageFormat::Png)?;
    Ok(bytes.into_inner())
}
