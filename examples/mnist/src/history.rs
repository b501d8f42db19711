//! Loss and accuracy of every epoch: kept in memory for Burn's strategies, on disk as `metrics.csv`.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};

use burn::train::logger::MetricLogger;
use burn::train::metric::store::{EpochSummary, MetricsUpdate, Split};
use burn::train::metric::{MetricDefinition, MetricId, NumericEntry};
use serde::{Deserialize, Serialize};

use crate::artifacts::write_atomically;
use crate::data::EpochClock;
use crate::error::{Error, Result};
use crate::metrics::{ACCURACY, LOSS};

/// One line of `metrics.csv`. Accuracies are shares from 0 to 1; a run without validation images
/// has no validation columns.
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

/// The epochs of a run.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct History {
    /// In order, without gaps.
    pub rows: Vec<EpochRow>,
}

impl History {
    /// Reads `metrics.csv`.
    pub fn load(path: &Path) -> Result<Self> {
        let damaged = |reason: String| Error::Damaged {
            path: path.to_path_buf(),
            reason,
        };
        let mut reader =
            csv::Reader::from_path(path).map_err(|error| damaged(error.to_string()))?;
        let rows: std::result::Result<Vec<EpochRow>, _> = reader.deserialize().collect();
        let rows = rows.map_err(|error| damaged(error.to_string()))?;
        match rows
            .iter()
            .enumerate()
            .find(|(at, row)| row.epoch != at + 1)
        {
            Some((at, row)) => Err(damaged(format!(
                "line {} holds epoch {}",
                at + 2,
                row.epoch
            ))),
            None => Ok(Self { rows }),
        }
    }

    /// Writes `metrics.csv`, whole or not at all.
    pub fn save(&self, path: &Path) -> Result<()> {
        let mut writer = csv::Writer::from_writer(Vec::new());
        let written = self.rows.iter().try_for_each(|row| writer.serialize(row));
        let bytes = written
            .map_err(std::io::Error::other)
            .and_then(|()| {
                writer
                    .into_inner()
                    .map_err(|error| std::io::Error::other(error.to_string()))
            })
            .map_err(Error::io("write", path))?;
        write_atomically(path, &bytes)
    }

    /// The epoch with the lowest validation loss, the last one without validation.
    pub fn best_epoch(&self) -> Option<usize> {
        let validated = self
            .rows
            .iter()
            .filter_map(|row| Some((row.valid_loss?, row.epoch)));
        validated
            .min_by(|a, b| a.0.total_cmp(&b.0))
            .map(|(_, epoch)| epoch)
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

    fn set(&mut self, epoch: usize, split: &Split, name: &str, value: f64) {
        let row = self.row(epoch);
        // The mean of no images is NaN: there is no validation.
        let valid = value.is_finite().then_some(value);
        match (split, name) {
            (Split::Train, LOSS) => row.train_loss = value,
            (Split::Train, ACCURACY) => row.train_accuracy = value / 100.0,
            (Split::Valid, LOSS) => row.valid_loss = valid,
            (Split::Valid, ACCURACY) => row.valid_accuracy = valid.map(|value| value / 100.0),
            _ => {}
        }
    }

    fn get(&self, epoch: usize, split: &Split, name: &str) -> Option<f64> {
        let row = self.rows.get(epoch.checked_sub(1)?)?;
        match (split, name) {
            (Split::Train, LOSS) => Some(row.train_loss),
            (Split::Train, ACCURACY) => Some(100.0 * row.train_accuracy),
            (Split::Valid, LOSS) => row.valid_loss,
            (Split::Valid, ACCURACY) => row.valid_accuracy.map(|value| 100.0 * value),
            _ => None,
        }
    }
}

/// The history that a training run writes and its checkpoint and early stopping strategies read.
#[derive(Clone, Debug, Default)]
pub struct SharedHistory(Arc<Mutex<History>>);

impl SharedHistory {
    /// Starts with the epochs of an earlier part of the run.
    pub fn new(history: History) -> Self {
        Self(Arc::new(Mutex::new(history)))
    }

