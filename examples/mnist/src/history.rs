//! Loss and accuracy of every epoch: the rows of `metrics.csv`, and the lines that are printed.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::config::TrainingConfig;
use crate::folder::write_atomically;

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

    /// Whether nothing is left to train: all epochs are there, or the validation loss has not improved for
    /// as many epochs as early stopping waits.
    pub fn is_complete(&self, training: &TrainingConfig) -> bool {
        let done = self.rows.len();
        let since_best = done - self.best_epoch().unwrap_or(done);
        let patience = training.early_stopping;
        done >= training.epochs || patience.is_some_and(|epochs| since_best >= epochs)
    }

    /// Whether the last loss is no number: such a network is not worth keeping.
    pub fn has_diverged(&self) -> bool {
        self.rows.last().is_some_and(|row| !row.is_finite())
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

    #[test]
    fn patience_counts_from_the_best_epoch() {
        let history = history(&[Some(0.5), Some(0.2), Some(0.3), Some(0.4)]);
        let complete = |epochs, early_stopping| {
            history.is_complete(&TrainingConfig {
                epochs,
                early_stopping,
                ..TrainingConfig::default()
            })
        };
        assert!(complete(9, Some(2)) && !complete(9, Some(3)));
        assert!(complete(4, None) && !complete(5, None));
        let patient = TrainingConfig {
            early_stopping: Some(1),
            ..TrainingConfig::default()
        };
        assert!(!History::default().is_complete(&patient));
    }
}
