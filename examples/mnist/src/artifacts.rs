//! The files of an output folder. Each is written under another name first and then renamed, so
//! that a reader, or a run that dies in between, never meets half a file.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use burn::module::Module;
use burn::store::ModuleRecord;
use burn::tensor::Device;
use burn_store::{ModuleSnapshot, SafetensorsStore};
use serde::Serialize;

use crate::config::{FORMAT, RunConfig};
use crate::error::{Error, Result};
use crate::model::Classifier;

/// Where `train` writes and `eval` and `predict` look unless told otherwise.
pub const DEFAULT_OUT: &str = "artifacts/mnist";

/// An output folder.
#[derive(Clone, Debug)]
pub struct Artifacts {
    folder: PathBuf,
}

impl Artifacts {
    /// Settings of the run.
    pub const CONFIG: &'static str = "config.json";
    /// One line per epoch.
    pub const METRICS: &'static str = "metrics.csv";
    /// Results of the run.
    pub const SUMMARY: &'static str = "summary.json";
    /// The trained model in Burn's own format.
    pub const MODEL: &'static str = "model.bpk";
    /// The trained model for other programs.
    pub const SAFETENSORS: &'static str = "model.safetensors";
    /// Picture of loss and accuracy by epoch.
    pub const CURVES: &'static str = "learning-curves.png";
    /// Picture of what is taken for what.
    pub const CONFUSION: &'static str = "confusion-matrix.png";
    /// Folder of the checkpoints.
    pub const CHECKPOINTS: &'static str = "checkpoint";

    /// The folder need not exist yet.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self {
            folder: folder.into(),
        }
    }

    /// The folder itself.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// A file in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Refuses a folder that holds files of something else. Changes nothing.
    pub fn check_ours(&self) -> Result<()> {
        let mut entries = match fs::read_dir(&self.folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(Error::io("use the folder", &self.folder)(error)),
        };
        match entries.next().is_none() || self.path(Self::CONFIG).is_file() {
            true => Ok(()),
            false => Err(Error::ForeignFolder {
                path: self.folder.clone(),
            }),
        }
    }

    /// Makes the folder and removes what an earlier run left there, by name: nothing of an old run
    /// may pass for a result of the new one.
    pub fn start_over(&self) -> Result<()> {
        self.check_ours()?;
        fs::create_dir_all(&self.folder).map_err(Error::io("create the folder", &self.folder))?;
        for name in [
            Self::METRICS,
            Self::SUMMARY,
            Self::MODEL,
            Self::SAFETENSORS,
            Self::CURVES,
            Self::CONFUSION,
        ] {
            let path = self.path(name);
            remove(&path, fs::remove_file(&path))?;
        }
        let checkpoints = self.path(Self::CHECKPOINTS);
        remove(&checkpoints, fs::remove_dir_all(&checkpoints))
    }

    /// Reads `config.json`.
    pub fn load_config(&self) -> Result<RunConfig> {
        let path = self.path(Self::CONFIG);
        let text = fs::read_to_string(&path).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => Error::NoModel {
                path: self.folder.clone(),
                missing: Self::CONFIG,
            },
            _ => Error::io("read", &path)(error),
        })?;
        let damaged = |reason: String| Error::Damaged {
            path: path.clone(),
            reason,
        };
        let config: RunConfig =
            serde_json::from_str(&text).map_err(|error| damaged(error.to_string()))?;
        match config.format {
            FORMAT => Ok(config),
            other => Err(damaged(format!("format {other}, expected {FORMAT}"))),
        }
    }

    /// Writes a JSON file.
    pub fn save_json(&self, name: &str, value: &impl Serialize) -> Result<()> {
        let path = self.path(name);
        let mut bytes = serde_json::to_vec_pretty(value)
            .map_err(std::io::Error::other)
            .map_err(Error::io("write", &path))?;
        bytes.push(b'\n');
        write_atomically(&path, &bytes)
    }

    /// Writes the model in both formats. The stores rename into place themselves.
    pub fn save_model(&self, model: &Classifier) -> Result<()> {
        let path = self.path(Self::MODEL);
        let failed = |error: &dyn std::fmt::Display| std::io::Error::other(error.to_string());
        model
            .clone()
            .save_file(&path)
            .map_err(|error| Error::io("write", &path)(failed(&error)))?;
        let path = self.path(Self::SAFETENSORS);
        // Through memory: a file made by the store itself is readable by its owner only.
        let mut store = SafetensorsStore::from_bytes(None);
        let bytes = model.save_into(&mut store).and_then(|()| store.get_bytes());
        let bytes = bytes.map_err(|error| Error::io("write", &path)(failed(&error)))?;
        write_atomically(&path, &bytes)
    }

    /// Reads settings and model of a finished run.
    pub fn load_model(&self, device: &Device) -> Result<(RunConfig, Classifier)> {
        let config = self.load_config()?;
        let path = self.path(Self::MODEL);
        if !path.is_file() {
            return Err(Error::NoModel {
                path: self.folder.clone(),
                missing: Self::MODEL,
            });
        }
        let model = self.load_record(&path, &config, device)?;
        Ok((config, model))
    }

    /// Reads the model from a burnpack file: `model.bpk` or that of a checkpoint.
    pub fn load_record(
        &self,
        path: &Path,
        config: &RunConfig,
        device: &Device,
    ) -> Result<Classifier> {
        let model = config.model.init(config.training.seed, device);
        let loaded = ModuleRecord::load(path).and_then(|record| model.try_load_record(record));
        loaded.map_err(|error| Error::Damaged {
            path: path.to_path_buf(),
            reason: error.to_string(),
        })
    }
}

