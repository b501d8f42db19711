use burn::tensor::Shape;

/// A tensor with a channel axis, as every operation sees it: `(outer, channels, inner)`.
///
/// `[N, C, H, W]` with axis 1 is `(N, C, H * W)`, channels last is `(N * H * W, C, 1)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct View {
    pub outer: usize,
    pub channels: usize,
    pub inner: usize,
}

impl View {
    /// # Panics
    ///
    /// Panics if `channel_axis`, counted from the front, is no axis of `shape`.
    pub fn new(shape: &Shape, channel_axis: usize) -> Self {
        let rank = shape.num_dims();
        assert!(
            channel_axis < rank,
            "batch norm expects a channel axis below the rank {rank}, got {channel_axis}"
        );
        Self {
            outer: shape[..channel_axis].iter().product(),
            channels: shape[channel_axis],
            inner: shape[channel_axis + 1..].iter().product(),
        }
    }
}
