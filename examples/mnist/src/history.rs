//! Loss and accuracy of every epoch, once: on disk as `metrics.csv`, in memory for Burn's
//! strategies, and as the lines that are printed.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};

use anyhow::{Context, Result, ensure};
use burn::train::logger::MetricLogger;
use burn::train::metric::store::{Aggregate, EpochSummary, EventStoreClient, MetricsUpdate, Split};
use burn::train::metric::{MetricDefinition, MetricId, NumericEntry};
use serde::{Deserialize, Serialize};

use crate::data::EpochClock;
use crate::folder::write_atomically;
use crate::metrics::{ACCURACY, LOSS};

/// One line of `metrics.csv`. Accuracies are shares from 0 to 1; a run without validation images
/// has no validation values. A loss that is not a number is written as `NaN`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct EpochRow {
    /// From 1.
    pub epoch: usize,
    /// Mean over the batches as they were trained, so of a network that was still changing.
    pub train_loss: f64,
    /// Like `train_loss`.
    pub train_accuracy: f64,
    /// Of the network at the end of the epoch.
    pub valid_loss: Option<f64>,
    /// Like `valid_loss`.
    pub valid_accuracy: Option<f64>,
    /// Time spent in training steps, without validation and checkpoints.
    pub train_seconds: f64,
    /// Training images over `train_seconds`.
    pub train_images_per_second: f64,
}

impl EpochRow {
    /// The epoch as it is printed.
    pub fn line(&self, epochs: usize) -> String {
        let width = epochs.to_string().len();
        let valid = self
            .valid_loss
            .zip(self.valid_accuracy)
            .map_or(String::new(), |(loss, share)| {
                format!("  valid loss {loss:.4} accuracy {:5.2}%", 100.0 * share)
            });
        format!(
            "epoch {:>width$}/{epochs}  train loss {:.4} accuracy {:5.2}%{valid}  {:.0} images/s",
            self.epoch,
            self.train_loss,
            100.0 * self.train_accuracy,
            self.train_images_per_second
        )
    }

    /// Whether the losses are numbers.
    pub fn is_finite(&self) -> bool {
        self.train_loss.is_finite() && self.valid_loss.is_none_or(f64::is_finite)
    }
}

/// The epochs of a run.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct History {
    /// In order, without gaps.
    pub rows: Vec<EpochRow>,
}

impl History {
    /// Reads `metrics.csv`.
    pub fn load(path: &Path) -> Result<Self> {
        let read = || {
            let rows: Result<Vec<EpochRow>, _> =
                csv::Reader::from_path(path)?.deserialize().collect();
            let rows = rows?;
            for (at, row) in rows.iter().enumerate() {
                ensure!(
                    row.epoch == at + 1,
                    "line {} holds epoch {}",
                    at + 2,
                    row.epoch
                );
            }
            anyhow::Ok(Self { rows })
        };
        read().with_context(|| format!("{} is damaged", path.display()))
    }

    /// Writes `metrics.csv`, whole or not at all.
    pub fn save(&self, path: &Path) -> Result<()> {
        let mut writer = csv::Writer::from_writer(Vec::new());
        self.rows.iter().try_for_each(|row| writer.serialize(row))?;
        write_atomically(path, &writer.into_inner()?)
    }

    /// The epoch with the lowest validation loss, the last one without validation.
    pub fn best_epoch(&self) -> Option<usize> {
        let validated = self
            .rows
            .iter()
            .filter_map(|row| Some((row.valid_loss?, row.epoch)));
        let best = validated
            .filter(|(loss, _)| loss.is_finite())
            .min_by(|a, b| a.0.total_cmp(&b.0));
        best.map(|(_, epoch)| epoch)
            .or(self.rows.last().map(|row| row.epoch))
    }

    fn row(&mut self, epoch: usize) -> &mut EpochRow {
        while self.rows.len() < epoch {
            let epoch = self.rows.len() + 1;
            self.rows.push(EpochRow {
                epoch,
                ..EpochRow::default()
            });
        }
        &mut self.rows[epoch - 1]
    }
}

/// The history that the logger writes and the checkpoint and early stopping strategies read.
#[derive(Clone, Default)]
pub(crate) struct SharedHistory(Arc<Mutex<History>>);

impl SharedHistory {
    /// Starts with the epochs of an earlier part of the run.
    pub fn new(history: History) -> Self {
        Self(Arc::new(Mutex::new(history)))
    }

    pub fn lock(&self) -> MutexGuard<'_, History> {
        self.0.lock().unwrap_or_else(|poison| poison.into_inner())
    }

    /// The history when all of `epoch` is in it. Burn's store calls the logger on a thread of its
    /// own; it answers a question only after what it was told before.
    pub fn after(&self, epoch: usize, store: &EventStoreClient) -> MutexGuard<'_, History> {
        store.find_metric(LOSS, epoch, Aggregate::Mean, &Split::Valid);
        self.lock()
    }
}

