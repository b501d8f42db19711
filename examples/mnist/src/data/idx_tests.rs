//! Every way an IDX file can be wrong, one file pair each.

use std::io::Write;

use flate2::{Compression, write::GzEncoder};

use super::*;

fn images(count: u32, bytes: usize) -> Vec<u8> {
    let mut file = Vec::new();
    for word in [IMAGES_MAGIC, count, SIDE as u32, SIDE as u32] {
        file.extend(word.to_be_bytes());
    }
    file.extend((0..bytes).map(|at| at as u8));
    file
}

fn labels(values: &[u8]) -> Vec<u8> {
    let mut file = LABELS_MAGIC.to_be_bytes().to_vec();
    file.extend((values.len() as u32).to_be_bytes());
    file.extend(values);
    file
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).expect("memory");
    encoder.finish().expect("memory")
}

fn parse(images: &[u8], labels: &[u8]) -> Result<Images, DataError> {
    parse_pair(
        Path::new("the-images"),
        images,
        Path::new("the-labels"),
        labels,
    )
}

fn message(images: &[u8], labels: &[u8]) -> String {
    match parse(images, labels) {
        Ok(set) => panic!("accepted {} images", set.len()),
        Err(error) => error.to_string(),
    }
}

#[track_caller]
fn assert_says(message: &str, parts: &[&str]) {
    for part in parts {
        assert!(message.contains(part), "`{part}` is not in: {message}");
    }
}

#[test]
fn plain_and_gzip_give_the_same_images() {
    let (image_file, label_file) = (images(2, 2 * 784), labels(&[3, 9]));
    let plain = parse(&image_file, &label_file).expect("plain files");
    assert_eq!(plain.labels, [3, 9]);
    assert_eq!(plain.pixels.len(), 2 * 784);
    assert_eq!(plain.pixels[..3], [0, 1, 2]);
    assert_eq!(
        plain,
        parse(&gzip(&image_file), &gzip(&label_file)).expect("gzip files")
    );
    assert_eq!(
        plain,
        parse(&gzip(&image_file), &label_file).expect("mixed")
    );
}

#[test]
fn truncated_images_name_the_byte() {
    let text = message(&images(2, 2 * 784 - 5), &labels(&[0, 1]));
    assert_says(&text, &["the-images", "byte 1579", "1584"]);
}

#[test]
fn truncated_header_names_the_byte() {
    assert_says(
        &message(&images(1, 0)[..10], &labels(&[0])),
        &["the-images", "byte 10", "12"],
    );
    assert_says(&message(&[], &labels(&[0])), &["the-images", "byte 0"]);
}

#[test]
fn truncated_gzip_is_a_truncated_file() {
    let whole = gzip(&images(2, 2 * 784));
    let text = message(&whole[..whole.len() / 2], &labels(&[0, 1]));
    assert_says(&text, &["the-images", "ends at byte"]);
}

#[test]
fn damaged_gzip_is_a_read_error() {
    let mut file = gzip(&labels(&[1, 2, 3]));
    let at = file.len() - 6;
    file[at] ^= 0xff;
    assert_says(
        &message(&images(3, 3 * 784), &file),
        &["the-labels", "byte"],
    );
}

#[test]
fn huge_count_does_not_allocate() {
    let text = message(&images(u32::MAX, 100), &labels(&[0]));
    assert_says(
        &text,
        &[
            "the-images",
            "byte 116",
            &(16 + u64::from(u32::MAX) * 784).to_string(),
        ],
    );
}

#[test]
fn wrong_magic_names_both_numbers() {
    let text = message(&labels(&[1, 2, 3, 4, 5, 6, 7, 8]), &labels(&[0]));
    assert_says(&text, &["the-images", "byte 0", "0x00000803", "0x00000801"]);
    let text = message(&images(1, 784), b"not an IDX file at all");
    assert_says(&text, &["the-labels", "byte 0", "0x00000801", "0x6e6f7420"]);
}

#[test]
fn other_image_sizes_are_refused() {
    let mut file = images(1, 784);
    file[11] = 32;
    assert_says(
        &message(&file, &labels(&[0])),
        &["the-images", "byte 8", "28x28", "32x28"],
    );
}

#[test]
fn counts_that_disagree_name_both_files() {
    let text = message(&images(2, 2 * 784), &labels(&[0, 1, 2]));
    assert_says(
        &text,
        &["the-images", "2 images", "the-labels", "3 labels", "byte 4"],
    );
}

#[test]
fn labels_out_of_range_name_the_byte() {
    let text = message(&images(3, 3 * 784), &labels(&[9, 10, 0]));
    assert_says(&text, &["the-labels", "byte 9", "10", "0 to 9"]);
}

#[test]
fn bytes_after_the_last_item_are_refused() {
    let text = message(&images(1, 785), &labels(&[0]));
    assert_says(&text, &["the-images", "byte 800"]);
}

#[test]
fn empty_sets_are_refused() {
    assert_says(
        &message(&images(0, 0), &labels(&[])),
        &["the-images", "byte 4", "no items"],
    );
}

#[test]
fn missing_files_name_the_folder_and_the_file() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let error = find(folder.path(), "t10k", "images-idx3-ubyte").expect_err("empty folder");
    let text = error.to_string();
    assert_says(
        &text,
        &[
            "t10k-images-idx3-ubyte",
            &folder.path().display().to_string(),
            ".gz",
        ],
    );
}

#[test]
fn usual_names_are_found() {
    for name in [
        "train-labels-idx1-ubyte",
        "train-labels-idx1-ubyte.gz",
        "train-labels.idx1-ubyte",
        "train-labels.idx1-ubyte.gz",
    ] {
        let folder = tempfile::tempdir().expect("temporary folder");
        let path = folder.path().join(name);
        std::fs::write(&path, b"").expect("written");
        assert_eq!(
            find(folder.path(), "train", "labels-idx1-ubyte").expect("found"),
            path
        );
    }
}
