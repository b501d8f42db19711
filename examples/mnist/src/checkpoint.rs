//! The checkpoints in a folder, and which one a run resumes from.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use burn::optim::{OptimizerRecord, lr_scheduler::LrSchedulerRecord};
use burn::tensor::Device;

use crate::config::RunConfig;
use crate::folder::{Folder, load_record, names_or_none};
use crate::note;

/// The three files of Burn's default checkpointers.
const PARTS: [&str; 3] = ["model", "optim", "scheduler"];

/// The epoch of a checkpoint file, from its name without `.bpk`.
pub fn epoch_of(stem: &str) -> Option<usize> {
    let (part, epoch) = stem.split_once('-')?;
    epoch.parse().ok().filter(|_| PARTS.contains(&part))
}

/// Epochs of which all three files are there.
pub fn complete(folder: &Folder) -> Vec<usize> {
    let mut parts: BTreeMap<usize, usize> = BTreeMap::new();
    let names = names_or_none(&folder.state(""));
    let stems = names.iter().filter_map(|name| name.strip_suffix(".bpk"));
    for epoch in stems.filter_map(epoch_of) {
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
}
