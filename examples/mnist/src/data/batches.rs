//! Batches from memory: a data loader without threads.
//!
//! Burn's own loader collects items one by one and batches them; at 0.3 ms for a training step
//! that would be a large part. Here a batch is one gather of rows, so worker threads (and the
//! question of their order) are not needed.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use burn::data::dataloader::{DataLoader, DataLoaderIterator, Progress};
use burn::data::dataset::DatasetError;
use burn::tensor::{Device, Int, Tensor};
use rand::seq::SliceRandom;

use super::Samples;
use crate::model::{Stream, rng};

/// What a training or validation step takes.
#[derive(Clone, Debug)]
pub struct Batch {
    /// `[batch, inputs]`.
    pub inputs: Tensor<2>,
    /// `[batch]`, the classes.
    pub targets: Tensor<1, Int>,
    /// The classes again, on the host, where metrics are computed.
    pub labels: Arc<[u8]>,
}

/// Serves [`Samples`] in batches.
#[derive(Clone)]
pub struct BatchLoader {
    samples: Samples,
    batch_size: usize,
    device: Device,
    /// Seed, and the epoch that comes next.
    shuffled: Option<(u64, Arc<AtomicU64>)>,
    nanoseconds: Arc<AtomicU64>,
}

impl BatchLoader {
    /// The samples, always in their order.
    pub fn new(samples: Samples, batch_size: usize, device: &Device) -> Self {
        Self {
            samples,
            batch_size,
            device: device.clone(),
            shuffled: None,
            nanoseconds: Arc::default(),
        }
    }

    /// The samples in a new order each epoch, the first being `epoch`. The order is a function of seed
    /// and epoch alone: that is what lets a resumed run continue exactly.
    pub fn shuffled(mut self, seed: u64, epoch: usize) -> Self {
        self.shuffled = Some((seed, Arc::new(AtomicU64::new(epoch as u64))));
        self
    }

    /// Tells the time in seconds of the last complete epoch, from its first batch until the device has
    /// finished the last step; 0 before the end of the first. Validation, checkpoints and everything else
    /// between epochs are outside.
    pub fn clock(&self) -> impl Fn() -> f64 + Send + Sync + use<> {
        let nanoseconds = self.nanoseconds.clone();
        move || nanoseconds.load(Ordering::Relaxed) as f64 / 1e9
    }
}

impl DataLoader<Batch> for BatchLoader {
    fn iter<'a>(&'a self) -> Box<dyn DataLoaderIterator<Batch> + 'a> {
        let mut order = self.samples.indices().to_vec();
        if let Some((seed, next_epoch)) = &self.shuffled {
            let epoch = next_epoch.fetch_add(1, Ordering::Relaxed);
            order.shuffle(&mut rng(*seed, Stream::Epoch(epoch)));
        }
        Box::new(Batches {
            loader: self,
            order,
            done: 0,
            start: Instant::now(),
        })
    }

    fn num_items(&self) -> usize {
        self.samples.count()
    }

    fn to_device(&self, device: &Device) -> Arc<dyn DataLoader<Batch>> {
        Arc::new(Self {
            device: device.clone(),
            ..self.clone()
        })
    }

    fn slice(&self, start: usize, end: usize) -> Arc<dyn DataLoader<Batch>> {
        Arc::new(Self {
            samples: self.samples.part(&self.samples.indices()[start..end]),
            ..self.clone()
        })
    }
}

/// One epoch.
struct Batches<'a> {
    loader: &'a BatchLoader,
    order: Vec<u32>,
    done: usize,
    start: Instant,
}

impl Iterator for Batches<'_> {
    type Item = Result<Batch, DatasetError>;

    fn next(&mut self) -> Option<Self::Item> {
        let BatchLoader {
            samples,
            batch_size,
            device,
            nanoseconds,
            ..
        } = self.loader;
        let left = self.order.len() - self.done;
        if left == 0 {
            // A GPU may still compute what was only queued: its time belongs to the epoch.
            // A failure shows again at the next read, which reports it.
            let _ = device.sync();
            let time = self.start.elapsed().as_nanos() as u64;
            nanoseconds.store(time, Ordering::Relaxed);
            return None;
        }
        // A last batch of one image has no variance to normalise with, so that image joins the batch
        // before it. No image is dropped.
        let size = match left == batch_size + 1 {
            true => left,
            false => left.min(*batch_size),
        };
        let batch = samples.batch(&self.order[self.done..self.done + size], device);
        self.done += size;
        Some(Ok(batch))
    }
}

impl DataLoaderIterator<Batch> for Batches<'_> {
    fn progress(&self) -> Progress {
        Progress::new(self.done, self.order.len(), Some("images".to_string()))
    }
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use super::*;
    use crate::data::{Images, Scale};

    fn loader(count: usize, batch_size: usize) -> BatchLoader {
        let images = Images {
            pixels: (0..count).flat_map(|at| [at as u8; 784]).collect(),
            labels: (0..count).map(|at| (at % 10) as u8).collect(),
        };
        let samples = Samples::new(
            &images,
            784,
            Scale {
                mean: 0.0,
                deviation: 1.0,
            },
        );
        samples.batches(batch_size, &Device::flex())
    }

    fn labels(loader: &BatchLoader) -> Vec<Vec<u8>> {
        loader
            .iter()
            .map(|batch| batch.expect("memory").labels.to_vec())
            .collect()
    }

    #[test]
    fn a_single_last_image_joins_the_batch_before_it() {
        for (count, expected) in [
            (64, &[32, 32][..]),
            (65, &[32, 33]),
            (66, &[32, 32, 2]),
            (33, &[33]),
            (5, &[5]),
        ] {
            let sizes: Vec<usize> = labels(&loader(count, 32)).iter().map(Vec::len).collect();
            assert_eq!(sizes, expected);
        }
    }

    #[test]
    fn rows_labels_and_targets_belong_together() {
        let loader = loader(40, 7).shuffled(1, 1);
        let batch = loader
            .iter()
            .nth(2)
            .expect("a third batch")
            .expect("memory");
        let inputs: Vec<f32> = batch.inputs.into_data().try_into_vec().expect("floats");
        let targets = batch
            .targets
            .into_data_as::<i64>()
            .try_into_vec::<i64>()
            .expect("integers");
        for (row, label) in batch.labels.iter().enumerate() {
            let image = (inputs[row * 784] * 255.0).round() as u64;
            assert_eq!(
                (image % 10, targets[row]),
                (u64::from(*label), i64::from(*label))
            );
        }
    }

    #[test]
    fn order_is_a_function_of_seed_and_epoch() {
        let run = loader(100, 32).shuffled(5, 1);
        let (first, second) = (labels(&run), labels(&run));
        assert_ne!(first, second);
        // A run resumed at epoch 2 sees what the first run saw there.
        assert_eq!(second, labels(&loader(100, 32).shuffled(5, 2)));
        assert_ne!(first, labels(&loader(100, 32).shuffled(6, 1)));
    }

    #[test]
    fn only_complete_epochs_are_timed() {
        let loader = loader(10, 4);
        let clock = loader.clock();
        drop(loader.iter().next());
        assert_eq!(clock(), 0.0);
        loader.iter().for_each(drop);
        assert!(clock() > 0.0);
    }
}
