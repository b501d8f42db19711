//! Images as the network takes them: standardised floats, at the size of its input.

use std::sync::Arc;

use rand::seq::SliceRandom;
use serde::{Deserialize, Serialize};

use super::{Images, SIDE};
use crate::model::{Stream, rng};

/// How pixels from 0 to 1 become inputs of mean 0 and deviation 1 over the training images.
///
/// Besides the usual reasons, a pixel that is black in every image is then no zero: the gradients
/// of its weights do not vanish, and Adam's moments of them do not decay into denormals, which make
/// a training step three times slower on many processors.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Scale {
    /// Mean of the pixels, 0 to 1.
    pub mean: f32,
    /// Their standard deviation.
    pub deviation: f32,
}

impl Scale {
    /// Measures the pixels of `images`, exactly: the order of the sums does not matter.
    pub fn of(images: &Images) -> Self {
        let (mut sum, mut squares) = (0u64, 0u64);
        for pixel in &images.pixels {
            sum += u64::from(*pixel);
            squares += u64::from(*pixel).pow(2);
        }
        let count = images.pixels.len().max(1) as f64;
        let mean = sum as f64 / count;
        let deviation = (squares as f64 / count - mean * mean).sqrt();
        Self {
            mean: (mean / 255.0) as f32,
            deviation: (deviation / 255.0).max(1e-3) as f32,
        }
    }

    /// One image of `SIDE * SIDE` bytes as inputs of the network.
    pub fn inputs(&self, image: &[u8], width: usize) -> impl Iterator<Item = f32> + use<> {
        let Self { mean, deviation } = *self;
        let pixel = |x, y| f32::from(image[y * SIDE + x]) / 255.0;
        let side = width.isqrt();
        let small = reduce((SIDE, SIDE), (side, side), pixel);
        small
            .into_iter()
            .map(move |value| (value - mean) / deviation)
    }
}

/// Inputs and labels in memory, shared by everything that batches them.
#[derive(Clone, Debug)]
pub struct Samples {
    features: Arc<[f32]>,
    labels: Arc<[u8]>,
    width: usize,
}

impl Samples {
    /// Scales the images to `width` inputs: 784 for all pixels, or any smaller square.
    pub fn new(images: &Images, width: usize, scale: Scale) -> Self {
        assert_eq!(width.isqrt().pow(2), width, "the input is a square");
        let images_of = images.pixels.chunks_exact(SIDE * SIDE);
        Self {
            features: images_of
                .flat_map(|image| scale.inputs(image, width))
                .collect(),
            labels: images.labels.as_slice().into(),
            width,
        }
    }

    /// Number of inputs of the network.
    pub fn width(&self) -> usize {
        self.width
    }

    /// The indices of all samples.
    pub fn all(&self) -> Vec<u32> {
        (0..self.labels.len() as u32).collect()
    }

    /// The inputs of sample `at`.
    pub fn features(&self, at: usize) -> &[f32] {
        &self.features[at * self.width..][..self.width]
    }

    /// The label of sample `at`.
    pub fn label(&self, at: usize) -> u8 {
        self.labels[at]
    }
}

/// Holds out `fraction` of `count` samples for validation: the indices to train with, and the
/// held out ones. The same seed gives the same split.
pub fn split(count: usize, fraction: f64, seed: u64) -> (Vec<u32>, Vec<u32>) {
    let held_out = (count as f64 * fraction).round() as usize;
    let mut order: Vec<u32> = (0..count as u32).collect();
    order.shuffle(&mut rng(seed, Stream::Split));
    let mut valid = order.split_off(count - held_out);
    // File order within each part, so that reading walks through memory.
    order.sort_unstable();
    valid.sort_unstable();
    (order, valid)
}

/// Averages an image down: each output pixel is the mean of the rectangle that it covers, pixels
/// cut by its border counted by the part inside. Columns first, then rows. Enlarging repeats.
pub(crate) fn reduce(
    (width, height): (usize, usize),
    (to_width, to_height): (usize, usize),
    pixel: impl Fn(usize, usize) -> f32,
) -> Vec<f32> {
    let columns = cover(width, to_width);
    let mut narrow = Vec::with_capacity(to_width * height);
    for y in 0..height {
        narrow.extend(columns.iter().map(|parts| mean(parts, |x| pixel(x, y))));
    }
    let mut small = Vec::with_capacity(to_width * to_height);
    for parts in cover(height, to_height) {
        small.extend((0..to_width).map(|x| mean(&parts, |y| narrow[y * to_width + x])));
    }
    small
}

