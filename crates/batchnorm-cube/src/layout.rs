//! How a tensor lies in memory.

use crate::Error;

/// A tensor with a channel axis, seen as `(outer, channels, inner)`.
///
/// Element `[o, c, i]` lies at `o * outer_stride + c * channel_stride + i`. All tensors of an operation share one layout.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Layout {
    /// Rows of a channel.
    pub outer: usize,
    /// Size of the channel axis.
    pub channels: usize,
    /// Values of a row, which lie side by side.
    pub inner: usize,
    /// Elements from a row of a channel to its next one.
    pub outer_stride: usize,
    /// Elements from a row of a channel to that of the next channel.
    pub channel_stride: usize,
}

impl Layout {
    /// A contiguous tensor.
    pub fn new(outer: usize, channels: usize, inner: usize) -> Self {
        Self {
            outer,
            channels,
            inner,
            outer_stride: channels.saturating_mul(inner),
            channel_stride: inner,
        }
    }

    /// The same with `outer_stride` elements from a row of a channel to its next one: rows with a pitch.
    pub fn with_pitch(self, outer_stride: usize) -> Self {
        Self {
            outer_stride,
            ..self
        }
    }

    /// A contiguous tensor of `shape` whose channels are dimension `axis`.
    pub fn from_shape(shape: &[usize], axis: usize) -> Result<Self, Error> {
        let rank = shape.len();
        if axis >= rank {
            return Err(Error::Axis { axis, rank });
        }
        let product = |sizes: &[usize]| sizes.iter().fold(1, |a: usize, b| a.saturating_mul(*b));
        Ok(Self::new(
            product(&shape[..axis]),
            shape[axis],
            product(&shape[axis + 1..]),
        ))
    }

    /// The tensor of `shape` and `strides` (in elements) whose channels are dimension `axis`, if its memory is of the kind that the kernels
    /// walk over: any order of the dimensions, and gaps between rows.
    ///
    /// Every tensor of the same shape and strides has the same layout, so that outputs may be allocated like the input. None where other
    /// dimensions have gaps, or where elements share memory.
    ///
    /// ```
    /// # use batchnorm_cube::Layout;
    /// // An NCHW view of memory in the order NHWC.
    /// let layout = Layout::from_strides(&[8, 64, 7, 7], &[49 * 64, 1, 7 * 64, 64], 1);
    /// assert_eq!(layout, Some(Layout::new(8 * 49, 64, 1)));
    /// // Rows of 50 values, 64 apart.
    /// let layout = Layout::from_strides(&[32, 50], &[64, 1], 1);
    /// assert_eq!(layout, Some(Layout::new(32, 50, 1).with_pitch(64)));
    /// ```
    pub fn from_strides(shape: &[usize], strides: &[usize], axis: usize) -> Option<Self> {
        if axis >= shape.len() || shape.len() != strides.len() {
            return None;
        }
        if shape.contains(&0) {
            return Self::from_shape(shape, axis).ok();
        }
        let channels = shape[axis];
        let mut rest: Vec<(usize, usize)> = (0..shape.len())
            .filter(|dim| *dim != axis && shape[*dim] != 1)
            .map(|dim| (strides[dim], shape[dim]))
            .collect();
        rest.sort_unstable();

        // Dimensions that lie side by side, the innermost first, are a row; those that follow have to be as regular.
        let mut inner = 1;
        let mut dims = rest.into_iter().peekable();
        while let Some((_, size)) = dims
            .next_if(|(stride, _)| *stride == inner && (channels == 1 || strides[axis] > *stride))
        {
            inner *= size;
        }
        let channel_stride = match channels {
            1 => inner,
            _ => strides[axis],
        };
        let mut outer = 1;
        let mut outer_stride = channels.checked_mul(channel_stride)?;
        if let Some((stride, size)) = dims.next() {
            (outer, outer_stride) = (size, stride);
            for (stride, size) in dims {
                if stride != outer_stride.checked_mul(outer)? {
                    return None;
                }
                outer *= size;
            }
        }
        let layout = Self {
            outer,
            channels,
            inner,
            outer_stride,
            channel_stride,
        };
        layout.is_disjoint().then_some(layout)
    }

    /// Elements of the tensor.
    pub fn len(&self) -> usize {
        self.outer * self.channels * self.inner
    }

    /// Whether the tensor has no element.
    pub fn is_empty(&self) -> bool {
        self.outer == 0 || self.channels == 0 || self.inner == 0
    }

    /// Values of one channel.
    pub fn samples_per_channel(&self) -> usize {
        self.outer * self.inner
    }

