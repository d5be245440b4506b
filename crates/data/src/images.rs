//! Folders of PNG and JPEG files.

use std::{
    fs,
    path::{Path, PathBuf},
};

use image::{ImageFormat, RgbImage};

use crate::{
    Error, Result,
    error::{format, io},
};

/// PNG and JPEG files of a folder, in the order of their names.
///
/// # Errors
///
/// [`Error::NotFound`] when there is none.
pub fn image_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let not_found = || Error::NotFound { folder: folder.to_owned(), expected: "PNG or JPEG files".into() };
    if !folder.is_dir() {
        return Err(not_found());
    }
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).map_err(io(folder))? {
        let path = entry.map_err(io(folder))?.path();
        let extension = path.extension().map(|extension| extension.to_string_lossy().to_ascii_lowercase());
        if matches!(extension.as_deref(), Some("png" | "jpg" | "jpeg")) {
            found.push(path);
        }
    }
    found.sort();
    if found.is_empty() { Err(not_found()) } else { Ok(found) }
}

/// One image file as RGB.
///
/// # Errors
///
/// [`Error::Io`] when it cannot be read, [`Error::Format`] when it is no image.
pub fn read_image(path: &Path) -> Result<RgbImage> {
    let bytes = fs::read(path).map_err(io(path))?;
    decode(&bytes).map_err(|e| format(path, e.to_string()))
}

/// PNG or JPEG bytes as RGB, with bounds on size so that a hostile header cannot exhaust memory.
pub(crate) fn decode(bytes: &[u8]) -> image::ImageResult<RgbImage> {
    let mut reader = image::ImageReader::new(std::io::Cursor::new(bytes)).with_guessed_format()?;
    reader.limits(image::Limits::default());
    if reader.format() == Some(ImageFormat::Jpeg) && !ends(bytes) {
        let truncated = std::io::Error::new(std::io::ErrorKind::UnexpectedEof, "the JPEG data is cut short");
        return Err(image::ImageError::IoError(truncated));
    }
    Ok(reader.decode()?.into_rgb8())
}

/// Whether the last scan of a JPEG file comes to its end: the decoder paints grey what is missing.
fn ends(jpeg: &[u8]) -> bool {
    const START_OF_SCAN: [u8; 2] = [0xff, 0xda];
    const END_OF_IMAGE: [u8; 2] = [0xff, 0xd9];
    let last = |marker: [u8; 2]| jpeg.windows(2).rposition(|pair| pair == marker);
    last(END_OF_IMAGE) > last(START_OF_SCAN)
}