    /// Exclusive access.
    pub fn lock(&self) -> MutexGuard<'_, History> {
        self.0.lock().unwrap_or_else(|poison| poison.into_inner())
    }
}

/// Keeps the final values of each epoch. Burn's file logger writes a line per metric and batch
/// instead, ten thousand system calls a second at the speed of this network.
pub struct HistoryLogger {
    history: SharedHistory,
    clock: EpochClock,
    first_epoch: usize,
    names: HashMap<MetricId, String>,
}

impl HistoryLogger {
    /// A logger for a run whose first timed epoch is `first_epoch`.
    pub fn new(history: SharedHistory, clock: EpochClock, first_epoch: usize) -> Self {
        Self {
            history,
            clock,
            first_epoch,
            names: HashMap::new(),
        }
    }
}

impl MetricLogger for HistoryLogger {
    fn log(&mut self, update: MetricsUpdate, epoch: usize, split: &Split) {
        for metric in update.entries_numeric {
            if let Some(NumericEntry::Final(value)) = metric.numeric_entry
                && let Some(name) = self.names.get(&metric.entry.metric_id)
            {
                self.history.lock().set(epoch, split, name, value);
            }
        }
    }

    fn read_numeric(
        &mut self,
        name: &str,
        epoch: usize,
        split: &Split,
    ) -> std::result::Result<Vec<NumericEntry>, String> {
        let value = self.history.lock().get(epoch, split, name);
        Ok(value.map(NumericEntry::Final).into_iter().collect())
    }

    fn log_metric_definition(&mut self, definition: MetricDefinition) {
        self.names
            .insert(definition.metric_id, definition.name.to_string());
    }

    fn log_epoch_summary(&mut self, summary: EpochSummary) {
        let epoch = summary.epoch_number;
        if summary.split == Split::Train
            && let Some(time) = self.clock.times().get(epoch - self.first_epoch)
        {
            let mut history = self.history.lock();
            let row = history.row(epoch);
            row.train_seconds = time.time.as_secs_f64();
            row.train_images_per_second = time.rate();
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
    fn csv_round_trips_exactly() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let path = folder.path().join("metrics.csv");
        for history in [
            history(&[Some(0.3), Some(0.1 + 0.2)]),
            history(&[None, None]),
        ] {
            history.save(&path).expect("saved");
            assert_eq!(History::load(&path).expect("loaded"), history);
        }
    }

    #[test]
    fn damaged_csv_is_an_error_with_its_name() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let path = folder.path().join("metrics.csv");
        let mut rows = history(&[Some(0.3), Some(0.2)]);
        rows.rows.remove(0);
        rows.save(&path).expect("saved");
        let text = History::load(&path).expect_err("a gap").to_string();
        assert!(
            text.contains("metrics.csv") && text.contains("epoch 2"),
            "{text}"
        );
        std::fs::write(&path, "epoch\nseven\n").expect("written");
        assert!(History::load(&path).is_err());
    }

    #[test]
    fn best_epoch_is_the_lowest_validation_loss() {
        assert_eq!(
            history(&[Some(0.5), Some(0.2), Some(0.3)]).best_epoch(),
            Some(2)
        );
        assert_eq!(history(&[None, None, None]).best_epoch(), Some(3));
        assert_eq!(History::default().best_epoch(), None);
    }

    #[test]
    fn final_values_are_kept_and_read_back() {
        let mut history = History::default();
        history.set(2, &Split::Train, ACCURACY, 50.0);
        history.set(2, &Split::Valid, LOSS, 0.25);
        history.set(2, &Split::Valid, ACCURACY, f64::NAN);
        assert_eq!(history.rows[1].train_accuracy, 0.5);
        assert_eq!(history.get(2, &Split::Valid, LOSS), Some(0.25));
        assert_eq!(history.get(2, &Split::Valid, ACCURACY), None);
        assert_eq!(history.get(3, &Split::Train, LOSS), None);
    }
}