/// Averages the image to fit a `SIDE x SIDE` square of bytes, its aspect kept, centred on black.
pub(crate) fn fit_square(
    (width, height): (usize, usize),
    pixel: impl Fn(usize, usize) -> f32,
) -> Vec<u8> {
    let long = width.max(height);
    // The long edge fills the square; a very thin image keeps one pixel.
    let fit = |edge: usize| ((2 * edge * SIDE + long) / (2 * long)).max(1);
    let (to_width, to_height) = (fit(width), fit(height));
    let small = reduce((width, height), (to_width, to_height), pixel);
    let mut square = vec![0; SIDE * SIDE];
    let (left, top) = ((SIDE - to_width) / 2, (SIDE - to_height) / 2);
    for (at, value) in small.into_iter().enumerate() {
        square[(top + at / to_width) * SIDE + left + at % to_width] = value.round() as u8;
    }
    square
}

/// The input pixels that each output pixel covers along one axis, with their parts.
fn cover(from: usize, to: usize) -> Vec<Vec<(usize, f32)>> {
    // In units of `1 / to` of an input pixel every border is a whole number: no rounding.
    let parts = |at: usize| {
        let (low, high) = (at * from, (at + 1) * from);
        (low / to..high.div_ceil(to))
            .map(|pixel| {
                let part = high.min((pixel + 1) * to) - low.max(pixel * to);
                (pixel, part as f32 / from as f32)
            })
            .collect()
    };
    (0..to).map(parts).collect()
}

fn mean(parts: &[(usize, f32)], pixel: impl Fn(usize) -> f32) -> f32 {
    parts.iter().map(|(at, weight)| weight * pixel(*at)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn images(count: usize) -> Images {
        Images {
            pixels: (0..count * 784).map(|at| (at % 256) as u8).collect(),
            labels: (0..count).map(|at| (at % 10) as u8).collect(),
        }
    }

    #[test]
    fn inputs_are_standardised_at_both_sizes() {
        let scale = Scale::of(&images(40));
        for (width, least) in [(784, 0.999), (100, 0.05)] {
            let samples = Samples::new(&images(40), width, scale);
            let count = samples.features.len() as f32;
            let mean = samples.features.iter().sum::<f32>() / count;
            let squares = samples
                .features
                .iter()
                .map(|value| value * value)
                .sum::<f32>()
                / count;
            assert_eq!((samples.width(), samples.label(12)), (width, 2));
            assert!(mean.abs() < 1e-3, "mean {mean}");
            assert!(squares > least && squares < 1.001, "mean square {squares}");
        }
        let samples = Samples::new(
            &images(3),
            784,
            Scale {
                mean: 0.5,
                deviation: 0.25,
            },
        );
        assert_eq!(samples.features(1)[0], (16.0 / 255.0 - 0.5) / 0.25);
        let black = Images {
            pixels: vec![0; 784],
            labels: vec![0],
        };
        assert_eq!(
            Scale::of(&black),
            Scale {
                mean: 0.0,
                deviation: 1e-3
            }
        );
    }

    #[test]
    fn split_is_complete_disjoint_and_seeded() {
        let (train, valid) = split(1000, 0.1, 42);
        assert_eq!((train.len(), valid.len()), (900, 100));
        let mut all = [train.clone(), valid.clone()].concat();
        all.sort_unstable();
        assert!(all.into_iter().eq(0..1000));
        assert_eq!((train, valid.clone()), split(1000, 0.1, 42));
        assert_ne!(valid, split(1000, 0.1, 43).1);
        assert!(split(10, 0.0, 1).1.is_empty());
    }

    fn reduced(image: &[f32], size: (usize, usize), to: (usize, usize)) -> Vec<f32> {
        reduce(size, to, |x, y| image[y * size.0 + x])
    }

    #[test]
    fn pixels_count_by_the_part_that_is_covered() {
        let image = [1.0, 3.0, 10.0, 20.0, 5.0, 7.0, 30.0, 40.0];
        assert_eq!(reduced(&image, (4, 2), (2, 1)), [4.0, 25.0]);
        // Three pixels to two: each output covers one and a half.
        let small = reduced(&[3.0, 6.0, 9.0], (3, 1), (2, 1));
        assert!((small[0] - 4.0).abs() < 1e-6 && (small[1] - 8.0).abs() < 1e-6);
        for to in [1, 3, 10, 28, 100] {
            let small = reduced(&[0.25; 784], (28, 28), (to, to));
            assert!(
                small.iter().all(|value| (value - 0.25).abs() < 1e-6),
                "to {to}"
            );
        }
    }

    #[test]
    fn fitting_keeps_the_aspect() {
        // A wide image: background above and below, content in the middle.
        let square = fit_square((4, 2), |_, _| 1.0);
        let rows = [[0; 7 * 28].as_slice(), &[1; 14 * 28], &[0; 7 * 28]].concat();
        assert_eq!(square, rows);
        let line = fit_square((1000, 1), |_, _| 1.0);
        assert_eq!(line.iter().filter(|value| **value == 1).count(), 28);
    }
}
