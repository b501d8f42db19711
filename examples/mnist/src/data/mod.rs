//! From files to batches: read or embed, standardise, split, batch.

mod batches;
mod idx;
mod samples;

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, anyhow, ensure};

pub use batches::{Batch, BatchLoader};
pub use samples::{Samples, Scale};

/// Images are squares of this many pixels a side, as in all relatives of MNIST.
pub const SIDE: usize = 28;

/// Number of classes: the article's last layer has ten outputs.
pub const CLASSES: usize = 10;

/// Names of the data sets that are no folders.
pub const EMBEDDED: &str = "embedded";
const MNIST: &str = "mnist";

/// The classes of Fashion-MNIST, in the order of their labels.
const FASHION: &str = "T-shirt/top,Trouser,Pullover,Dress,Coat,Sandal,Shirt,Sneaker,Bag,Ankle boot";

/// The classes of MNIST, and of what is not known.
const DIGITS: &str = "0,1,2,3,4,5,6,7,8,9";

/// CRC-32 of the 10,000 test labels of Fashion-MNIST: IDX files carry no names, these are known.
const FASHION_TEST_LABELS: u32 = 0x242b_c73f;

/// File of a data folder that names the classes, one a line.
const CLASSES_FILE: &str = "classes.txt";

/// Images with their labels, as they come out of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Images {
    /// `SIDE * SIDE` bytes for each image, row by row, 0 is background.
    pub pixels: Vec<u8>,
    /// One class for each image, below [`CLASSES`].
    pub labels: Vec<u8>,
}

/// A data set: training and test images and what their labels mean.
#[derive(Clone, Debug)]
pub struct Dataset {
    /// The name under which a later command finds it again, whatever its current folder.
    pub name: String,
    /// Images to train and validate with.
    pub train: Images,
    /// Images for the final test, never seen in training.
    pub test: Images,
    /// Name of each class.
    pub class_names: Vec<String>,
}

impl Dataset {
    /// Reads the whole data set, or nothing. `source` is the value of `--data`: `embedded` for the subset
    /// of Fashion-MNIST inside the program, `mnist` for MNIST, downloaded once by Burn's data set crate,
    /// or a folder with the four IDX files.
    pub fn load(source: &str) -> Result<Self> {
        match source {
            EMBEDDED => embedded(),
            MNIST => download(),
            folder => load_folder(folder),
        }
    }
}

/// The [name](Dataset::name) of a data set.
pub fn name(source: &str) -> Result<String> {
    if [EMBEDDED, MNIST].contains(&source) {
        return Ok(source.to_string());
    }
    let folder = Path::new(source).canonicalize().ok();
    let folder = folder.filter(|folder| folder.is_dir()).with_context(|| {
        format!(
            "{source} is not a folder. --data takes a folder with the four IDX files, `mnist` \
             (downloaded) or `embedded` (the default)"
        )
    })?;
    // config.json is text.
    let name = folder.to_str().map(String::from);
    name.with_context(|| format!("the path of --data is not UTF-8: {}", folder.display()))
}

fn names(text: &str) -> Vec<String> {
    text.split(',').map(String::from).collect()
}

fn load_folder(source: &str) -> Result<Dataset> {
    let name = name(source)?;
    let folder = Path::new(source);
    // All are looked for first: reading the big one only to miss a small one wastes time.
    let paths = [
        idx::find(folder, "train", "images-idx3-ubyte")?,
        idx::find(folder, "train", "labels-idx1-ubyte")?,
        idx::find(folder, "t10k", "images-idx3-ubyte")?,
        idx::find(folder, "t10k", "labels-idx1-ubyte")?,
    ];
    let named = names_in(&folder.join(CLASSES_FILE))?;
    let train = idx::read_pair(&paths[0], &paths[1])?;
    let test = idx::read_pair(&paths[2], &paths[3])?;
    let class_names = named.unwrap_or_else(|| names(known_names(&test.labels)));
    Ok(Dataset {
        name,
        train,
        test,
        class_names,
    })
}

/// The ten lines of `classes.txt`, if there is one.
fn names_in(path: &Path) -> Result<Option<Vec<String>>> {
    if !path.exists() {
        return Ok(None);
    }
    let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let names: Vec<String> = lines.map(String::from).collect();
    let count = names.len();
    ensure!(
        count == CLASSES,
        "{}: {count} names, expected {CLASSES}, one a line",
        path.display()
    );
    Ok(Some(names))
}

/// What the labels mean, by the data itself and not by what somebody called the folder.
fn known_names(test_labels: &[u8]) -> &'static str {
    let mut crc = flate2::Crc::new();
    crc.update(test_labels);
    if crc.sum() == FASHION_TEST_LABELS {
        FASHION
    } else {
        DIGITS
    }
}

