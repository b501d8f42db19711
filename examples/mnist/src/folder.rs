//! An output folder: whose it is, who uses it, and its files. Each is written under another name
//! first and then renamed, so that a reader, or a run that dies in between, never meets half a file.
//!
//! A run in progress lives in `checkpoint/`, with its settings and epochs; the results beside that
//! folder are those of the last run that finished, and are replaced when this one does.

use std::fs::{self, File, TryLockError};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use burn::module::Module;
use burn::store::ModuleRecord;
use burn::tensor::Device;
use burn_store::{ModuleSnapshot, SafetensorsStore};
use serde::{Serialize, de::DeserializeOwned};

use crate::RUN;
use crate::checkpoint::epoch_of;
use crate::config::{FORMAT, PROGRAM, RunConfig};
use crate::model::Classifier;

/// Where `train` writes and `eval` and `predict` look unless told otherwise.
pub const DEFAULT_OUT: &str = "artifacts/mnist";

/// Settings of the run.
pub const CONFIG: &str = "config.json";
/// One line per epoch.
pub const METRICS: &str = "metrics.csv";
/// Results of the run. Written last: where this file is, all others are.
pub const SUMMARY: &str = "summary.json";
/// The trained model in Burn's own format.
pub const MODEL: &str = "model.bpk";
/// The trained model for other programs.
pub const SAFETENSORS: &str = "model.safetensors";
/// Picture of loss and accuracy by epoch.
pub const CURVES: &str = "learning-curves.png";
/// Picture of what is taken for what.
pub const CONFUSION: &str = "confusion-matrix.png";
/// Picture of what the command `health` finds.
pub const HEALTH: &str = "health.png";

/// Held by the process that writes into the folder. It stays behind: removing it would race.
const LOCK: &str = ".lock";
/// Begin and end of the names of files that are not finished, here and in Burn.
const UNFINISHED: (&str, &str) = (".mnist-", ".tmp");

/// An output folder. It need not exist yet.
#[derive(Clone, Debug)]
pub struct Folder(PathBuf);

impl Folder {
    /// The folder at `path`.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// A result.
    pub fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// A file of the run in progress. Burn makes the folder of this name.
    pub fn state(&self, name: &str) -> PathBuf {
        self.0.join("checkpoint").join(name)
    }

    /// Refuses a folder that holds files of something else. Changes nothing.
    pub fn check_ours(&self) -> Result<()> {
        let ours = is_of(PROGRAM, &self.file(CONFIG)) || is_of(PROGRAM, &self.state(CONFIG));
        ensure!(
            ours || self.is_empty()?,
            "{} is not empty and holds no run of this program (no {CONFIG} of its own): choose \
             another folder with --out",
            self.0.display()
        );
        Ok(())
    }

    /// Whether there is nothing, or what is left if a run is killed before it writes its first file.
    pub fn is_empty(&self) -> Result<bool> {
        let nothing = |name: &String| name == LOCK || name == "checkpoint";
        Ok(names(&self.0)?.iter().all(nothing) && names_or_none(&self.state("")).is_empty())
    }

    /// Makes the folder and takes it for this process, until the lock is dropped.
    pub fn lock(&self) -> Result<File> {
        let folder = self.0.display();
        fs::create_dir_all(&self.0)
            .with_context(|| format!("cannot create the folder {folder}"))?;
        let path = self.file(LOCK);
        let lock = File::options()
            .create(true)
            .write(true)
            .truncate(false)
            .open(&path);
        let lock = lock.with_context(|| format!("cannot write {}", path.display()))?;
        match lock.try_lock() {
            Ok(()) => Ok(lock),
            Err(TryLockError::WouldBlock) => bail!(
                "another process is writing to {folder}: wait for it, or choose another folder with --out"
            ),
            // A file system without locks.
            Err(TryLockError::Error(_)) => Ok(lock),
        }
    }

    /// Removes the run in progress, by the names that this program gives, and what was never finished.
    pub fn clear_state(&self) -> Result<()> {
        self.clear_unfinished()?;
        let ours = |name: &String| {
            let stem = name.strip_suffix(".bpk");
            stem.and_then(epoch_of).is_some() || name == CONFIG || name == METRICS
        };
        let mut names = names_or_none(&self.state("")).into_iter().filter(ours);
        names.try_for_each(|name| remove(&self.state(&name)))
    }

    /// Removes files that a killed process left half written.
    pub fn clear_unfinished(&self) -> Result<()> {
        // Burn's are `model-7.bpk.PID-NUMBER.tmp`.
        let burns = |name: &str| {
            let (stem, _) = name.split_once(".bpk.").unwrap_or_default();
            stem == "model" || epoch_of(stem).is_some()
        };
        let (begin, end) = UNFINISHED;
        for folder in [self.file(""), self.state("")] {
            for name in names_or_none(&folder) {
                if name.ends_with(end) && (burns(&name) || name.starts_with(begin)) {
                    remove(&folder.join(&name))?;
                }
            }
        }
        Ok(())
    }

    /// Settings of a finished run.
    pub fn load_config(&self) -> Result<RunConfig> {
        let folder = self.0.display();
        for name in [CONFIG, MODEL, SUMMARY] {
            if !self.file(name).is_file() {
                let how = if is_of(PROGRAM, &self.state(CONFIG)) {
                    format!("Its training is not finished: `{RUN} train --resume --out {folder}`")
                } else {
                    format!(
                        "Train one with `{RUN} train --out {folder}`, or name the folder of \
                         another run with --model"
                    )
                };
                bail!("no trained model in {folder}: {name} is missing. {how}");
            }
        }
        load_config(&self.file(CONFIG))
    }

