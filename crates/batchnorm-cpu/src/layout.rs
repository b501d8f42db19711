//! One view of memory for every axis: `(outer, channels, inner)`; its picture is in the crate's documentation.

use crate::Error;

/// How the values of a contiguous tensor belong to channels; see the [picture](crate#one-view-of-memory).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Layout {
    outer: usize,
    channels: usize,
    inner: usize,
    /// `outer * channels * inner`, which does not overflow.
    elements: usize,
}

impl Layout {
    /// A layout of `outer * channels * inner` elements. Any of the three may be zero.
    ///
    /// # Errors
    ///
    /// [`Error::TooLarge`] if the number of elements overflows `usize`.
    pub fn new(outer: usize, channels: usize, inner: usize) -> Result<Self, Error> {
        let elements = product(&[outer, channels, inner]).ok_or(Error::TooLarge {
            outer,
            channels,
            inner,
        })?;
        Ok(Self {
            outer,
            channels,
            inner,
            elements,
        })
    }

    /// The layout of a contiguous row-major tensor of this `shape` whose channels lie along `axis`.
    ///
    /// # Errors
    ///
    /// [`Error::Axis`] if `axis >= shape.len()`, [`Error::TooLarge`] if the number of elements overflows `usize`.
    pub fn from_shape(shape: &[usize], axis: usize) -> Result<Self, Error> {
        let Some(&channels) = shape.get(axis) else {
            let rank = shape.len();
            return Err(Error::Axis { axis, rank });
        };
        // A side that does not fit is as good as the largest: next to a zero its value does not matter, and otherwise the layout is refused.
        let side = |dims| product(dims).unwrap_or(usize::MAX);
        let (outer, inner) = (side(&shape[..axis]), side(&shape[axis + 1..]));
        if product(shape).is_none() {
            return Err(Error::TooLarge {
                outer,
                channels,
                inner,
            });
        }
        Self::new(outer, channels, inner)
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

    /// Number of values of one channel, `outer * inner`: the divisor of the mean. 0 without channels.
    pub fn samples_per_channel(&self) -> usize {
        self.elements.checked_div(self.channels).unwrap_or(0)
    }

    /// Number of values of the tensor.
    pub fn elements(&self) -> usize {
        self.elements
    }

    /// Length of a row of the picture, `channels * inner`; 0 if there are no elements.
    pub(crate) fn columns(&self) -> usize {
        self.elements.checked_div(self.outer).unwrap_or(0)
    }

    /// The view that the kernels use: a single channel is one long row, and without elements both sides are empty, whatever the shape was.
    pub(crate) fn flattened(self) -> Self {
        if self.elements == 0 {
            return Self {
                outer: 0,
                inner: 0,
                ..self
            };
        }
        if self.channels != 1 {
            return self;
        }
        Self {
            outer: 1,
            inner: self.elements,
            ..self
        }
    }

    /// Checks a tensor-sized argument.
    pub(crate) fn expect_elements(&self, name: &'static str, got: usize) -> Result<(), Error> {
        Error::expect_length(name, self.elements, "elements", got)
    }

    /// Checks a `[channels]` argument.
    pub(crate) fn expect_channels(&self, name: &'static str, got: usize) -> Result<(), Error> {
        Error::expect_length(name, self.channels, "channels", got)
    }
}

/// The product, unless it overflows; zeros are looked for first, because a product before one may overflow without meaning anything.
fn product(dims: &[usize]) -> Option<usize> {
    if dims.contains(&0) {
        return Some(0);
    }
    dims.iter().try_fold(1usize, |n, &d| n.checked_mul(d))
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
        assert!(Layout::from_shape(&[half, half, 1], 2).is_err());
        assert!(Layout::from_shape(&[3, half, half], 0).is_err());
        for (outer, channels, inner) in [
            (usize::MAX, 2, 0),
            (0, 2, usize::MAX),
            (usize::MAX, 0, 2),
            (0, 0, 0),
        ] {
            let empty = Layout::new(outer, channels, inner).expect("empty tensors are small");
            let flat = empty.flattened();
            assert_eq!((empty.elements(), empty.samples_per_channel()), (0, 0));
            assert_eq!((flat.elements(), empty.columns()), (0, 0));
        }
        let empty = Layout::from_shape(&[half, half, 0, 3], 3).expect("empty tensors are small");
        assert_eq!((empty.elements(), empty.channels()), (0, 3));
        let no_channels = Layout::from_shape(&[4, 0, 7], 1).expect("empty tensors are small");
        assert_eq!((no_channels.elements(), no_channels.channels()), (0, 0));
    }

    #[test]
    fn counts_are_products() {
        let layout = Layout::new(2, 3, 5).expect("small");
        assert_eq!((layout.samples_per_channel(), layout.elements()), (10, 30));
        assert_eq!(layout.columns(), 15);
        assert_eq!(
            Layout::new(4, 1, 5).expect("small").flattened(),
            Layout::new(1, 1, 20).expect("small")
        );
    }
}
