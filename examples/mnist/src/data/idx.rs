//! Reader of IDX files, plain or gzip: the format of MNIST, Fashion-MNIST, KMNIST and others.
//!
//! ```text
//! images: u32 magic 0x00000803, u32 count, u32 rows, u32 columns, then count*rows*columns bytes
//! labels: u32 magic 0x00000801, u32 count,                        then count bytes
//! ```
//! All numbers are big endian. Offsets in errors count from the start of the unpacked file.

use std::fs::File;
use std::io::{BufReader, Cursor, ErrorKind, Read};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail, ensure};
use flate2::read::MultiGzDecoder;

use super::{CLASSES, Images, SIDE};

const IMAGES_MAGIC: u32 = 0x0000_0803;
const LABELS_MAGIC: u32 = 0x0000_0801;
const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];

/// Reads an image file and its label file; both are checked whole before anything is returned.
pub fn read_pair(images: &Path, labels: &Path) -> Result<Images> {
    let open = |path: &Path| {
        let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
        anyhow::Ok(BufReader::new(file))
    };
    parse_pair(images, open(images)?, labels, open(labels)?)
}

/// Like [`read_pair`], from memory; the names only serve error messages.
pub fn parse_pair(
    images_path: &Path,
    images: impl Read,
    labels_path: &Path,
    labels: impl Read,
) -> Result<Images> {
    let pixels = parse_images(images_path, images)?;
    let labels = parse_labels(labels_path, labels)?;
    let (images, names) = (pixels.len() / (SIDE * SIDE), labels.len());
    ensure!(
        images == names,
        "the counts at byte 4 disagree: {} holds {images} images, {} holds {names} labels",
        images_path.display(),
        labels_path.display()
    );
    Ok(Images { pixels, labels })
}

fn parse_images(path: &Path, input: impl Read) -> Result<Vec<u8>> {
    let mut file = Unpacked::new(path, input)?;
    file.magic(IMAGES_MAGIC)?;
    let count = file.u32()? as usize;
    let (rows, columns) = (file.u32()?, file.u32()?);
    ensure!(
        (rows as usize, columns as usize) == (SIDE, SIDE),
        "{}: wrong image size at byte 8: expected {SIDE}x{SIDE}, found {rows}x{columns}",
        path.display()
    );
    file.items(count, SIDE * SIDE)
}

fn parse_labels(path: &Path, input: impl Read) -> Result<Vec<u8>> {
    let mut file = Unpacked::new(path, input)?;
    file.magic(LABELS_MAGIC)?;
    let count = file.u32()? as usize;
    let start = file.offset as usize;
    let labels = file.items(count, 1)?;
    if let Some(at) = labels
        .iter()
        .position(|label| usize::from(*label) >= CLASSES)
    {
        bail!(
            "{}: label {} at byte {} is out of range, expected 0 to {}",
            path.display(),
            labels[at],
            start + at,
            CLASSES - 1
        );
    }
    Ok(labels)
}

/// The bytes of a file after unpacking, with the position for error messages.
struct Unpacked<'a> {
    path: std::path::Display<'a>,
    input: Box<dyn Read + 'a>,
    offset: u64,
}

impl<'a> Unpacked<'a> {
    /// Tells gzip by its first two bytes, not by the name: renamed files are common.
    fn new(path: &'a Path, mut input: impl Read + 'a) -> Result<Self> {
        let path = path.display();
        let mut head = Vec::with_capacity(GZIP_MAGIC.len());
        let read = (&mut input)
            .take(GZIP_MAGIC.len() as u64)
            .read_to_end(&mut head);
        read.with_context(|| format!("{path}: cannot read"))?;
        let packed = head == GZIP_MAGIC;
        let whole = Cursor::new(head).chain(input);
        let input: Box<dyn Read + 'a> = if packed {
            // Of several members, as `cat a.gz b.gz`, bgzip and pigz write them.
            Box::new(BufReader::new(MultiGzDecoder::new(whole)))
        } else {
            Box::new(whole)
        };
        Ok(Self {
            path,
            input,
            offset: 0,
        })
    }

    /// Reads at most `length` bytes, fewer at the end of the file. A length from a damaged header
    /// may be absurd: memory is taken as bytes come in.
    fn up_to(&mut self, length: u64) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let result = (&mut self.input).take(length).read_to_end(&mut bytes);
        self.offset += bytes.len() as u64;
        match result {
            // A gzip file that ends early.
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => Ok(bytes),
            Err(error) => Err(anyhow!(
                "{}: cannot read on after byte {}: {error}",
                self.path,
                self.offset
            )),
            Ok(_) => Ok(bytes),
        }
    }

    fn bytes(&mut self, length: u64) -> Result<Vec<u8>> {
        let expected = self.offset + length;
        let bytes = self.up_to(length)?;
        ensure!(
            bytes.len() as u64 == length,
            "{} is truncated: it ends at byte {}, expected at least {expected} bytes",
            self.path,
            self.offset
        );
        Ok(bytes)
    }

    fn u32(&mut self) -> Result<u32> {
        let bytes = self.bytes(4)?;
        Ok(u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }

    fn magic(&mut self, expected: u32) -> Result<()> {
        let found = self.u32()?;
        ensure!(
            found == expected,
            "{}: wrong magic number at byte 0: expected {expected:#010x}, found {found:#010x}",
            self.path
        );
        Ok(())
    }

    /// The `count` items that end the file, and nothing after them.
    fn items(&mut self, count: usize, size: usize) -> Result<Vec<u8>> {
        ensure!(
            count > 0,
            "{}: the header announces no items at byte 4",
            self.path
        );
        let items = self.bytes(count as u64 * size as u64)?;
        let (path, end) = (&self.path, self.offset);
        let mut more = Vec::new();
        let result = (&mut self.input).take(1).read_to_end(&mut more);
        result.with_context(|| format!("{path}: cannot read on after byte {end}"))?;
        ensure!(
            more.is_empty(),
            "{path}: byte {end} follows the last of the {count} items that the header announces"
        );
        Ok(items)
    }
}

