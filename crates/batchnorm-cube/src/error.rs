//! What can be wrong with a call.

use crate::Layout;

/// Why an operation refused its arguments. Nothing has been launched and nothing written when an error is returned.
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
    /// The kernels index with 32 bits.
    #[error(
        "the tensor is too large: expected at most {limit} elements in memory, got {} x {} x {}; split the batch",
        .layout.outer, .layout.channels, .layout.inner
    )]
    TooLarge {
        /// The largest number of elements.
        limit: usize,
        /// The layout.
        layout: Layout,
    },
    /// Elements of a layout share memory.
    #[error(
        "elements share memory: expected strides of at least {} and {}, got {} and {}; copy the tensor",
        .layout.channels.saturating_mul(.layout.inner), .layout.inner, .layout.outer_stride, .layout.channel_stride
    )]
    Overlap {
        /// The layout.
        layout: Layout,
    },
    /// The device has no buffers of the size.
    #[error(
        "{device} has buffers of at most {limit} bytes, expected {expected}: split the batch or the channels"
    )]
    Buffer {
        /// The bytes of the largest buffer.
        expected: u64,
        /// The bytes that the device allows.
        limit: u64,
        /// The name of the device.
        device: String,
    },
    /// The kernels do not know the type.
    #[error("the kernels take tensors of f32, f16, bf16 or f64, got {got}: cast the tensor")]
    Type {
        /// The type.
        got: String,
    },
    /// A buffer holds fewer bytes than the layout asks for.
    #[error(
        "the buffer of `{name}` is too short: expected at least {expected} bytes, got {got}; pass a buffer of the layout's span"
    )]
    Length {
        /// The argument.
        name: &'static str,
        /// The bytes that the layout asks for.
        expected: u64,
        /// The bytes of the buffer.
        got: u64,
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
    /// The device cannot compute with the type.
    #[error(
        "{device} does not support {element}: cast the tensor to f32, or use a device that has the type"
    )]
    Element {
        /// The type.
        element: &'static str,
        /// The name of the device.
        device: String,
    },
    /// The device cannot bind as many buffers as the kernel needs.
    #[error(
        "{device} binds at most {got} storage buffers to a kernel, expected {expected}: leave out the residual, or work in place"
    )]
    Bindings {
        /// The buffers that the kernel needs.
        expected: usize,
        /// The buffers that the device can bind.
        got: usize,
        /// The name of the device.
        device: String,
    },
    /// The device cannot start as many cubes as the tensor needs.
    #[error("{device} cannot start {expected} cubes at once: split the batch or the channels")]
    Grid {
        /// The cubes that the kernel needs.
        expected: usize,
        /// The name of the device.
        device: String,
    },
}
