//! Images as the network takes them: floats from 0 to 1, at the size of its input.

use std::sync::Arc;

use super::resize::area_average;
use super::{Images, SIDE};
use crate::rng::{Rng, Stream};

/// Inputs and labels in memory, shared by everything that batches them.
#[derive(Clone, Debug)]
pub struct Samples {
    features: Arc<[f32]>,
    labels: Arc<[u8]>,
    width: usize,
}

impl Samples {
    /// Scales the images to `width` inputs: 784 as they are, or any smaller square.
    pub fn new(images: &Images, width: usize) -> Self {
        let side = width.isqrt();
        assert_eq!(side * side, width, "the input is a square");
        let mut features = Vec::with_capacity(images.len() * width);
        for image in images.pixels.chunks_exact(SIDE * SIDE) {
            features.extend(scale(image, side));
        }
        Self {
            features: features.into(),
            labels: images.labels.as_slice().into(),
            width,
        }
    }

    /// Number of samples.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// Number of inputs of the network.
    pub fn width(&self) -> usize {
        self.width
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

/// One image of `SIDE x SIDE` bytes as `side x side` floats from 0 to 1.
pub fn scale(image: &[u8], side: usize) -> Vec<f32> {
    let unit: Vec<f32> = image
        .iter()
        .map(|pixel| f32::from(*pixel) / 255.0)
        .collect();
    area_average(&unit, (SIDE, SIDE), (side, side))
}

/// Holds out `fraction` of `count` samples for validation: the indices to train with, and the
/// held out ones. The same seed gives the same split.
pub fn split(count: usize, fraction: f64, seed: u64) -> (Vec<u32>, Vec<u32>) {
    let held_out = (count as f64 * fraction).round() as usize;
    let mut order: Vec<u32> = (0..count as u32).collect();
    Rng::new(seed, Stream::Split).shuffle(&mut order);
    let mut valid = order.split_off(count - held_out);
    // File order within each part, so that reading walks through memory.
    order.sort_unstable();
    valid.sort_unstable();
    (order, valid)
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
    fn full_size_is_the_bytes_over_255() {
        let samples = Samples::new(&images(3), 784);
        assert_eq!((samples.len(), samples.width()), (3, 784));
        assert_eq!(samples.features(1)[0], (784 % 256) as f32 / 255.0);
        assert_eq!(samples.label(2), 2);
    }

    #[test]
    fn the_articles_size_is_reduced() {
        let samples = Samples::new(&images(2), 100);
        assert_eq!(samples.features(1).len(), 100);
        assert!(
            samples
                .features(1)
                .iter()
                .all(|value| (0.0..=1.0).contains(value))
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
    }

    #[test]
    fn no_validation_keeps_all_for_training() {
        let (train, valid) = split(10, 0.0, 1);
        assert_eq!((train.len(), valid.len()), (10, 0));
    }
}
