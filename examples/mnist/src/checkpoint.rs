//! Which checkpoints are kept, and which one a run resumes from.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result, bail};
use burn::optim::{OptimizerRecord, lr_scheduler::LrSchedulerRecord};
use burn::tensor::Device;
use burn::train::Interrupter;
use burn::train::checkpoint::{CheckpointingAction, CheckpointingStrategy};
use burn::train::metric::store::EventStoreClient;

use crate::config::RunConfig;
use crate::folder::{Folder, METRICS, load_record, names_or_none};
use crate::history::SharedHistory;
use crate::note;

/// The three files of Burn's default checkpointers.
const PARTS: [&str; 3] = ["model", "optim", "scheduler"];

/// The epoch of a checkpoint file, from its name.
pub fn epoch_of(name: &str) -> Option<usize> {
    let (part, rest) = name.split_once('-')?;
    PARTS.contains(&part).then_some(())?;
    rest.strip_suffix(".bpk")?.parse().ok()
}

/// Epochs of which all three files are there.
fn complete(folder: &Folder) -> Vec<usize> {
    let mut parts: BTreeMap<usize, usize> = BTreeMap::new();
    for epoch in names_or_none(&folder.state(""))
        .iter()
        .filter_map(|name| epoch_of(name))
    {
        *parts.entry(epoch).or_default() += 1;
    }
    let complete = parts.into_iter().filter(|(_, count)| *count == PARTS.len());
    complete.map(|(epoch, _)| epoch).collect()
}

/// The model file of the checkpoint of `epoch`.
pub fn model_path(folder: &Folder, epoch: usize) -> PathBuf {
    folder.state(&format!("model-{epoch}.bpk"))
}

/// The last checkpoint, of those up to `epochs`, that can be read. Says which ones cannot.
pub fn last_good(
    folder: &Folder,
    epochs: usize,
    config: &RunConfig,
    device: &Device,
) -> Result<usize> {
    let readable = |epoch: usize| {
        let path = |part: &str| folder.state(&format!("{part}-{epoch}.bpk"));
        load_record(&model_path(folder, epoch), config, device)?;
        OptimizerRecord::load(path(PARTS[1])).with_context(|| damaged(path(PARTS[1])))?;
        LrSchedulerRecord::load(path(PARTS[2])).with_context(|| damaged(path(PARTS[2])))?;
        anyhow::Ok(())
    };
    let mut failure = None;
    for epoch in complete(folder)
        .into_iter()
        .rev()
        .filter(|epoch| *epoch <= epochs)
    {
        match readable(epoch) {
            Ok(()) => {
                if let Some(error) = failure {
                    note(&format!("note: {error:#}; going back to epoch {epoch}"));
                }
                return Ok(epoch);
            }
            // Of several the newest is the one to tell about.
            Err(error) => failure = failure.or(Some(error)),
        }
    }
    match failure {
        Some(error) => Err(error.context("no checkpoint can be read")),
        None => bail!("there is no complete checkpoint"),
    }
}

fn damaged(path: PathBuf) -> String {
    format!("{} is damaged", path.display())
}

/// Keeps the last two checkpoints and the one with the lowest validation loss, and with each the
/// history up to it.
///
/// Burn's own composition of strategies forgets, when a run is resumed, what was there before and
/// leaves those files for ever; this one looks at the folder.
pub struct KeepLastAndBest {
    pub folder: Folder,
    pub history: SharedHistory,
    /// Receives the number of the last complete epoch.
    pub completed: Arc<AtomicUsize>,
    /// Stopped where a loss is no number: such a network is not worth keeping.
    pub interrupter: Interrupter,
}

impl CheckpointingStrategy for KeepLastAndBest {
    fn checkpointing(
        &mut self,
        epoch: usize,
        store: &EventStoreClient,
    ) -> Vec<CheckpointingAction> {
        let history = self.history.after(epoch, store);
        // Not worth stopping for: the next epoch writes the whole file again, and the end reports.
        let _ = history.save(&self.folder.state(METRICS));
        if history.rows.last().is_some_and(|row| !row.is_finite()) {
            self.interrupter.stop(Some("the loss is not a number"));
            return Vec::new();
        }
        self.completed.store(epoch, Ordering::Relaxed);
        actions(epoch, history.best_epoch(), &complete(&self.folder))
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
        let temporary = tempfile::tempdir().expect("temporary folder");
        let folder = Folder::new(temporary.path());
        assert!(complete(&folder).is_empty());
        std::fs::create_dir(folder.state("")).expect("created");
        let names = "model-1.bpk optim-1.bpk scheduler-1.bpk model-2.bpk optim-2.bpk notes-3.txt model-x.bpk";
        for name in names.split(' ') {
            std::fs::write(folder.state(name), b"").expect("written");
        }
        assert_eq!(complete(&folder), [1]);
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
