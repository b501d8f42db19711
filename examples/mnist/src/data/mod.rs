//! From files to batches: read or embed, scale, split, batch.

mod batches;
mod download;
mod embedded;
pub mod idx;
mod resize;
mod samples;

use std::io;
use std::path::{Path, PathBuf};

pub use batches::{Batch, BatchLoader, EpochClock, EpochTime};
pub use resize::{area_average, fit_square};
pub use samples::{Samples, scale, split};

/// Images are squares of this many pixels a side, as in all relatives of MNIST.
pub const SIDE: usize = 28;

/// Number of classes: the article's last layer has ten outputs.
pub const CLASSES: usize = 10;

/// The classes of Fashion-MNIST, in the order of their labels.
pub const FASHION: [&str; CLASSES] = [
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
];

/// The classes of MNIST.
pub const DIGITS: [&str; CLASSES] = ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"];

/// Images with their labels, as they come out of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Images {
    /// `SIDE * SIDE` bytes for each image, row by row, 0 is background.
    pub pixels: Vec<u8>,
    /// One class for each image, below [`CLASSES`].
    pub labels: Vec<u8>,
}

impl Images {
    /// Number of images.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether there is no image.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }
}

/// A data set: training and test images and what their labels mean.
#[derive(Clone, Debug)]
pub struct Dataset {
    /// Images to train and validate with.
    pub train: Images,
    /// Images for the final test, never seen in training.
    pub test: Images,
    /// Name of each class.
    pub class_names: Vec<String>,
}

/// Where a data set comes from: the value of `--data`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// The subset of Fashion-MNIST inside the program.
    Embedded,
    /// MNIST, downloaded once by Burn's data set crate.
    Mnist,
    /// A folder with the four IDX files.
    Folder(PathBuf),
}

impl From<&str> for Source {
    fn from(text: &str) -> Self {
        match text {
            "embedded" => Self::Embedded,
            "mnist" => Self::Mnist,
            folder => Self::Folder(PathBuf::from(folder)),
        }
    }
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Embedded => f.write_str("embedded"),
            Self::Mnist => f.write_str("mnist"),
            Self::Folder(path) => write!(f, "{}", path.display()),
        }
    }
}

impl Source {
    /// Reads the whole data set, or nothing.
    pub fn load(&self) -> Result<Dataset, DataError> {
        match self {
            Self::Embedded => embedded::load(),
            Self::Mnist => download::mnist(),
            Self::Folder(folder) => load_folder(folder),
        }
    }

    /// The same source, independent of the current folder, so that a later command finds it.
    pub fn absolute(self) -> Result<Self, DataError> {
        match self {
            Self::Folder(folder) => match folder.canonicalize() {
                Ok(folder) => Ok(Self::Folder(folder)),
                Err(_) => Err(DataError::Folder { folder }),
            },
            other => Ok(other),
        }
    }
}

fn load_folder(folder: &Path) -> Result<Dataset, DataError> {
    if !folder.is_dir() {
        return Err(DataError::Folder {
            folder: folder.to_path_buf(),
        });
    }
    // All four are looked for first: reading the big one only to miss a small one wastes time.
    let paths = [
        idx::find(folder, "train", "images-idx3-ubyte")?,
        idx::find(folder, "train", "labels-idx1-ubyte")?,
        idx::find(folder, "t10k", "images-idx3-ubyte")?,
        idx::find(folder, "t10k", "labels-idx1-ubyte")?,
    ];
    Ok(Dataset {
        train: idx::read_pair(&paths[0], &paths[1])?,
        test: idx::read_pair(&paths[2], &paths[3])?,
        class_names: names_for(folder),
    })
}

/// IDX files carry no class names; a folder named after Fashion-MNIST gets its names.
fn names_for(folder: &Path) -> Vec<String> {
    let fashion = folder.to_string_lossy().to_lowercase().contains("fashion");
    let names = if fashion { FASHION } else { DIGITS };
    names.map(String::from).to_vec()
}

