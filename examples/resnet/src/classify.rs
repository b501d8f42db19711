//! `classify`: what is on a picture.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use burn::tensor::activation::softmax;
use burn::tensor::{Device, Tensor, TensorData};
use image::imageops::{FilterType, crop_imm, resize};
use image::{DynamicImage, ImageDecoder, ImageReader};

use crate::cli::ClassifyArgs;
use crate::model::ResNetConfig;
use crate::{table, weights};

/// What torchvision's networks are trained with: the shorter side reduced to 256, the middle 224 of it,
/// standardised by ImageNet's means and deviations.
const SHORTER: u32 = 256;
const SIDE: u32 = 224;
/// Reduced to 256 pixels on its shorter side, anything longer is a huge picture.
const MOST_ELONGATED: u32 = 50;
const MEAN: [f32; 3] = [0.485, 0.456, 0.406];
const DEVIATION: [f32; 3] = [0.229, 0.224, 0.225];

/// A picture as an input, `[1, channels, height, width]`: as torchvision prepares it for a network of
/// three channels, as `train` does for one of a single channel, where `invert` is for dark on light.
///
/// # Errors
///
/// If the file is no picture, or the network has another number of channels.
pub fn prepared(
    path: &Path,
    invert: bool,
    config: &ResNetConfig,
    device: &Device,
) -> Result<Tensor<4>> {
    let context = || format!("cannot read {}", path.display());
    let (values, side): (Vec<f32>, u32) = match config.inputs {
        3 => {
            let picture = upright(path).with_context(context)?.to_rgb8();
            let (width, height) = picture.dimensions();
            let (shorter, longer) = (width.min(height), width.max(height));
            ensure!(
                longer / shorter < MOST_ELONGATED,
                "expected a picture less than {MOST_ELONGATED} times as long as it is wide, got {width}x{height}"
            );
            let scaled = |side: u32| u64::from(side) * u64::from(SHORTER) / u64::from(shorter);
            let (width, height) = (scaled(width) as u32, scaled(height) as u32);
            let picture = resize(&picture, width, height, FilterType::Triangle);
            let middle = |side: u32| (f64::from(side - SIDE) / 2.0).round_ties_even() as u32;
            let picture = crop_imm(&picture, middle(width), middle(height), SIDE, SIDE).to_image();
            let channel = |at: usize| {
                let standard =
                    move |value: u8| (f32::from(value) / 255.0 - MEAN[at]) / DEVIATION[at];
                picture.pixels().map(move |pixel| standard(pixel.0[at]))
            };
            ((0..3).flat_map(channel).collect(), SIDE)
        }
        1 => {
            let picture = mnist::predict::load(path, invert).with_context(context)?;
            let values = picture.into_iter().map(crate::train::standardised);
            (values.collect(), mnist::data::SIDE as u32)
        }
        channels => anyhow::bail!(
            "expected a network for pictures of 1 or 3 channels, got one for {channels}"
        ),
    };
    let shape = [1, config.inputs, side as usize, side as usize];
    Ok(Tensor::from_data(TensorData::new(values, shape), device))
}

/// The picture as it was seen: phones store it as the sensor did, and how they were held beside it.
fn upright(path: &Path) -> Result<DynamicImage> {
    let reader = ImageReader::open(path)?.with_guessed_format()?;
    let mut decoder = reader.into_decoder()?;
    let orientation = decoder.orientation()?;
    let mut picture = DynamicImage::from_decoder(decoder)?;
    picture.apply_orientation(orientation);
    Ok(picture)
}

/// Runs the command; returns what to print.
pub fn run(args: &ClassifyArgs) -> Result<String> {
    let device = mnist::device::resolve(&args.device)?.device();
    let (model, config) = weights::load(&args.weights, &device)?;
    let names = names(args, &config)?;
    let logits = model.forward(prepared(&args.image, args.invert, &config, &device)?);
    let shares = softmax(logits, 1).into_data();
    let mut shares: Vec<(f32, &String)> = shares.iter::<f32>().zip(&names).collect();
    shares.sort_by(|left, right| right.0.total_cmp(&left.0));
    let rows = shares.iter().take(args.top);
    Ok(table(rows.map(|(share, name)| {
        [format!("{:.2}%", 100.0 * share), name.to_string()]
    })))
}

/// A name a class: from a file, else Fashion-MNIST's where the network looks like one of `train`, else
/// numbers.
fn names(args: &ClassifyArgs, config: &ResNetConfig) -> Result<Vec<String>> {
    let Some(path) = &args.classes else {
        return Ok(match (config.inputs, config.classes) {
            (1, 10) => mnist::data::Dataset::load("embedded")?.class_names,
            _ => (0..config.classes)
                .map(|class| format!("class {class}"))
                .collect(),
        });
    };
    let text = std::fs::read_to_string(path);
    let text = text.with_context(|| format!("cannot read {}", path.display()))?;
    let names: Vec<String> = text.lines().map(str::to_string).collect();
    ensure!(
        names.len() == config.classes,
        "expected a name a line for the {} classes of the network, got {} in {}",
        config.classes,
        names.len(),
        path.display()
    );
    Ok(names)
}
