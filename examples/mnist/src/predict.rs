//! `predict`: what is on these pictures?

use std::fmt::{Display, Formatter};
use std::io::Cursor;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use burn::tensor::{Tensor, TensorData};
use image::{DynamicImage, GrayImage, ImageDecoder, ImageFormat, ImageReader, imageops};
use serde::Serialize;

use crate::cli::PredictArgs;
use crate::data::{CLASSES, SIDE};
use crate::eval::{SavedRun, read};
use crate::report::percent;

/// Bytes that an unpacked picture may take: some 20,000 x 20,000 in gray.
const MOST_BYTES: u64 = 512 << 20;

/// A class and how likely the network finds it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Guess {
    /// Name of the class.
    pub class: String,
    /// Its label.
    pub label: usize,
    /// Softmax of its logit.
    pub probability: f64,
}

/// The classes of one image, the likeliest first.
#[derive(Clone, Debug, Serialize)]
pub struct Prediction {
    /// The image file; what is no UTF-8 in its name is replaced.
    pub image: String,
    /// Classes by falling probability.
    pub classes: Vec<Guess>,
}

/// What `predict` prints: an entry for each file.
#[derive(Debug, Serialize)]
#[serde(transparent)]
pub struct Predictions(Vec<Prediction>);

impl Display for Predictions {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        for Prediction { image, classes } in &self.0 {
            writeln!(f, "{image}")?;
            for guess in classes {
                let probability = percent(guess.probability);
                writeln!(f, "  {:<12}{probability:>8}", guess.class)?;
            }
        }
        Ok(())
    }
}

/// Runs the model over image files. Nothing is printed if one cannot be read.
pub fn run(args: &PredictArgs) -> Result<Predictions> {
    let saved = SavedRun::open(&args.model)?;
    let (config, device) = (&saved.config, saved.device.device());
    let (width, count) = (config.model.input, args.images.len());
    let mut features = Vec::with_capacity(count * width);
    for path in &args.images {
        let image = load(path, args.invert).with_context(|| {
            let hint = "PNG and JPEG files are understood";
            format!("cannot read the image {} ({hint})", path.display())
        })?;
        features.extend(config.scale.inputs(&image, width));
    }
    let inputs = Tensor::from_data(TensorData::new(features, [count, width]), &device);
    let logits = read(&saved.model, inputs)?;
    let images = args.images.iter().zip(logits.chunks_exact(CLASSES));
    let predictions = images.map(|(image, logits)| Prediction {
        image: image.to_string_lossy().into_owned(),
        classes: rank(logits, &config.class_names, args.top),
    });
    Ok(Predictions(predictions.collect()))
}

/// An image file as `SIDE * SIDE` bytes, light on dark as the training images are: upright, gray,
/// centred on a black square with its aspect kept, averaged to size. Transparent parts are background.
/// `invert` is for dark on light.
///
/// # Errors
///
/// If the file cannot be read, is no PNG or JPEG, is truncated, or unpacks to more than 512 MiB.
pub fn load(path: &Path, invert: bool) -> Result<Vec<u8>> {
    let bytes = std::fs::read(path)?;
    let reader = ImageReader::new(Cursor::new(&bytes)).with_guessed_format()?;
    // The decoder fills what is missing with gray.
    let whole = reader.format() != Some(ImageFormat::Jpeg) || jpeg_is_whole(&bytes).is_some();
    ensure!(whole, "it is truncated");
    let mut decoder = reader.into_decoder()?;
    let size = decoder.total_bytes();
    ensure!(
        size <= MOST_BYTES,
        "unpacked it would take {size} bytes, more than {MOST_BYTES}"
    );
    // Phones store the picture as the sensor saw it, and how they were held beside it.
    let orientation = decoder.orientation()?;
    let mut image = DynamicImage::from_decoder(decoder)?;
    drop(bytes);
    image.apply_orientation(orientation);
    if invert {
        image.invert();
    }
    if image.color().has_alpha() {
        let mut flat = image.into_luma_alpha8();
        for pixel in flat.pixels_mut() {
            let [value, alpha] = pixel.0.map(u16::from);
            pixel.0[0] = (value * alpha / 255) as u8;
        }
        image = flat.into();
    }
    let side = SIDE as u32;
    let small = DynamicImage::from(image.into_luma8())
        .thumbnail(side, side)
        .into_luma8();
    let mut square = GrayImage::new(side, side);
    let middle = |length: u32| i64::from((side - length) / 2);
    let (left, top) = (middle(small.width()), middle(small.height()));
    imageops::replace(&mut square, &small, left, top);
    Ok(square.into_raw())
}

/// Walks through the segments of a JPEG file to the marker of its end, which thumbnails inside
/// segments have too; nothing if that is missing.
fn jpeg_is_whole(bytes: &[u8]) -> Option<()> {
    const SCAN: u8 = 0xda;
    const END: u8 = 0xd9;
    let mut at = 2;
    loop {
        // Compressed data holds 0xff only before 0 or a restart marker, d0 to d7.
        while *bytes.get(at)? != 0xff || matches!(*bytes.get(at + 1)?, 0 | 0xd0..=0xd7 | 0xff) {
            at += 1;
        }
        let marker = bytes[at + 1];
        if marker == END {
            return Some(());
        }
        let length = [*bytes.get(at + 2)?, *bytes.get(at + 3)?];
        at += 2 + usize::from(u16::from_be_bytes(length));
        // Only after the head of a scan anything but a marker may follow.
        if marker != SCAN && *bytes.get(at)? != 0xff {
            return None;
        }
    }
}