    /// Elements from the first to the last one, with the gaps in between: what a buffer has to hold.
    pub fn span(&self) -> usize {
        match self.is_empty() {
            true => 0,
            false => {
                (self.outer - 1) * self.outer_stride
                    + (self.channels - 1) * self.channel_stride
                    + self.inner
            }
        }
    }

    /// [`span`](Self::span), or none where it or the number of elements is beyond all numbers.
    pub(crate) fn checked_span(&self) -> Option<usize> {
        if self.is_empty() {
            return Some(0);
        }
        self.outer
            .checked_mul(self.channels)?
            .checked_mul(self.inner)?;
        let rows = (self.outer - 1).checked_mul(self.outer_stride)?;
        let channels = (self.channels - 1).checked_mul(self.channel_stride)?;
        rows.checked_add(channels)?.checked_add(self.inner)
    }

    /// The same elements with a single row where there is one channel and no gap.
    pub(crate) fn merged(self) -> Self {
        match self.channels == 1 && self.outer_stride == self.inner {
            true => Self::new(1, 1, self.outer * self.inner),
            false => self,
        }
    }

    /// Whether no two elements share memory: rows of neighbouring channels lie side by side, and the next rows behind those.
    pub(crate) fn is_disjoint(&self) -> bool {
        let row = (self.channels.saturating_sub(1))
            .saturating_mul(self.channel_stride)
            .saturating_add(self.inner);
        (self.channels <= 1 || self.channel_stride >= self.inner)
            && (self.outer <= 1 || self.outer_stride >= row)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strided(shape: &[usize], strides: &[usize]) -> Option<Layout> {
        Layout::from_strides(shape, strides, 1)
    }

    #[test]
    fn orders_of_memory() {
        // NCHW, NHWC, CNHW, NWHC, CHWN.
        assert_eq!(
            strided(&[2, 3, 4, 5], &[60, 20, 5, 1]),
            Some(Layout::new(2, 3, 20))
        );
        assert_eq!(
            strided(&[2, 3, 4, 5], &[60, 1, 15, 3]),
            Some(Layout::new(40, 3, 1))
        );
        assert_eq!(
            strided(&[2, 3, 4, 5], &[20, 40, 5, 1]),
            Some(Layout::new(1, 3, 40))
        );
        assert_eq!(
            strided(&[2, 3, 4, 5], &[60, 1, 3, 12]),
            Some(Layout::new(40, 3, 1))
        );
        assert_eq!(
            strided(&[2, 3, 4, 5], &[1, 40, 10, 2]),
            Some(Layout::new(1, 3, 40))
        );
        // Dimensions of one element may have any stride.
        assert_eq!(
            strided(&[1, 3, 1, 5], &[77, 5, 99, 1]),
            Some(Layout::new(1, 3, 5))
        );
        assert_eq!(
            strided(&[4, 1, 5], &[5, 999, 1]),
            Some(Layout::new(1, 1, 20))
        );
    }

    #[test]
    fn gaps() {
        // Between rows of values, of channels, and of all channels.
        let layout = strided(&[8, 3, 5], &[24, 8, 1]).unwrap();
        assert_eq!(
            (layout.outer_stride, layout.channel_stride, layout.span()),
            (24, 8, 189)
        );
        let layout = strided(&[2, 6, 4, 5], &[4 * 5 * 8, 1, 5 * 8, 8]);
        assert_eq!(layout, Some(Layout::new(40, 6, 1).with_pitch(8)));
        let layout = strided(&[4, 3, 5], &[30, 5, 1]);
        assert_eq!(layout, Some(Layout::new(4, 3, 5).with_pitch(30)));
        // Every second value; a gap between the lines of a picture; a broadcast; windows that overlap.
        assert_eq!(
            strided(&[4, 3], &[6, 2]).map(|layout| layout.channel_stride),
            Some(2)
        );
        assert_eq!(strided(&[2, 3, 4, 5], &[96, 32, 8, 1]), None);
        assert_eq!(strided(&[4, 3], &[0, 1]), None);
        assert_eq!(strided(&[4, 3], &[1, 0]), None);
        assert_eq!(strided(&[4, 3], &[2, 1]), None);
    }

    #[test]
    fn nothing_overflows() {
        let huge = Layout::new(usize::MAX, 2, 3);
        assert_eq!(huge.checked_span(), None);
        assert_eq!(Layout::new(usize::MAX, 2, 0).checked_span(), Some(0));
        assert_eq!(Layout::new(0, usize::MAX, 9).span(), 0);
        assert!(Layout::from_shape(&[usize::MAX, 2, 3], 1).is_ok());
    }
}
