//! Reader of IDX files, plain or gzip: the format of MNIST, Fashion-MNIST, KMNIST and others.
//!
//! ```text
//! images: u32 magic 0x00000803, u32 count, u32 rows, u32 columns, then count*rows*columns bytes
//! labels: u32 magic 0x00000801, u32 count,                        then count bytes
//! ```
//! All numbers are big endian. Offsets in errors count from the start of the unpacked file.

use std::fs;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail, ensure};
use flate2::read::MultiGzDecoder;

use super::{CLASSES, Images, SIDE};

const IMAGES_MAGIC: u32 = 0x0000_0803;
const LABELS_MAGIC: u32 = 0x0000_0801;
const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];

/// Reads an image file and its label file; both are checked whole before anything is returned.
pub fn read_pair(images: &Path, labels: &Path) -> Result<Images> {
    let read =
        |path: &Path| fs::read(path).with_context(|| format!("cannot read {}", path.display()));
    parse_pair(images, read(images)?, labels, read(labels)?)
}

/// Like [`read_pair`], from memory; the names only serve error messages.
pub fn parse_pair(
    images_path: &Path,
    images: Vec<u8>,
    labels_path: &Path,
    labels: Vec<u8>,
) -> Result<Images> {
    let pixels = items(images_path, images, IMAGES_MAGIC, &[SIDE, SIDE])?;
    let labels = items(labels_path, labels, LABELS_MAGIC, &[])?;
    let mut classes = labels.iter();
    if let Some(at) = classes.position(|label| usize::from(*label) >= CLASSES) {
        bail!(
            "{}: label {} at byte {} is out of range, expected 0 to {}",
            labels_path.display(),
            labels[at],
            8 + at,
            CLASSES - 1
        );
    }
    let (images, names) = (pixels.len() / (SIDE * SIDE), labels.len());
    ensure!(
        images == names,
        "the counts at byte 4 disagree: {} holds {images} images, {} holds {names} labels",
        images_path.display(),
        labels_path.display()
    );
    Ok(Images { pixels, labels })
}

/// The bytes of all items of a file, and nothing else in it. `shape` is that of an item.
fn items(path: &Path, file: Vec<u8>, magic: u32, shape: &[usize]) -> Result<Vec<u8>> {
    let path = path.display();
    let (mut bytes, failure) = unpacked(file);
    let end = bytes.len();
    let damaged = |error| anyhow!("{path}: cannot read on after byte {end}: {error}");
    // A gzip file that ends early is told like a plain one, by what is missing.
    let cut = match failure {
        Some(error) if error.kind() != ErrorKind::UnexpectedEof => return Err(damaged(error)),
        cut => cut,
    };
    let truncated = |expected: usize| {
        format!("{path} is truncated: it ends at byte {end}, expected at least {expected} bytes")
    };
    let word = |at: usize| {
        let word = bytes.get(at..).and_then(<[u8]>::first_chunk);
        let word = word.with_context(|| truncated(at + 4))?;
        anyhow::Ok(u32::from_be_bytes(*word))
    };
    let found = word(0)?;
    ensure!(
        found == magic,
        "{path}: wrong magic number at byte 0: expected {magic:#010x}, found {found:#010x}"
    );
    let count = word(4)? as usize;
    for (axis, expected) in shape.iter().enumerate() {
        let at = 8 + 4 * axis;
        let found = word(at)?;
        ensure!(
            found as usize == *expected,
            "{path}: wrong image size at byte {at}: expected {expected}, found {found}"
        );
    }
    ensure!(count > 0, "{path}: the header announces no items at byte 4");
    let header = 8 + 4 * shape.len();
    let expected = header + count * shape.iter().product::<usize>();
    ensure!(end >= expected, truncated(expected));
    ensure!(
        end == expected,
        "{path}: byte {expected} follows the last of the {count} items that the header announces"
    );
    match cut {
        Some(error) => Err(damaged(error)),
        None => Ok(bytes.split_off(header)),
    }
}

/// The content, and why there is no more of it. Gzip is told by its first bytes and not by the name,
/// since renamed files are common; it may have several members, as bgzip and pigz write them.
fn unpacked(file: Vec<u8>) -> (Vec<u8>, Option<std::io::Error>) {
    if !file.starts_with(&GZIP_MAGIC) {
        return (file, None);
    }
    let mut bytes = Vec::new();
    let read = MultiGzDecoder::new(&file[..]).read_to_end(&mut bytes);
    (bytes, read.err())
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
            images.to_vec(),
            Path::new("the-labels"),
            labels.to_vec(),
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
            (
                &other_size,
                &label,
                "the-images|byte 8|expected 28|found 32",
            ),
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
