//! Which checkpoints are kept, and which one a run resumes from.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use burn::train::checkpoint::{CheckpointingAction, CheckpointingStrategy};
use burn::train::metric::store::EventStoreClient;

use crate::artifacts::Artifacts;
use crate::history::SharedHistory;

/// The three files of Burn's default checkpointers.
const PARTS: [&str; 3] = ["model", "optim", "scheduler"];

/// Epochs of which all three files are in `folder`. Burn renames each file into place when it is
/// whole, so a file that exists is a good one.
pub fn complete(folder: &Path) -> Vec<usize> {
    let mut parts: BTreeMap<usize, usize> = BTreeMap::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let epoch = name.to_str().and_then(|name| {
            let (part, rest) = name.split_once('-')?;
            PARTS.contains(&part).then_some(())?;
            rest.strip_suffix(".bpk")?.parse().ok()
        });
        if let Some(epoch) = epoch {
            *parts.entry(epoch).or_default() += 1;
        }
    }
    let complete = parts.into_iter().filter(|(_, count)| *count == PARTS.len());
    complete.map(|(epoch, _)| epoch).collect()
}

/// The model file of the checkpoint of `epoch`.
pub fn model_path(folder: &Path, epoch: usize) -> PathBuf {
    folder.join(format!("model-{epoch}.bpk"))
}

/// Keeps the last two checkpoints and the one with the lowest validation loss.
///
/// Burn's own composition of strategies forgets, when a run is resumed, what was there before and
/// leaves those files for ever; this one looks at the folder. It also writes `metrics.csv`, since
/// it is called exactly when an epoch is complete.
pub struct KeepLastAndBest {
    artifacts: Artifacts,
    history: SharedHistory,
    completed: Arc<AtomicUsize>,
}

impl KeepLastAndBest {
    /// `completed` receives the number of the last complete epoch.
    pub fn new(artifacts: Artifacts, history: SharedHistory, completed: Arc<AtomicUsize>) -> Self {
        Self {
            artifacts,
            history,
            completed,
        }
    }
}

impl CheckpointingStrategy for KeepLastAndBest {
    fn checkpointing(&mut self, epoch: usize, _: &EventStoreClient) -> Vec<CheckpointingAction> {
        let history = self.history.lock();
        // Not worth stopping for: the next epoch writes the whole file again, and the end reports.
        let _ = history.save(&self.artifacts.path(Artifacts::METRICS));
        self.completed.store(epoch, Ordering::Relaxed);
        let folder = self.artifacts.path(Artifacts::CHECKPOINTS);
        actions(epoch, history.best_epoch(), &complete(&folder))
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
    fn incomplete_checkpoints_do_not_count() {
        let folder = tempfile::tempdir().expect("temporary folder");
        for name in [
            "model-1.bpk",
            "optim-1.bpk",
            "scheduler-1.bpk",
            "model-2.bpk",
            "optim-2.bpk",
            "notes-3.txt",
            "model-x.bpk",
        ] {
            fs::write(folder.path().join(name), b"").expect("written");
        }
        assert_eq!(complete(folder.path()), [1]);
        assert!(complete(&folder.path().join("missing")).is_empty());
    }

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
