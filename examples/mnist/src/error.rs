//! The errors of the program: each names the file or flag and says what to do.

use std::io;
use std::path::{Path, PathBuf};

use crate::data::DataError;
use crate::device::DeviceError;

/// Short form used all over the crate.
pub type Result<T> = std::result::Result<T, Error>;

/// What stopped a command.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A data set could not be read.
    #[error(transparent)]
    Data(#[from] DataError),

    /// A device does not exist or cannot be opened.
    #[error(transparent)]
    Device(#[from] DeviceError),

    /// The file system refused.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// On which file or folder.
        path: PathBuf,
        /// What the system answered.
        source: io::Error,
    },

    /// A folder that should hold a trained model does not.
    #[error(
        "no trained model in {}: {missing} is missing. Train one with `mnist train --out {}`, \
         or name the folder of another run with --model",
        path.display(), path.display()
    )]
    NoModel {
        /// The folder that was named.
        path: PathBuf,
        /// The file that is not there.
        missing: &'static str,
    },

    /// The output folder holds files of something else.
    #[error(
        "{} is not empty and holds no run of this program (no config.json): \
         choose another folder with --out",
        path.display()
    )]
    ForeignFolder {
        /// The folder that was named.
        path: PathBuf,
    },

    /// `--resume` without anything to resume.
    #[error(
        "nothing to resume in {}: {reason}. Start it without --resume",
        path.display()
    )]
    NothingToResume {
        /// The output folder.
        path: PathBuf,
        /// What is missing.
        reason: &'static str,
    },

    /// `--resume` with a setting that contradicts the saved run.
    #[error(
        "--resume continues a run with {field} {saved}, but {asked} was asked for: leave the flag \
         out, or start a new run in another folder with --out"
    )]
    ResumeMismatch {
        /// The setting.
        field: &'static str,
        /// Its value in the saved run.
        saved: String,
        /// Its value on the command line.
        asked: String,
    },

    /// `--resume` of a run that has all its epochs.
    #[error(
        "the run in {} has finished {done} epochs: ask for more than that with --epochs",
        path.display()
    )]
    AlreadyFinished {
        /// The output folder.
        path: PathBuf,
        /// Epochs that are done.
        done: usize,
    },

    /// A file of a saved run cannot be understood.
    #[error("{} is damaged or from another version of this program: {reason}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What was found.
        reason: String,
    },

    /// An image given to `predict` cannot be read.
    #[error("cannot read the image {}: {reason}. PNG and JPEG files are understood", path.display())]
    Image {
        /// The image file.
        path: PathBuf,
        /// What the decoder answered.
        reason: String,
    },

    /// A picture could not be drawn.
    #[error("cannot draw {name}: {reason}")]
    Plot {
        /// File name of the picture.
        name: &'static str,
        /// What the plotting library answered.
        reason: String,
    },

    /// Training failed inside Burn.
    #[error("training failed: {0}")]
    Training(String),

    /// The network could not be run.
    #[error("the device failed: {0}")]
    Evaluation(String),

    /// A setting that only shows to be impossible once the data is known.
    #[error("{0}")]
    Setting(String),

    /// The user stopped the run.
    #[error("{message}")]
    Interrupted {
        /// What is left and how to go on.
        message: String,
    },
}

impl Error {
    /// An [`Error::Io`] for `map_err`.
    pub fn io(action: &'static str, path: impl AsRef<Path>) -> impl FnOnce(io::Error) -> Self {
        let path = path.as_ref().to_path_buf();
        move |source| Self::Io {
            action,
            path,
            source,
        }
    }

    /// The exit status of the program: 130 after Ctrl-C as shells have it, else 1.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Interrupted { .. } => 130,
            _ => 1,
        }
    }
}