/// What is wrong with a data set, by file and byte.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    /// The folder of `--data` is not there.
    #[error(
        "{} is not a folder. --data takes a folder with the four IDX files, `mnist` (downloaded) \
         or `embedded` (the default)",
        folder.display()
    )]
    Folder {
        /// The value of `--data`.
        folder: PathBuf,
    },

    /// One of the four files is not there.
    #[error("{name} (or {name}.gz) is missing in {}", folder.display())]
    Missing {
        /// Where it was looked for.
        folder: PathBuf,
        /// Its usual name.
        name: String,
    },

    /// A file cannot be opened.
    #[error("cannot open {}: {source}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// What the system answered.
        source: io::Error,
    },

    /// Reading or unpacking failed in the middle.
    #[error("{}: cannot read on after byte {offset}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Bytes that could be read and unpacked.
        offset: u64,
        /// What the system or the unpacker answered.
        source: io::Error,
    },

    /// The file is shorter than its header says.
    #[error("{} is truncated: it ends at byte {offset}, expected at least {expected} bytes", path.display())]
    Truncated {
        /// The file.
        path: PathBuf,
        /// Where it ends.
        offset: u64,
        /// Where it should end at the earliest.
        expected: u64,
    },

    /// The file is longer than its header says.
    #[error("{}: byte {offset} follows the last of the {count} items that the header announces", path.display())]
    Trailing {
        /// The file.
        path: PathBuf,
        /// The first byte too many.
        offset: u64,
        /// Items announced.
        count: usize,
    },

    /// The first four bytes are not those of this kind of file.
    #[error("{}: wrong magic number at byte 0: expected {expected:#010x}, found {found:#010x}", path.display())]
    Magic {
        /// The file.
        path: PathBuf,
        /// The number of this kind of file.
        expected: u32,
        /// What the file starts with.
        found: u32,
    },

    /// Images of another size.
    #[error("{}: wrong image size at byte {offset}: expected {SIDE}x{SIDE}, found {rows}x{columns}", path.display())]
    ImageSize {
        /// The file.
        path: PathBuf,
        /// Where the size stands.
        offset: u64,
        /// Rows found.
        rows: u32,
        /// Columns found.
        columns: u32,
    },

    /// Images and labels differ in number.
    #[error(
        "the counts at byte 4 disagree: {} holds {images} images, {} holds {labels} labels",
        images_path.display(), labels_path.display()
    )]
    Counts {
        /// The image file.
        images_path: PathBuf,
        /// Images in it.
        images: usize,
        /// The label file.
        labels_path: PathBuf,
        /// Labels in it.
        labels: usize,
    },

    /// A label names no class.
    #[error("{}: label {label} at byte {offset} is out of range, expected 0 to {}", path.display(), CLASSES - 1)]
    Label {
        /// The file.
        path: PathBuf,
        /// Where the label stands.
        offset: u64,
        /// The label.
        label: u8,
    },

    /// A file without content.
    #[error("{}: the header announces no items at byte {offset}", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
        /// Where the count stands.
        offset: u64,
    },

    /// The download of MNIST failed.
    #[error(
        "cannot download MNIST ({reason}). Is this machine offline? `--data embedded` needs no \
         network, and `--data DIR` reads the four IDX files from a folder. A damaged file in the \
         cache folder burn-dataset/mnist has to be deleted by hand"
    )]
    Download {
        /// What Burn's data set crate said.
        reason: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn source_names_round_trip() {
        for (text, source) in [
            ("embedded", Source::Embedded),
            ("mnist", Source::Mnist),
            ("./mnist", Source::Folder("./mnist".into())),
        ] {
            assert_eq!(Source::from(text), source.clone());
            assert_eq!(source.to_string(), text);
        }
    }

    #[test]
    fn a_missing_folder_is_named() {
        let text = Source::Folder("no/such/folder".into())
            .load()
            .expect_err("missing")
            .to_string();
        assert!(
            text.contains("no/such/folder") && text.contains("four IDX files"),
            "{text}"
        );
    }

    #[test]
    fn class_names_follow_the_folder() {
        assert_eq!(names_for(Path::new("/data/Fashion-MNIST"))[9], "Ankle boot");
        assert_eq!(names_for(Path::new("/data/mnist"))[9], "9");
    }
}
