//! `predict`: what is on these pictures?

use std::path::{Path, PathBuf};

use burn::tensor::{Tensor, TensorData};
use serde::Serialize;

use crate::artifacts::Artifacts;
use crate::data::{CLASSES, SIDE, fit_square, scale};
use crate::device;
use crate::error::{Error, Result};
use crate::evaluation::read;
use crate::report::{line, percent};

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
    /// The image file.
    pub image: PathBuf,
    /// Classes by falling probability.
    pub classes: Vec<Guess>,
}

/// Runs the model saved in `model` over image files. Nothing is printed if one cannot be read.
pub fn run(
    model: &Path,
    images: &[PathBuf],
    invert: bool,
    top: usize,
    device: Option<&str>,
) -> Result<Vec<Prediction>> {
    let artifacts = Artifacts::new(model);
    let config = artifacts.load_config()?;
    let device = device::resolve(device.unwrap_or(&config.device))?.device();
    let (config, model) = artifacts.load_model(&device)?;
    let width = config.model.input;
    let mut features = Vec::with_capacity(images.len() * width);
    for path in images {
        features.extend(scale(&load(path, invert)?, width.isqrt()));
    }
    let inputs = Tensor::from_data(TensorData::new(features, [images.len(), width]), &device);
    let logits = read(&model, inputs)?;
    let predictions = images
        .iter()
        .zip(logits.chunks_exact(CLASSES))
        .map(|(image, logits)| Prediction {
            image: image.clone(),
            classes: rank(logits, &config.class_names, top),
        });
    Ok(predictions.collect())
}

/// An image file as `SIDE * SIDE` bytes, light on dark as the training images are: gray, centred on
/// a black square with its aspect kept, averaged to size. Transparent parts are background.
pub fn load(path: &Path, invert: bool) -> Result<Vec<u8>> {
    let failed = |reason: String| Error::Image {
        path: path.to_path_buf(),
        reason,
    };
    let reader = image::ImageReader::open(path)
        .and_then(image::ImageReader::with_guessed_format)
        .map_err(|error| failed(error.to_string()))?;
    let image = reader
        .decode()
        .map_err(|error| failed(error.to_string()))?
        .to_luma_alpha8();
    let (width, height) = (image.width() as usize, image.height() as usize);
    let pixels: Vec<f32> = image
        .pixels()
        .map(|pixel| {
            let [light, alpha] = pixel.0;
            let light = if invert { 255 - light } else { light };
            f32::from(light) * f32::from(alpha) / 255.0
        })
        .collect();
    let square = fit_square(&pixels, (width, height), SIDE, 0.0);
    Ok(square
        .into_iter()
        .map(|value| value.round() as u8)
        .collect())
}

fn rank(logits: &[f32], names: &[String], top: usize) -> Vec<Guess> {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let parts: Vec<f64> = logits
        .iter()
        .map(|x| f64::from(x - largest).exp())
        .collect();
    let sum: f64 = parts.iter().sum();
    let mut guesses: Vec<Guess> = parts
        .iter()
        .enumerate()
        .map(|(label, part)| Guess {
            class: names[label].clone(),
            label,
            probability: part / sum,
        })
        .collect();
    guesses.sort_by(|a, b| b.probability.total_cmp(&a.probability));
    guesses.truncate(top);
    guesses
}

/// Predictions for people.
pub fn table(predictions: &[Prediction]) -> String {
    let mut text = String::new();
    for prediction in predictions {
        line(&mut text, format_args!("{}", prediction.image.display()));
        for guess in &prediction.classes {
            line(
                &mut text,
                format_args!("  {:<12}{:>8}", guess.class, percent(guess.probability)),
            );
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::{GrayImage, Luma, LumaA};

    #[test]
    fn probabilities_sum_to_one_and_fall() {
        let names: Vec<String> = (0..CLASSES).map(|class| class.to_string()).collect();
        let logits: Vec<f32> = (0..CLASSES)
            .map(|class| ((class * 7) % 10) as f32)
            .collect();
        let guesses = rank(&logits, &names, CLASSES);
        assert!((guesses.iter().map(|guess| guess.probability).sum::<f64>() - 1.0).abs() < 1e-12);
        assert!(
            guesses
                .windows(2)
                .all(|pair| pair[0].probability >= pair[1].probability)
        );
        assert_eq!(guesses[0].label, 7);
        assert_eq!(rank(&logits, &names, 3).len(), 3);
    }

    #[test]
    fn images_of_the_right_size_pass_unchanged() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let path = folder.path().join("image.png");
        let image = GrayImage::from_fn(28, 28, |x, y| Luma([(x * 9 + y) as u8]));
        image.save(&path).expect("saved");
        assert_eq!(load(&path, false).expect("loaded"), *image.as_raw());
        let inverted: Vec<u8> = image.as_raw().iter().map(|pixel| 255 - pixel).collect();
        assert_eq!(load(&path, true).expect("loaded"), inverted);
    }

    #[test]
    fn padding_and_transparency_are_background_either_way() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let path = folder.path().join("image.png");
        let image = image::GrayAlphaImage::from_fn(56, 28, |x, _| {
            LumaA([255, if x < 28 { 0 } else { 255 }])
        });
        image.save(&path).expect("saved");
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
    fn files_that_are_no_images_are_named() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let path = folder.path().join("notes.png");
        std::fs::write(&path, "not an image").expect("written");
        let text = load(&path, false).expect_err("not an image").to_string();
        assert!(
            text.contains("notes.png") && text.contains("PNG and JPEG"),
            "{text}"
        );
        assert!(load(&folder.path().join("missing.png"), false).is_err());
    }
}
