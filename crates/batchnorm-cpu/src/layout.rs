//! One view of memory for every axis: `(outer, channels, inner)`.
//!
//! A contiguous tensor with a channel axis is a matrix of `outer` rows, each of `channels` runs of `inner` values:
//!
//! ```text
//!              channel 0        channel 1        channel 2
//! outer 0    | inner values   | inner values   | inner values   |
//! outer 1    | inner values   | inner values   | inner values   |
//! ```
//!
//! `[N, C, H, W]` with axis 1 is `(N, C, H * W)`, `[N, C]` is `(N, C, 1)` and channels-last `[N, H, W, C]` is `(N * H * W, C, 1)`,
//! so no axis ever needs a permuted copy.

use crate::Error;

/// How the values of a contiguous tensor belong to channels; see the [picture](crate#one-view-of-memory).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Layout {
    outer: usize,
    channels: usize,
    inner: usize,
}

impl Layout {
    /// A layout of `outer * channels * inner` elements. Any of the three may be zero.
    ///
    /// # Errors
    ///
    /// [`Error::TooLarge`] if the number of elements overflows `usize`.
    pub fn new(outer: usize, channels: usize, inner: usize) -> Result<Self, Error> {
        let elements = outer
            .checked_mul(inner)
            .and_then(|n| n.checked_mul(channels));
        match elements {
            Some(_) => Ok(Self {
                outer,
                channels,
                inner,
            }),
            None => Err(Error::TooLarge {
                outer,
                channels,
                inner,
            }),
        }
    }

    /// The layout of a contiguous row-major tensor of this `shape` whose channels lie along `axis`.
    ///
    /// # Errors
    ///
    /// [`Error::Axis`] if `axis >= shape.len()`, [`Error::TooLarge`] if the number of elements overflows `usize`.
    pub fn from_shape(shape: &[usize], axis: usize) -> Result<Self, Error> {
        if axis >= shape.len() {
            return Err(Error::Axis {
                axis,
                rank: shape.len(),
            });
        }
        // Looked for first, because the product before a zero may overflow without meaning anything.
        let product = |dims: &[usize]| match dims.contains(&0) {
            true => Some(0),
            false => dims.iter().try_fold(1usize, |n, &d| n.checked_mul(d)),
        };
        let (outer, inner) = (product(&shape[..axis]), product(&shape[axis + 1..]));
        let (Some(outer), Some(inner)) = (outer, inner) else {
            let [outer, inner] = [outer, inner].map(|n| n.unwrap_or(usize::MAX));
            return Err(Error::TooLarge {
                outer,
                channels: shape[axis],
                inner,
            });
        };
        Self::new(outer, shape[axis], inner)
    }

    /// Product of the dimensions before the channel axis.
    pub fn outer(&self) -> usize {
        self.outer
    }

    /// Size of the channel axis.
    pub fn channels(&self) -> usize {
        self.channels
    }

    /// Product of the dimensions after the channel axis.
    pub fn inner(&self) -> usize {
        self.inner
    }

    /// Number of values of one channel, `outer * inner`: the divisor of the mean.
    pub fn samples_per_channel(&self) -> usize {
        self.outer * self.inner
    }

    /// Number of values of the tensor.
    pub fn elements(&self) -> usize {
        self.outer * self.channels * self.inner
    }

    /// The view that the kernels use: a single channel is one long row, whatever its shape was.
    pub(crate) fn flattened(self) -> Self {
        match self.channels {
            1 => Self {
                outer: 1,
                channels: 1,
                inner: self.outer * self.inner,
            },
            _ => self,
        }
    }

    /// Checks a tensor-sized argument.
    pub(crate) fn expect_elements(&self, name: &'static str, got: usize) -> Result<(), Error> {
        expect_length(name, self.elements(), "elements", got)
    }

    /// Checks a `[channels]` argument.
    pub(crate) fn expect_channels(&self, name: &'static str, got: usize) -> Result<(), Error> {
        expect_length(name, self.channels, "channels", got)
    }
}

pub(crate) fn expect_length(
    name: &'static str,
    expected: usize,
    unit: &'static str,
    got: usize,
) -> Result<(), Error> {
    match got == expected {
        true => Ok(()),
        false => Err(Error::Length {
            name,
            expected,
            unit,
            got,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_axis_of_a_shape_is_a_layout() {
        let shape = [2, 3, 4, 5];
        let parts = |axis| Layout::from_shape(&shape, axis).map(|l| (l.outer, l.channels, l.inner));
        assert_eq!(parts(0), Ok((1, 2, 60)));
        assert_eq!(parts(1), Ok((2, 3, 20)));
        assert_eq!(parts(2), Ok((6, 4, 5)));
        assert_eq!(parts(3), Ok((24, 5, 1)));
        assert_eq!(parts(4), Err(Error::Axis { axis: 4, rank: 4 }));
        assert_eq!(
            Layout::from_shape(&[], 0),
            Err(Error::Axis { axis: 0, rank: 0 })
        );
    }

    #[test]
    fn too_many_elements_are_an_error_unless_a_dimension_is_zero() {
        let half = 1 << (usize::BITS / 2);
        assert_eq!(
            Layout::new(half, 2, half),
            Err(Error::TooLarge {
                outer: half,
                channels: 2,
                inner: half
            })
        );
        assert!(Layout::from_shape(&[half, half, 3], 2).is_err());
        assert!(Layout::from_shape(&[3, half, half], 0).is_err());
        let empty = Layout::from_shape(&[half, half, 0, 3], 3).expect("empty tensors are small");
        assert_eq!((empty.elements(), empty.channels()), (0, 3));
        let no_channels = Layout::from_shape(&[4, 0, 7], 1).expect("empty tensors are small");
        assert_eq!((no_channels.elements(), no_channels.channels()), (0, 0));
    }

    #[test]
    fn counts_are_products() {
        let layout = Layout::new(2, 3, 5).expect("small");
        assert_eq!((layout.samples_per_channel(), layout.elements()), (10, 30));
        assert_eq!(
            Layout::new(4, 1, 5).expect("small").flattened(),
            Layout::new(1, 1, 20).expect("small")
        );
    }
}