fn remove(path: &Path, result: std::io::Result<()>) -> Result<()> {
    match result {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::io("remove the old", path)(error))
        }
        _ => Ok(()),
    }
}

/// Writes `bytes` to a temporary file in the same folder, then renames it to `path`.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let write = || -> std::io::Result<()> {
        let mut builder = tempfile::Builder::new();
        builder.prefix(".mnist-").suffix(".tmp");
        // Temporary files are private by default; results follow the user's umask like any file.
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
        let mut file = builder.tempfile_in(folder)?;
        file.write_all(bytes)?;
        file.persist(path).map_err(|error| error.error)?;
        Ok(())
    };
    write().map_err(Error::io("write", path))
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
        assert_eq!(fs::read_dir(folder.path()).expect("listed").count(), 1);
    }

    #[test]
    fn a_folder_that_cannot_be_written_is_named() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let path = folder.path().join("missing").join("file");
        let text = write_atomically(&path, b"")
            .expect_err("no folder")
            .to_string();
        assert!(text.contains("missing"), "{text}");
    }

    #[test]
    fn foreign_folders_are_left_alone() {
        let folder = tempfile::tempdir().expect("temporary folder");
        fs::write(folder.path().join("thesis.tex"), "text").expect("written");
        let artifacts = Artifacts::new(folder.path());
        assert!(matches!(
            artifacts.start_over(),
            Err(Error::ForeignFolder { .. })
        ));
        fs::write(artifacts.path(Artifacts::CONFIG), "{}").expect("written");
        fs::write(artifacts.path(Artifacts::SUMMARY), "{}").expect("written");
        artifacts.start_over().expect("our own folder");
        assert!(!artifacts.path(Artifacts::SUMMARY).exists());
        assert!(folder.path().join("thesis.tex").exists());
    }

    #[test]
    fn a_folder_without_a_model_says_how_to_get_one() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let text = Artifacts::new(folder.path())
            .load_config()
            .expect_err("empty")
            .to_string();
        assert!(
            text.contains("config.json") && text.contains("mnist train"),
            "{text}"
        );
    }
}
