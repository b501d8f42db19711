//! The subset of Fashion-MNIST that is part of the program, so that the default run needs nothing.
//! Fashion-MNIST is (c) 2017 Zalando SE under the MIT licence; `data/make_subset.py` made the files.

use std::path::Path;

use super::{DataError, Dataset, FASHION, idx};

macro_rules! file {
    ($name:literal) => {
        (
            concat!("embedded ", $name),
            include_bytes!(concat!("../../data/fashion-mnist-subset/", $name)).as_slice(),
        )
    };
}

pub(super) fn load() -> Result<Dataset, DataError> {
    let pair = |images: (&str, &[u8]), labels: (&str, &[u8])| {
        idx::parse_pair(Path::new(images.0), images.1, Path::new(labels.0), labels.1)
    };
    Ok(Dataset {
        train: pair(
            file!("train-images-idx3-ubyte.gz"),
            file!("train-labels-idx1-ubyte.gz"),
        )?,
        test: pair(
            file!("t10k-images-idx3-ubyte.gz"),
            file!("t10k-labels-idx1-ubyte.gz"),
        )?,
        class_names: FASHION.map(String::from).to_vec(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{CLASSES, Images};

    #[test]
    fn the_subset_is_whole_and_balanced() {
        let set = load().expect("embedded files");
        for images in [&set.train, &set.test] {
            let mut counts = [0usize; CLASSES];
            images
                .labels
                .iter()
                .for_each(|label| counts[usize::from(*label)] += 1);
            assert_eq!(counts, [images.len() / CLASSES; CLASSES]);
        }
        assert!(
            set.train.len() >= 5000 && set.test.len() >= 1000,
            "{} {}",
            set.train.len(),
            set.test.len()
        );
    }

    #[test]
    fn pixels_use_the_whole_range() {
        let Images { pixels, .. } = load().expect("embedded files").train;
        assert_eq!(
            (pixels.iter().min(), pixels.iter().max()),
            (Some(&0), Some(&255))
        );
    }
}
