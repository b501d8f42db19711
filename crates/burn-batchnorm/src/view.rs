use burn::tensor::Shape;

/// A tensor with a channel axis, as every operation sees it: `(outer, channels, inner)`.
///
/// `[N, C, H, W]` with axis 1 is `(N, C, H * W)`, channels last is `(N * H * W, C, 1)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct View {
    /// The channel axis, counted from the front.
    pub axis: usize,
    pub outer: usize,
    pub channels: usize,
    pub inner: usize,
}

impl View {
    /// `channel_axis` is one of `shape`, counted from the front.
    pub fn new(shape: &Shape, channel_axis: usize) -> Self {
        Self {
            axis: channel_axis,
            outer: shape[..channel_axis].iter().product(),
            channels: shape[channel_axis],
            inner: shape[channel_axis + 1..].iter().product(),
        }
    }

    /// Whether there is no value.
    pub fn is_empty(&self) -> bool {
        self.outer * self.channels * self.inner == 0
    }
}