/// The file of a data set folder under any of its usual names, plain or gzip.
pub fn find(folder: &Path, split: &str, kind: &str) -> Result<PathBuf> {
    let name = format!("{split}-{kind}");
    let names = [name.clone(), name.replacen("-idx", ".idx", 1)];
    let paths = names
        .iter()
        .flat_map(|name| [name.clone(), format!("{name}.gz")]);
    let found = paths
        .map(|name| folder.join(name))
        .find(|path| path.is_file());
    found.with_context(|| format!("{name} (or {name}.gz) is missing in {}", folder.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::{Compression, write::GzEncoder};
    use std::io::Write;

    fn images(count: u32, bytes: usize) -> Vec<u8> {
        let words = [IMAGES_MAGIC, count, SIDE as u32, SIDE as u32];
        let header = words.into_iter().flat_map(u32::to_be_bytes);
        header.chain((0..bytes).map(|at| at as u8)).collect()
    }

    fn labels(values: &[u8]) -> Vec<u8> {
        let header = [LABELS_MAGIC, values.len() as u32]
            .into_iter()
            .flat_map(u32::to_be_bytes);
        header.chain(values.iter().copied()).collect()
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(bytes).expect("memory");
        encoder.finish().expect("memory")
    }

    fn parse(images: &[u8], labels: &[u8]) -> Result<Images> {
        parse_pair(
            Path::new("the-images"),
            images,
            Path::new("the-labels"),
            labels,
        )
    }

    #[test]
    fn plain_and_gzip_of_any_number_of_members_give_the_same_images() {
        let (image_file, label_file) = (images(2, 2 * 784), labels(&[3, 9]));
        let plain = parse(&image_file, &label_file).expect("plain files");
        assert_eq!(
            (plain.pixels.len(), &plain.pixels[..3]),
            (2 * 784, &[0, 1, 2][..])
        );
        assert_eq!(plain.labels, [3, 9]);
        assert_eq!(
            plain,
            parse(&gzip(&image_file), &label_file).expect("mixed")
        );
        let members = [gzip(&image_file[..700]), gzip(&image_file[700..])].concat();
        assert_eq!(plain, parse(&members, &gzip(&label_file)).expect("members"));
    }

    #[test]
    fn every_fault_is_named_by_file_and_byte() {
        let (image, label) = (images(1, 784), labels(&[0]));
        let two = images(2, 2 * 784);
        let mut other_size = image.clone();
        other_size[11] = 32;
        let mut damaged = gzip(&label);
        let at = damaged.len() - 6;
        damaged[at] ^= 0xff;
        let huge = (16 + u64::from(u32::MAX) * 784).to_string();
        let half = gzip(&two);
        let cases: [(&[u8], &[u8], &str); 14] = [
            (
                &two[..two.len() - 5],
                &label[..],
                "the-images|truncated|byte 1579|1584",
            ),
            (&image[..10], &label, "the-images|byte 10|12"),
            (&[], &label, "the-images|byte 0"),
            (
                &half[..half.len() / 2],
                &label,
                "the-images|truncated|ends at byte",
            ),
            (&image, &damaged, "the-labels|byte"),
            // Of an absurd count nothing is allocated.
            (
                &images(u32::MAX, 100),
                &label,
                &format!("the-images|byte 116|{huge}"),
            ),
            (
                &labels(&[0; 9]),
                &label,
                "the-images|byte 0|0x00000803|0x00000801",
            ),
            (
                &image,
                b"not an IDX file",
                "the-labels|byte 0|0x00000801|0x6e6f7420",
            ),
            (&other_size, &label, "the-images|byte 8|28x28|32x28"),
            (
                &two,
                &labels(&[0, 1, 2]),
                "the-images|2 images|the-labels|3 labels|byte 4",
            ),
            (&two, &labels(&[9, 10]), "the-labels|byte 9|label 10|0 to 9"),
            (&images(1, 785), &label, "the-images|byte 800"),
            (
                &[gzip(&image), b"garbage".to_vec()].concat(),
                &label,
                "the-images|byte 800",
            ),
            (&images(0, 0), &label, "the-images|byte 4|no items"),
        ];
        for (images, labels, parts) in cases {
            let text = format!("{:#}", parse(images, labels).map(drop).expect_err(parts));
            for part in parts.split('|').filter(|part| !part.is_empty()) {
                assert!(text.contains(part), "`{part}` is not in: {text}");
            }
        }
    }

    #[test]
    fn usual_names_are_found_and_missing_files_named() {
        for name in ["train-labels-idx1-ubyte", "train-labels.idx1-ubyte"] {
            for name in [name.to_string(), format!("{name}.gz")] {
                let folder = tempfile::tempdir().expect("temporary folder");
                let path = folder.path().join(name);
                std::fs::write(&path, b"").expect("written");
                let found = find(folder.path(), "train", "labels-idx1-ubyte").expect("found");
                assert_eq!(found, path);
                let text = find(folder.path(), "t10k", "images-idx3-ubyte").expect_err("missing");
                assert!(
                    text.to_string()
                        .contains("t10k-images-idx3-ubyte.gz) is missing in")
                );
            }
        }
    }
}