/// The subset of Fashion-MNIST that is part of the program, so that the default run needs nothing.
/// Fashion-MNIST is (c) 2017 Zalando SE under the MIT licence; `data/make_subset.py` made the files.
fn embedded() -> Result<Dataset> {
    macro_rules! pair {
        ($images:literal, $labels:literal) => {
            idx::parse_pair(
                Path::new(concat!("embedded ", $images)),
                include_bytes!(concat!("../../data/fashion-mnist-subset/", $images)).to_vec(),
                Path::new(concat!("embedded ", $labels)),
                include_bytes!(concat!("../../data/fashion-mnist-subset/", $labels)).to_vec(),
            )
        };
    }
    Ok(Dataset {
        name: EMBEDDED.to_string(),
        train: pair!("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz")?,
        test: pair!("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz")?,
        class_names: names(FASHION),
    })
}

/// MNIST through Burn's data set crate, which downloads the files once into the user's cache. It
/// panics where it cannot connect or finds a damaged cache file; here that is an error.
#[cfg(feature = "download")]
fn download() -> Result<Dataset> {
    use burn_dataset::Dataset as _;
    use burn_dataset::vision::MnistDataset;

    let read = |open: fn() -> MnistDataset| -> Result<Images, String> {
        let set = crate::quiet::catch(open)?;
        let mut images = Images {
            pixels: Vec::new(),
            labels: Vec::new(),
        };
        for item in set.iter() {
            let item = item.map_err(|error| error.to_string())?;
            // Burn hands out the bytes 0 to 255 as floats.
            images
                .pixels
                .extend(item.image.iter().flatten().map(|pixel| *pixel as u8));
            images.labels.push(item.label);
        }
        Ok(images)
    };
    let read = |open| {
        read(open).map_err(|reason| {
            anyhow!(
                "cannot download MNIST ({}). Is this machine offline? `--data embedded` needs no \
                 network, and `--data DIR` reads the four IDX files from a folder. A damaged file \
                 in the cache folder burn-dataset/mnist has to be deleted by hand",
                cause(&reason)
            )
        })
    };
    Ok(Dataset {
        name: MNIST.to_string(),
        train: read(MnistDataset::train)?,
        test: read(MnistDataset::test)?,
        class_names: names(DIGITS),
    })
}

#[cfg(not(feature = "download"))]
fn download() -> Result<Dataset> {
    Err(anyhow!(
        "this program was built without its downloader. Build it with `--features download`, or \
         read the four IDX files from a folder with `--data DIR`; `--data embedded` needs neither"
    ))
}

/// The innermost message of an error that was unwrapped: what is around it only names Rust types.
#[cfg(feature = "download")]
fn cause(panic: &str) -> &str {
    let inner = panic
        .rsplit_once("error: \"")
        .and_then(|(_, rest)| rest.split_once('"'));
    let first_line = panic.lines().next().unwrap_or_default();
    inner.map_or(first_line, |(message, _)| message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_embedded_subset_is_whole_and_balanced() {
        let set = embedded().expect("embedded files");
        for (images, each) in [(&set.train, 700), (&set.test, 150)] {
            for class in 0..CLASSES {
                let of = images
                    .labels
                    .iter()
                    .filter(|label| usize::from(**label) == class);
                assert_eq!(of.count(), each, "class {class}");
            }
            assert_eq!(images.pixels.len(), images.labels.len() * SIDE * SIDE);
            assert_eq!(images.pixels.iter().max(), Some(&255));
        }
        assert_eq!(set.class_names[9], "Ankle boot");
    }

    #[test]
    fn class_names_come_from_a_file_or_the_data_and_not_from_the_path() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let path = folder.path().join(CLASSES_FILE);
        assert!(names_in(&path).expect("no file").is_none());
        fs::write(&path, "a\nb\nc\nd\ne\nf\ng\nh\ni\nj\n\n").expect("written");
        assert_eq!(names_in(&path).expect("read").expect("names")[9], "j");
        fs::write(&path, "a\nb").expect("written");
        let text = names_in(&path).expect_err("two names").to_string();
        assert!(text.contains("classes.txt: 2 names"), "{text}");
        assert_eq!(known_names(&[1, 2, 3]), DIGITS);
    }

    #[test]
    #[cfg(feature = "download")]
    fn the_cause_of_a_failed_download_is_the_innermost_message() {
        let panic = r#"called `Result::unwrap()` on an `Err` value: Error { source: Dns { error: "no such name" } }"#;
        assert_eq!(cause(panic), "no such name");
        assert_eq!(
            cause("image file declares 7 items\nmore"),
            "image file declares 7 items"
        );
        assert_eq!(cause(""), "");
    }
}
