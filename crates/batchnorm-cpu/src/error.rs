//! What can be wrong with a call.

/// Why a kernel refused its arguments. Nothing has been written when an error is returned.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The channel axis does not exist in the shape.
    #[error(
        "the channel axis must be smaller than the rank: expected less than {rank}, got {axis}"
    )]
    Axis {
        /// The axis that was asked for.
        axis: usize,
        /// The number of dimensions of the shape.
        rank: usize,
    },
    /// The number of elements does not fit in `usize`.
    #[error("the layout has too many elements: {outer} x {channels} x {inner} overflows usize")]
    TooLarge {
        /// Product of the dimensions before the channel axis.
        outer: usize,
        /// Size of the channel axis.
        channels: usize,
        /// Product of the dimensions after the channel axis.
        inner: usize,
    },
    /// A slice has the wrong number of values.
    #[error("`{name}` has the wrong length: expected {expected} {unit}, got {got}")]
    Length {
        /// The argument.
        name: &'static str,
        /// The length that the layout asks for.
        expected: usize,
        /// What is counted: `elements`, `channels`, `positions` or `values`.
        unit: &'static str,
        /// The length of the slice.
        got: usize,
    },
    /// A number is outside of its range.
    #[error("`{name}` must be {expected}, got {got}")]
    Value {
        /// The argument.
        name: &'static str,
        /// The range that it must lie in.
        expected: &'static str,
        /// The value, printed.
        got: String,
    },
}

impl Error {
    /// Refuses a slice of the wrong length.
    pub(crate) fn expect_length(
        name: &'static str,
        expected: usize,
        unit: &'static str,
        got: usize,
    ) -> Result<(), Self> {
        if got == expected {
            return Ok(());
        }
        Err(Self::Length {
            name,
            expected,
            unit,
            got,
        })
    }
}
