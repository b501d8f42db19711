//! What Burn's training tells of its epochs, and is told after each: which checkpoints are kept, and
//! whether to stop.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use burn::train::EarlyStoppingStrategy;
use burn::train::checkpoint::{CheckpointingAction, CheckpointingStrategy};
use burn::train::logger::MetricLogger;
use burn::train::metric::store::{Aggregate, EpochSummary, EventStoreClient, MetricsUpdate, Split};
use burn::train::metric::{MetricDefinition, MetricId, NumericEntry};
use indicatif::ProgressBar;

use crate::checkpoint;
use crate::config::TrainingConfig;
use crate::folder::{Folder, METRICS};
use crate::history::{EpochRow, History};
use crate::metrics::{ACCURACY, LOSS};
use crate::note;

/// The final values of each epoch, for Burn's event store. Burn's file logger writes a line per metric
/// and batch instead, ten thousand system calls a second at the speed of this network.
#[derive(Default)]
pub struct FinalValues(HashMap<(MetricId, usize, Split), f64>);

impl MetricLogger for FinalValues {
    fn log(&mut self, update: MetricsUpdate, epoch: usize, split: &Split) {
        for metric in update.entries_numeric {
            if let Some(NumericEntry::Final(value)) = metric.numeric_entry {
                let key = (metric.entry.metric_id, epoch, split.clone());
                self.0.insert(key, value);
            }
        }
    }

    fn read_numeric(
        &mut self,
        name: &str,
        epoch: usize,
        split: &Split,
    ) -> Result<Vec<NumericEntry>, String> {
        // Burn takes the name of a metric as its id.
        let metric = MetricId::new(Arc::new(name.to_string()));
        let value = self.0.get(&(metric, epoch, split.clone()));
        Ok(value
            .into_iter()
            .copied()
            .map(NumericEntry::Final)
            .collect())
    }

    fn log_metric_definition(&mut self, _: MetricDefinition) {}

    fn log_epoch_summary(&mut self, _: EpochSummary) {}
}

/// Completes the history after every whole epoch.
///
/// Unlike Burn's own strategies it keeps no state beside the history and the folder. So a resumed run
/// counts the epochs of all its sessions, and no checkpoint of an earlier one is forgotten there.
#[derive(Clone)]
pub struct Recorder {
    pub training: TrainingConfig,
    pub history: Arc<Mutex<History>>,
    /// Seconds of the last epoch.
    pub clock: Arc<dyn Fn() -> f64 + Send + Sync>,
    /// Images trained on in each epoch.
    pub train_images: usize,
    /// Whether there are validation images.
    pub validates: bool,
    /// Where the history is kept beside the checkpoints; none for runs that are only measured.
    pub folder: Option<Folder>,
    /// The bar above which epochs are printed, if they are.
    pub lines: Option<ProgressBar>,
}

impl Recorder {
    pub fn lock(&self) -> MutexGuard<'_, History> {
        self.history
            .lock()
            .unwrap_or_else(|poison| poison.into_inner())
    }

    /// The history with all of `epoch` in it. The store answers only after it has heard of the whole epoch.
    fn after(&self, epoch: usize, store: &EventStoreClient) -> MutexGuard<'_, History> {
        let mut history = self.lock();
        if history.rows.len() < epoch {
            let value = |name, split| {
                let value = store.find_metric(name, epoch, Aggregate::Mean, &split);
                value.unwrap_or(f64::NAN)
            };
            let valid = |name| self.validates.then(|| value(name, Split::Valid));
            let seconds = (self.clock)();
            let row = EpochRow {
                epoch,
                train_loss: value(LOSS, Split::Train),
                train_accuracy: value(ACCURACY, Split::Train) / 100.0,
                valid_loss: valid(LOSS),
                valid_accuracy: valid(ACCURACY).map(|percent| percent / 100.0),
                train_seconds: seconds,
                train_images_per_second: self.train_images as f64 / seconds,
            };
            if let Some(bar) = &self.lines {
                bar.suspend(|| note(&row.line(self.training.epochs)));
            }
            history.rows.push(row);
        }
        history
    }
}

impl EarlyStoppingStrategy for Recorder {
    fn should_stop(&mut self, epoch: usize, store: &EventStoreClient) -> bool {
        let history = self.after(epoch, store);
        let worthless = self.folder.is_some() && history.has_diverged();
        worthless || history.is_complete(&self.training)
    }
}

/// Keeps the last two checkpoints and the one with the lowest validation loss, and with each the
/// history up to it.
impl CheckpointingStrategy for Recorder {
    fn checkpointing(
        &mut self,
        epoch: usize,
        store: &EventStoreClient,
    ) -> Vec<CheckpointingAction> {
        let history = self.after(epoch, store);
        let Some(folder) = &self.folder else {
            return Vec::new();
        };
        // Not worth stopping for: the next epoch writes the whole file again, and the end reports.
        let _ = history.save(&folder.state(METRICS));
        match history.has_diverged() {
            true => Vec::new(),
            false => actions(epoch, history.best_epoch(), &checkpoint::complete(folder)),
        }
    }
}

/// Saves first: at every moment there is a complete checkpoint on disk.
fn actions(epoch: usize, best: Option<usize>, on_disk: &[usize]) -> Vec<CheckpointingAction> {
    let keep = [Some(epoch), epoch.checked_sub(1), best];
    let old = on_disk
        .iter()
        .filter(|saved| !keep.contains(&Some(**saved)));
    std::iter::once(CheckpointingAction::Save)
        .chain(old.map(|saved| CheckpointingAction::Delete(*saved)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_two_and_the_best_stay() {
        use CheckpointingAction::{Delete, Save};
        assert_eq!(actions(1, Some(1), &[]), [Save]);
        assert_eq!(actions(3, Some(3), &[1, 2]), [Save, Delete(1)]);
        assert_eq!(actions(9, Some(4), &[4, 7, 8]), [Save, Delete(7)]);
        assert_eq!(
            actions(9, Some(8), &[4, 7, 8]),
            [Save, Delete(4), Delete(7)]
        );
    }
}