    /// Writes the model in both formats.
    pub fn save_model(&self, model: &Classifier) -> Result<()> {
        let path = self.file(MODEL);
        let saved = model.clone().save_file(&path);
        saved.with_context(|| format!("cannot write {}", path.display()))?;
        // Through memory: a file made by the store itself is readable by its owner only. Other
        // programs need not know that the layer is one variant of an enum here.
        let mut store = SafetensorsStore::from_bytes(None).skip_enum_variants(true);
        model.save_into(&mut store)?;
        write_atomically(&self.file(SAFETENSORS), &store.get_bytes()?)
    }
}

/// Reads and checks a `config.json`.
pub fn load_config(path: &Path) -> Result<RunConfig> {
    let read = || {
        let text = fs::read_to_string(path)?;
        let value: serde_json::Value = serde_json::from_str(&text)?;
        // Before the fields: those of another version may differ.
        let (program, format) = (&value["program"], &value["format"]);
        ensure!(program == PROGRAM, "it belongs to another program");
        ensure!(format == FORMAT, "format {format}, expected {FORMAT}");
        let config: RunConfig = serde_json::from_value(value)?;
        config.check()?;
        anyhow::Ok(config)
    };
    read().with_context(|| {
        format!(
            "{} is damaged or from another version of this program",
            path.display()
        )
    })
}

/// Reads a model from a burnpack file: `model.bpk` or that of a checkpoint.
pub fn load_record(path: &Path, config: &RunConfig, device: &Device) -> Result<Classifier> {
    let name = path.display();
    let record = ModuleRecord::load(path).with_context(|| format!("{name} is damaged"))?;
    let model = config.model.init(config.training.seed, device);
    let loaded = model.try_load_record(record);
    // The reason lists tensors in the notation of Rust, which tells nobody more.
    loaded.ok().with_context(|| {
        format!(
            "{name} does not fit {CONFIG}, which describes {}: one of them is damaged or edited",
            config.model.describe()
        )
    })
}

/// Reads a JSON file of this program.
pub fn load_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let read = || anyhow::Ok(serde_json::from_slice(&fs::read(path)?)?);
    read().with_context(|| format!("{} is damaged", path.display()))
}

/// Writes a JSON file.
pub fn save_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let mut bytes = serde_json::to_vec_pretty(value)?;
    bytes.push(b'\n');
    write_atomically(path, &bytes)
}

/// Writes `bytes` to a temporary file in the same folder, then renames it to `path`.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    let write = || -> std::io::Result<()> {
        let mut builder = tempfile::Builder::new();
        builder.prefix(UNFINISHED.0).suffix(UNFINISHED.1);
        // Temporary files are private by default; results follow the user's umask like any file.
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
        let folder = path
            .parent()
            .filter(|folder| !folder.as_os_str().is_empty());
        let mut file = builder.tempfile_in(folder.unwrap_or(Path::new(".")))?;
        file.write_all(bytes)?;
        file.persist(path)?;
        Ok(())
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

/// Removes a file, which need not exist.
pub fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove the old {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Names of the files in a folder; none if there is no such folder.
fn names(folder: &Path) -> Result<Vec<String>> {
    let name = |entry: std::io::Result<fs::DirEntry>| {
        Ok(entry?.file_name().to_string_lossy().into_owned())
    };
    let listed = match fs::read_dir(folder) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.and_then(|entries| entries.map(name).collect()),
    };
    listed.with_context(|| format!("cannot use the folder {}", folder.display()))
}

/// Names of the files in a folder as far as it can be read.
pub fn names_or_none(folder: &Path) -> Vec<String> {
    names(folder).unwrap_or_default()
}

/// Whether this is a JSON file that `program` wrote, in any version.
pub fn is_of(program: &str, path: &Path) -> bool {
    let text = fs::read_to_string(path).unwrap_or_default();
    let value: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
    value["program"] == program
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writing_replaces_and_leaves_nothing_else() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let path = folder.path().join("file");
        for text in ["first", "second"] {
            write_atomically(&path, text.as_bytes()).expect("written");
            assert_eq!(fs::read_to_string(&path).expect("read"), text);
        }
        assert_eq!(names_or_none(folder.path()), ["file"]);
        let error =
            write_atomically(&folder.path().join("missing/file"), b"").expect_err("no folder");
        assert!(error.to_string().contains("missing"), "{error}");
    }

    #[test]
    fn only_known_files_are_removed() {
        let temporary = tempfile::tempdir().expect("temporary folder");
        let folder = Folder::new(temporary.path());
        fs::create_dir(folder.state("")).expect("created");
        let ours = [
            "model-3.bpk",
            "optim-3.bpk",
            CONFIG,
            METRICS,
            "optim-4.bpk.77-18.tmp",
            ".mnist-aB.tmp",
        ];
        let others = [
            "step-1000.pt",
            "model-x.bpk",
            "notes.tmp",
            "model-3.bpk.backup",
        ];
        for name in ours.iter().chain(&others) {
            fs::write(folder.state(name), "").expect("written");
        }
        folder.clear_state().expect("cleared");
        let mut left = names_or_none(&folder.state(""));
        left.sort();
        assert_eq!(
            left,
            [
                "model-3.bpk.backup",
                "model-x.bpk",
                "notes.tmp",
                "step-1000.pt"
            ]
        );
    }

    #[test]
    fn one_process_at_a_time() {
        let temporary = tempfile::tempdir().expect("temporary folder");
        let folder = Folder::new(temporary.path().join("run"));
        let lock = folder.lock().expect("free");
        let error = folder.lock().expect_err("taken").to_string();
        assert!(error.contains("another process is writing to"), "{error}");
        drop(lock);
        folder.lock().expect("free again");
        folder.check_ours().expect("nothing but the lock");
    }
}
