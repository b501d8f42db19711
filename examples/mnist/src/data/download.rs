//! MNIST through Burn's data set crate, which downloads the files once into the user's cache.

use burn_dataset::Dataset as _;
use burn_dataset::vision::MnistDataset;

use super::{DIGITS, DataError, Dataset, Images, SIDE};
use crate::quiet::catch;

pub(super) fn mnist() -> Result<Dataset, DataError> {
    Ok(Dataset {
        train: images(MnistDataset::train)?,
        test: images(MnistDataset::test)?,
        class_names: DIGITS.map(String::from).to_vec(),
    })
}

/// Burn's crate panics where it cannot connect or finds a damaged cache file; here it is an error.
fn images(open: fn() -> MnistDataset) -> Result<Images, DataError> {
    let failed = |reason: String| DataError::Download {
        reason: cause(&reason).to_string(),
    };
    let set = catch(open).map_err(failed)?;
    let mut images = Images {
        pixels: Vec::with_capacity(set.len() * SIDE * SIDE),
        labels: Vec::with_capacity(set.len()),
    };
    for item in set.iter() {
        let item = item.map_err(|error| failed(error.to_string()))?;
        // Burn hands out the bytes 0 to 255 as floats.
        images
            .pixels
            .extend(item.image.iter().flatten().map(|pixel| *pixel as u8));
        images.labels.push(item.label);
    }
    Ok(images)
}

/// The innermost message of an error that was unwrapped: what is around it only names Rust types.
fn cause(panic: &str) -> &str {
    let inner = panic
        .rsplit_once("error: \"")
        .and_then(|(_, rest)| rest.split_once('"'));
    let first_line = panic.lines().next().unwrap_or_default();
    inner.map_or(first_line, |(message, _)| message)
}

#[cfg(test)]
mod tests {
    use super::cause;

    #[test]
    fn the_cause_is_the_innermost_message() {
        let panic = r#"called `Result::unwrap()` on an `Err` value: Error { source: Dns { error: "no such name" } }"#;
        assert_eq!(cause(panic), "no such name");
        assert_eq!(
            cause("image file declares 7 items\nmore"),
            "image file declares 7 items"
        );
        assert_eq!(cause(""), "");
    }
}
