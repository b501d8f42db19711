//! Batches from memory: a data loader without threads.
//!
//! Burn's own loader collects items one by one and batches them; at 0.3 ms for a training step
//! that would be a large part. Here a batch is one gather of rows, so worker threads (and the
//! question of their order) are not needed.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use burn::data::dataloader::{DataLoader, DataLoaderIterator, Progress};
use burn::data::dataset::DatasetError;
use burn::tensor::{Device, Int, Tensor, TensorData};
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

/// Serves a part of [`Samples`] in batches.
#[derive(Clone)]
pub struct BatchLoader {
    samples: Samples,
    indices: Arc<[u32]>,
    batch_size: usize,
    order: Order,
    device: Device,
    clock: Option<EpochClock>,
}

#[derive(Clone)]
enum Order {
    Fixed,
    /// A new order each epoch, a function of seed and epoch alone: that is what lets a resumed run
    /// continue exactly.
    Shuffled {
        seed: u64,
        next_epoch: Arc<AtomicU64>,
    },
}

impl BatchLoader {
    /// The samples at `indices`, always in that order.
    pub fn fixed(samples: &Samples, indices: &[u32], batch_size: usize, device: &Device) -> Self {
        Self {
            samples: samples.clone(),
            indices: indices.into(),
            batch_size,
            order: Order::Fixed,
            device: device.clone(),
            clock: None,
        }
    }

    /// The samples at `indices`, in a new order each epoch, the first being `epoch`.
    pub fn shuffled(mut self, seed: u64, epoch: u64) -> Self {
        let next_epoch = Arc::new(AtomicU64::new(epoch));
        self.order = Order::Shuffled { seed, next_epoch };
        self
    }

    /// Writes the time of every complete epoch to `clock`.
    pub fn timed(mut self, clock: &EpochClock) -> Self {
        self.clock = Some(clock.clone());
        self
    }

    fn batch(&self, order: &[u32]) -> Batch {
        let width = self.samples.width();
        let mut inputs = Vec::with_capacity(order.len() * width);
        for at in order {
            inputs.extend_from_slice(self.samples.features(*at as usize));
        }
        let labels: Arc<[u8]> = order
            .iter()
            .map(|at| self.samples.label(*at as usize))
            .collect();
        let targets: Vec<i32> = labels.iter().map(|label| i32::from(*label)).collect();
        Batch {
            inputs: Tensor::from_data(TensorData::new(inputs, [order.len(), width]), &self.device),
            targets: Tensor::from_data(TensorData::new(targets, [order.len()]), &self.device),
            labels,
        }
    }
}

impl DataLoader<Batch> for BatchLoader {
    fn iter<'a>(&'a self) -> Box<dyn DataLoaderIterator<Batch> + 'a> {
        let mut order = self.indices.to_vec();
        if let Order::Shuffled { seed, next_epoch } = &self.order {
            let epoch = next_epoch.fetch_add(1, Ordering::Relaxed);
            order.shuffle(&mut rng(*seed, Stream::Epoch(epoch)));
        }
        Box::new(Batches {
            loader: self,
            order,
            done: 0,
            start: Instant::now(),
            finished: false,
        })
    }

    fn num_items(&self) -> usize {
        self.indices.len()
    }

    fn to_device(&self, device: &Device) -> Arc<dyn DataLoader<Batch>> {
        Arc::new(Self {
            device: device.clone(),
            ..self.clone()
        })
    }

    fn slice(&self, start: usize, end: usize) -> Arc<dyn DataLoader<Batch>> {
        Arc::new(Self {
            indices: self.indices[start..end].into(),
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
    finished: bool,
}

impl Batches<'_> {
    /// A last batch of one image has no variance to normalise with, so that image joins the batch
    /// before it. No image is dropped.
    fn next_size(&self) -> usize {
        let left = self.order.len() - self.done;
        let size = self.loader.batch_size;
        if left == size + 1 {
            left
        } else {
            left.min(size)
        }
    }

    fn finish(&mut self) {
        if let (false, Some(clock)) = (self.finished, &self.loader.clock) {
            // A GPU may still compute what was only queued: its time belongs to the epoch.
            // A failure shows again at the next read, which reports it.
            let _ = self.loader.device.sync();
            clock.push(EpochTime {
                images: self.done,
                time: self.start.elapsed(),
            });
        }
        self.finished = true;
    }
}

impl Iterator for Batches<'_> {
    type Item = Result<Batch, DatasetError>;

    fn next(&mut self) -> Option<Self::Item> {
        let size = self.next_size();
        if size == 0 {
            self.finish();
            return None;
        }
        let batch = self.loader.batch(&self.order[self.done..self.done + size]);
        self.done += size;
        Some(Ok(batch))
    }
}

impl DataLoaderIterator<Batch> for Batches<'_> {
    fn progress(&self) -> Progress {
        Progress::new(self.done, self.order.len(), Some("images".to_string()))
    }
}

/// Time of one training epoch, from the first batch until the device has finished the last step.
/// Validation, checkpoints and everything else between epochs are outside.
#[derive(Clone, Copy, Debug)]
pub struct EpochTime {
    /// Images trained on.
    pub images: usize,
    /// Wall-clock time.
    pub time: Duration,
}

impl EpochTime {
    /// Images per second.
    pub fn rate(&self) -> f64 {
        self.images as f64 / self.time.as_secs_f64()
    }
}

/// Collects the times of the epochs of a run.
#[derive(Clone, Debug, Default)]
pub struct EpochClock(Arc<Mutex<Vec<EpochTime>>>);

impl EpochClock {
    fn push(&self, time: EpochTime) {
        self.0
            .lock()
            .unwrap_or_else(|poison| poison.into_inner())
            .push(time);
    }

    /// The complete epochs so far.
    pub fn times(&self) -> Vec<EpochTime> {
        self.0
            .lock()
            .unwrap_or_else(|poison| poison.into_inner())
            .clone()
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
        BatchLoader::fixed(&samples, &samples.all(), batch_size, &Device::flex())
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
        let clock = EpochClock::default();
        let loader = loader(10, 4).timed(&clock);
        drop(loader.iter().next());
        assert!(clock.times().is_empty());
        loader.iter().for_each(drop);
        let images: Vec<usize> = clock.times().iter().map(|time| time.images).collect();
        assert_eq!(images, [10]);
    }
}