/// Keeps the final values of each epoch. Burn's file logger writes a line per metric and batch
/// instead, ten thousand system calls a second at the speed of this network.
pub(crate) struct HistoryLogger {
    pub history: SharedHistory,
    pub clock: EpochClock,
    /// The first epoch that the clock times.
    pub first_epoch: usize,
    /// Whether there are validation images.
    pub validates: bool,
    /// Called with each complete epoch.
    pub show: Box<dyn Fn(&EpochRow) + Send>,
    pub names: HashMap<MetricId, Arc<String>>,
}

impl MetricLogger for HistoryLogger {
    fn log(&mut self, update: MetricsUpdate, epoch: usize, split: &Split) {
        let mut history = self.history.lock();
        for metric in update.entries_numeric {
            let (Some(NumericEntry::Final(value)), Some(name)) = (
                metric.numeric_entry,
                self.names.get(&metric.entry.metric_id),
            ) else {
                continue;
            };
            let row = history.row(epoch);
            match (split, name.as_str()) {
                (Split::Train, LOSS) => row.train_loss = value,
                (Split::Train, ACCURACY) => row.train_accuracy = value / 100.0,
                (Split::Valid, LOSS) if self.validates => row.valid_loss = Some(value),
                (Split::Valid, ACCURACY) if self.validates => {
                    row.valid_accuracy = Some(value / 100.0)
                }
                _ => {}
            }
        }
    }

    fn read_numeric(&mut self, _: &str, _: usize, _: &Split) -> Result<Vec<NumericEntry>, String> {
        // This program's strategies read the history itself.
        Ok(Vec::new())
    }

    fn log_metric_definition(&mut self, definition: MetricDefinition) {
        self.names.insert(definition.metric_id, definition.name);
    }

    fn log_epoch_summary(&mut self, summary: EpochSummary) {
        let epoch = summary.epoch_number;
        let mut history = self.history.lock();
        // Validation ends last, also where it has no images.
        if summary.split == Split::Valid
            && let Some(time) = self.clock.times().get(epoch - self.first_epoch)
        {
            let row = history.row(epoch);
            row.train_seconds = time.time.as_secs_f64();
            row.train_images_per_second = time.rate();
            (self.show)(row);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn history(valid: &[Option<f64>]) -> History {
        let rows = valid.iter().enumerate().map(|(at, loss)| EpochRow {
            epoch: at + 1,
            train_loss: 1.0 / (at + 1) as f64,
            train_accuracy: 0.1,
            valid_loss: *loss,
            valid_accuracy: loss.map(|loss| 1.0 - loss),
            train_seconds: 0.25,
            train_images_per_second: 40.0,
        });
        History {
            rows: rows.collect(),
        }
    }

    #[test]
    fn csv_round_trips_exactly_and_damage_is_named() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let path = folder.path().join("metrics.csv");
        for mut history in [
            history(&[Some(0.3), Some(0.1 + 0.2)]),
            history(&[None, None]),
        ] {
            history.save(&path).expect("saved");
            assert_eq!(History::load(&path).expect("loaded"), history);
            history.rows.remove(0);
            history.save(&path).expect("saved");
            let text = format!("{:#}", History::load(&path).expect_err("a gap"));
            assert!(
                text.contains("metrics.csv is damaged") && text.contains("epoch 2"),
                "{text}"
            );
        }
        std::fs::write(&path, "epoch\nseven\n").expect("written");
        assert!(History::load(&path).is_err());
    }

    #[test]
    fn best_epoch_is_the_lowest_validation_loss() {
        assert_eq!(
            history(&[Some(0.5), Some(0.2), Some(0.3)]).best_epoch(),
            Some(2)
        );
        assert_eq!(
            history(&[Some(0.5), Some(-f64::NAN), Some(0.3)]).best_epoch(),
            Some(3)
        );
        assert_eq!(history(&[None, None, None]).best_epoch(), Some(3));
        assert_eq!(History::default().best_epoch(), None);
    }

    #[test]
    fn a_loss_that_is_no_number_is_shown_and_kept() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let path = folder.path().join("metrics.csv");
        let broken = history(&[Some(f64::NAN)]);
        assert!(!broken.rows[0].is_finite() && history(&[None]).rows[0].is_finite());
        let line = broken.rows[0].line(10);
        assert_eq!(
            line,
            "epoch  1/10  train loss 1.0000 accuracy 10.00%  valid loss NaN accuracy   NaN%  40 images/s"
        );
        broken.save(&path).expect("saved");
        let loaded = History::load(&path).expect("loaded");
        assert!(loaded.rows[0].valid_loss.is_some_and(f64::is_nan));
    }
}
