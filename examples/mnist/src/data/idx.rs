//! Reader of IDX files, plain or gzip: the format of MNIST, Fashion-MNIST, KMNIST and others.
//!
//! ```text
//! images: u32 magic 0x00000803, u32 count, u32 rows, u32 columns, then count*rows*columns bytes
//! labels: u32 magic 0x00000801, u32 count,                        then count bytes
//! ```
//! All numbers are big endian. Offsets in errors count from the start of the unpacked file.

use std::fs::File;
use std::io::{self, BufReader, Cursor, Read};
use std::path::{Path, PathBuf};

use flate2::read::GzDecoder;

use super::{CLASSES, DataError, Images, SIDE};

const IMAGES_MAGIC: u32 = 0x0000_0803;
const LABELS_MAGIC: u32 = 0x0000_0801;
const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];

/// Reads an image file and its label file; both are checked whole before anything is returned.
pub fn read_pair(images: &Path, labels: &Path) -> Result<Images, DataError> {
    let open = |path: &Path| {
        File::open(path)
            .map(BufReader::new)
            .map_err(|source| DataError::Open {
                path: path.to_path_buf(),
                source,
            })
    };
    parse_pair(images, open(images)?, labels, open(labels)?)
}

/// Like [`read_pair`], from memory; the names only serve error messages.
pub fn parse_pair<I: Read, L: Read>(
    images_path: &Path,
    images: I,
    labels_path: &Path,
    labels: L,
) -> Result<Images, DataError> {
    let pixels = parse_images(images_path, images)?;
    let labels = parse_labels(labels_path, labels)?;
    let count = pixels.len() / (SIDE * SIDE);
    if count != labels.len() {
        return Err(DataError::Counts {
            images_path: images_path.to_path_buf(),
            images: count,
            labels_path: labels_path.to_path_buf(),
            labels: labels.len(),
        });
    }
    Ok(Images { pixels, labels })
}

fn parse_images(path: &Path, input: impl Read) -> Result<Vec<u8>, DataError> {
    let mut file = Unpacked::new(path, input)?;
    file.magic(IMAGES_MAGIC)?;
    let count = file.u32()? as usize;
    let (rows, columns) = (file.u32()?, file.u32()?);
    if (rows as usize, columns as usize) != (SIDE, SIDE) {
        return Err(DataError::ImageSize {
            path: path.to_path_buf(),
            offset: 8,
            rows,
            columns,
        });
    }
    file.items(count, SIDE * SIDE)
}

fn parse_labels(path: &Path, input: impl Read) -> Result<Vec<u8>, DataError> {
    let mut file = Unpacked::new(path, input)?;
    file.magic(LABELS_MAGIC)?;
    let count = file.u32()? as usize;
    let start = file.offset;
    let labels = file.items(count, 1)?;
    match labels
        .iter()
        .position(|label| usize::from(*label) >= CLASSES)
    {
        Some(at) => Err(DataError::Label {
            path: path.to_path_buf(),
            offset: start + at as u64,
            label: labels[at],
        }),
        None => Ok(labels),
    }
}

/// The bytes of a file after unpacking, with the position for error messages.
struct Unpacked<'a> {
    path: &'a Path,
    input: Box<dyn Read + 'a>,
    offset: u64,
}

impl<'a> Unpacked<'a> {
    /// Tells gzip by its first two bytes, not by the name: renamed files are common.
    fn new(path: &'a Path, mut input: impl Read + 'a) -> Result<Self, DataError> {
        let mut head = Vec::with_capacity(GZIP_MAGIC.len());
        (&mut input)
            .take(GZIP_MAGIC.len() as u64)
            .read_to_end(&mut head)
            .map_err(|source| DataError::Read {
                path: path.to_path_buf(),
                offset: 0,
                source,
            })?;
        let packed = head == GZIP_MAGIC;
        let whole = Cursor::new(head).chain(input);
        let input: Box<dyn Read + 'a> = match packed {
            true => Box::new(BufReader::new(GzDecoder::new(whole))),
            false => Box::new(whole),
        };
        Ok(Self {
            path,
            input,
            offset: 0,
        })
    }

    /// Reads exactly `length` bytes. Memory grows with what the file really holds, so a false
    /// count in a header cannot ask for gigabytes.
    fn bytes(&mut self, length: u64) -> Result<Vec<u8>, DataError> {
        let mut bytes = Vec::new();
        let result = (&mut self.input).take(length).read_to_end(&mut bytes);
        let offset = self.offset + bytes.len() as u64;
        match result {
            Ok(_) if bytes.len() as u64 == length => {
                self.offset = offset;
                Ok(bytes)
            }
            // A gzip stream that stops early is a truncated file like any other.
            Ok(_) => Err(self.truncated(length, offset)),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                Err(self.truncated(length, offset))
            }
            Err(source) => Err(DataError::Read {
                path: self.path.to_path_buf(),
                offset,
                source,
            }),
        }
    }

    fn truncated(&self, length: u64, found: u64) -> DataError {
        DataError::Truncated {
            path: self.path.to_path_buf(),
            expected: self.offset + length,
            offset: found,
        }
    }

    fn u32(&mut self) -> Result<u32, DataError> {
        let bytes = self.bytes(4)?;
        Ok(u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }

    fn magic(&mut self, expected: u32) -> Result<(), DataError> {
        match self.u32()? {
            found if found == expected => Ok(()),
            found => Err(DataError::Magic {
                path: self.path.to_path_buf(),
                expected,
                found,
            }),
        }
    }

    /// The `count` items that end the file, and nothing after them.
    fn items(&mut self, count: usize, size: usize) -> Result<Vec<u8>, DataError> {
        let path = || self.path.to_path_buf();
        if count == 0 {
            return Err(DataError::Empty {
                path: path(),
                offset: 4,
            });
        }
        let items = self.bytes(count as u64 * size as u64)?;
        let end = self.offset;
        match self.bytes(1) {
            Err(DataError::Truncated { .. }) => Ok(items),
            Err(error) => Err(error),
            Ok(_) => Err(DataError::Trailing {
                path: self.path.to_path_buf(),
                offset: end,
                count,
            }),
        }
    }
}

/// The file of a data set folder under any of its usual names, plain or gzip.
pub fn find(folder: &Path, split: &str, kind: &str) -> Result<PathBuf, DataError> {
    let names = ["-", "."].into_iter().flat_map(|dot| {
        ["", ".gz"]
            .map(|end| format!("{split}-{kind}{end}").replacen("-idx", &format!("{dot}idx"), 1))
    });
    let names: Vec<String> = names.collect();
    match names
        .iter()
        .map(|name| folder.join(name))
        .find(|path| path.is_file())
    {
        Some(path) => Ok(path),
        None => Err(DataError::Missing {
            folder: folder.to_path_buf(),
            name: names[0].clone(),
        }),
    }
}

#[cfg(test)]
#[path = "idx_tests.rs"]
mod tests;