fn rank(logits: &[f32], names: &[String], top: usize) -> Vec<Guess> {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let parts = logits.iter().map(|logit| f64::from(logit - largest).exp());
    let sum: f64 = parts.clone().sum();
    let named = names.iter().zip(parts).enumerate();
    let mut guesses: Vec<Guess> = named
        .map(|(label, (name, part))| Guess {
            class: name.clone(),
            label,
            probability: part / sum,
        })
        .collect();
    guesses.sort_by(|a, b| b.probability.total_cmp(&a.probability));
    guesses.truncate(top);
    guesses
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::{GrayAlphaImage, Luma, LumaA};
    use std::path::PathBuf;

    fn gradient() -> GrayImage {
        GrayImage::from_fn(28, 28, |x, y| Luma([(x * 4 + y * 5) as u8]))
    }

    fn file(bytes: &[u8], name: &str) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().expect("temporary folder");
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).expect("written");
        (folder, path)
    }

    fn encoded(image: impl Into<DynamicImage>, format: ImageFormat) -> Vec<u8> {
        let mut bytes = Cursor::new(Vec::new());
        image.into().write_to(&mut bytes, format).expect("encoded");
        bytes.into_inner()
    }

    #[test]
    fn probabilities_sum_to_one_and_fall() {
        let names: Vec<String> = (0..CLASSES).map(|class| class.to_string()).collect();
        let logits: Vec<f32> = (0..CLASSES)
            .map(|class| ((class * 7) % 10) as f32)
            .collect();
        let guesses = rank(&logits, &names, CLASSES);
        assert!((guesses.iter().map(|guess| guess.probability).sum::<f64>() - 1.0).abs() < 1e-12);
        assert!(guesses.is_sorted_by(|a, b| a.probability >= b.probability));
        assert_eq!((guesses[0].label, rank(&logits, &names, 3).len()), (7, 3));
    }

    #[test]
    fn images_of_the_right_size_pass_unchanged() {
        let (_folder, path) = file(&encoded(gradient(), ImageFormat::Png), "image.png");
        assert_eq!(load(&path, false).expect("loaded"), *gradient().as_raw());
        let inverted: Vec<u8> = gradient()
            .as_raw()
            .iter()
            .map(|pixel| 255 - pixel)
            .collect();
        assert_eq!(load(&path, true).expect("loaded"), inverted);
    }

    #[test]
    fn padding_and_transparency_are_background_either_way() {
        let alpha = |x| if x < 28 { 0 } else { 255 };
        let image = GrayAlphaImage::from_fn(56, 28, |x, _| LumaA([255, alpha(x)]));
        let (_folder, path) = file(&encoded(image, ImageFormat::Png), "image.png");
        let pixels = load(&path, false).expect("loaded");
        assert_eq!(
            (pixels[0], pixels[14 * 28], pixels[14 * 28 + 27]),
            (0, 0, 255)
        );
        assert!(
            load(&path, true)
                .expect("loaded")
                .iter()
                .all(|pixel| *pixel == 0)
        );
    }

    #[test]
    fn fitting_keeps_the_aspect() {
        let fitted = |width, height| {
            let white = GrayImage::from_pixel(width, height, Luma([255]));
            let (_folder, path) = file(&encoded(white, ImageFormat::Png), "image.png");
            load(&path, false).expect("loaded")
        };
        // A wide image: background above and below, content in the middle.
        let rows = [[0; 7 * 28].as_slice(), &[255; 14 * 28], &[0; 7 * 28]].concat();
        assert_eq!(fitted(400, 200), rows);
        let line = fitted(1000, 1);
        assert_eq!(line.iter().filter(|value| **value == 255).count(), 28);
    }

    #[test]
    fn pictures_of_phones_stand_upright() {
        // Orientation 6: to be turned to the right. A big-endian TIFF with that one entry.
        let exif = b"Exif\0\0MM\0\x2a\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0";
        let turned = image::imageops::rotate270(&gradient());
        let jpeg = encoded(turned, ImageFormat::Jpeg);
        let length = (exif.len() + 2) as u16;
        let segment = [&[0xff, 0xe1], &length.to_be_bytes()[..], exif].concat();
        let (_folder, path) = file(&[&jpeg[..2], &segment, &jpeg[2..]].concat(), "phone.jpg");
        let pixels = load(&path, false).expect("loaded");
        let differences = pixels
            .iter()
            .zip(gradient().into_raw())
            .map(|(a, b)| a.abs_diff(b));
        assert!(differences.max() < Some(12));
    }

    #[test]
    fn truncated_files_are_refused() {
        for format in [ImageFormat::Jpeg, ImageFormat::Png] {
            let bytes = encoded(
                GrayImage::from_fn(200, 200, |x, y| Luma([(x * y) as u8])),
                format,
            );
            // A thumbnail's end is not that of the picture; what follows the end is nobody's business.
            let (_folder, path) = file(&[&bytes[..], b"appended"].concat(), "whole");
            load(&path, false).expect("whole");
            for part in [bytes.len() / 4, bytes.len() / 2, bytes.len() * 9 / 10] {
                let (_folder, path) = file(&bytes[..part], "part");
                assert!(load(&path, false).is_err(), "{part} bytes of {format:?}");
            }
        }
    }

    #[test]
    fn files_that_are_no_images_are_refused() {
        let (folder, path) = file(b"not an image", "notes.png");
        assert!(load(&path, false).is_err());
        let missing = load(&folder.path().join("missing.png"), false);
        assert!(
            missing
                .expect_err("missing")
                .to_string()
                .contains("No such file")
        );
    }
}
