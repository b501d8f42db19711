//! Images as the network takes them: standardised floats, at the size of its input.

use std::sync::Arc;

use burn::tensor::{Device, Int, Tensor, TensorData};
use image::{GrayImage, imageops};
use rand::seq::SliceRandom;
use serde::{Deserialize, Serialize};

use super::{Batch, BatchLoader, Images, SIDE};
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

    /// One image of `SIDE * SIDE` bytes as inputs of the network: `width` of them, a square.
    pub fn inputs(&self, image: &[u8], width: usize) -> impl Iterator<Item = f32> + use<> {
        let Self { mean, deviation } = *self;
        let [side, to] = [SIDE, width.isqrt()].map(|side| side as u32);
        let whole = GrayImage::from_raw(side, side, image.to_vec());
        let whole = whole.expect("SIDE * SIDE bytes");
        let small = match to == side {
            true => whole,
            false => imageops::thumbnail(&whole, to, to),
        };
        let pixels = small.into_raw().into_iter();
        pixels.map(move |pixel| (f32::from(pixel) / 255.0 - mean) / deviation)
    }
}

/// Inputs and labels in memory, or a part of them. Parts and clones share the memory.
#[derive(Clone, Debug)]
pub struct Samples {
    features: Arc<[f32]>,
    labels: Arc<[u8]>,
    width: usize,
    /// Those of this part.
    indices: Arc<[u32]>,
}

impl Samples {
    /// Scales the images to `width` inputs: 784 for all pixels, or any smaller square.
    pub fn new(images: &Images, width: usize, scale: Scale) -> Self {
        let images_of = images.pixels.chunks_exact(SIDE * SIDE);
        Self {
            features: images_of
                .flat_map(|image| scale.inputs(image, width))
                .collect(),
            labels: images.labels.as_slice().into(),
            width,
            indices: (0..images.labels.len() as u32).collect(),
        }
    }

    /// Holds out `fraction` for validation: the part to train with, and the part held out. The same
    /// seed gives the same split.
    pub fn split(&self, fraction: f64, seed: u64) -> (Self, Self) {
        let held_out = (self.count() as f64 * fraction).round() as usize;
        let mut order = self.indices.to_vec();
        order.shuffle(&mut rng(seed, Stream::Split));
        let mut valid = order.split_off(self.count() - held_out);
        // File order within each part, so that reading walks through memory.
        order.sort_unstable();
        valid.sort_unstable();
        (self.part(&order), self.part(&valid))
    }

    /// Those at `indices` of the whole.
    pub(super) fn part(&self, indices: &[u32]) -> Self {
        Self {
            indices: indices.into(),
            ..self.clone()
        }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.indices.len()
    }

    /// Which of the whole belong to this part.
    pub fn indices(&self) -> &[u32] {
        &self.indices
    }

    /// All of them in batches of this size, in order.
    pub fn batches(&self, batch_size: usize, device: &Device) -> BatchLoader {
        BatchLoader::new(self.clone(), batch_size, device)
    }

    /// Those at `indices` of the whole as tensors.
    pub fn batch(&self, indices: &[u32], device: &Device) -> Batch {
        let rows = indices.iter().map(|at| *at as usize);
        let mut inputs = Vec::with_capacity(indices.len() * self.width);
        for at in rows.clone() {
            inputs.extend_from_slice(&self.features[at * self.width..][..self.width]);
        }
        let labels: Arc<[u8]> = rows.map(|at| self.labels[at]).collect();
        let targets: Vec<i32> = labels.iter().map(|label| i32::from(*label)).collect();
        let count = indices.len();
        Batch {
            inputs: Tensor::from_data(TensorData::new(inputs, [count, self.width]), device),
            targets: Tensor::<1, Int>::from_data(TensorData::new(targets, [count]), device),
            labels,
        }
    }
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
            assert_eq!((samples.width, samples.labels[12]), (width, 2));
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
        assert_eq!(samples.features[784], (16.0 / 255.0 - 0.5) / 0.25);
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
        let samples = Samples::new(&images(1000), 1, Scale::of(&images(1000)));
        let split = |fraction, seed| {
            let (train, valid) = samples.split(fraction, seed);
            (train.indices.to_vec(), valid.indices.to_vec())
        };
        let (train, valid) = split(0.1, 42);
        assert_eq!((train.len(), valid.len()), (900, 100));
        let mut all = [train.clone(), valid.clone()].concat();
        all.sort_unstable();
        assert!(all.into_iter().eq(0..1000));
        assert_eq!((train, valid.clone()), split(0.1, 42));
        assert_ne!(valid, split(0.1, 43).1);
        assert!(split(0.0, 1).1.is_empty());
    }
}
