//! Batch normalization on tensors, without the state of a layer.
//!
//! # One view
//!
//! A tensor with a channel axis is `(outer, channels, inner)`: `[N, C, H, W]` with axis 1 is
//! `(N, C, H * W)`, channels last is `(N * H * W, C, 1)`. Every operation works on that view, a
//! reshape, so that every axis costs the same and none is transposed.
//!
//! # Numbers
//!
//! - Computed in the type of the input, but at least in f32: half inputs are widened, and the output
//!   narrowed. Statistics stay wide.
//! - The variance is that of centred values, never `E[x^2] - E[x]^2`.
//! - In training the values are first shifted by the first value of their channel. Statistics of
//!   shifted values lose nothing where the mean is large against the spread (mean 1e4, std 1), and
//!   a constant channel becomes exactly 0, its output exactly `beta`, which sums of the values
//!   themselves do not give. The output does not depend on the shift.
//! - Inference computes `(x - mean) * scale + shift`. `x * scale + (shift - mean * scale)` would
//!   lose digits where the mean is large.

use burn::tensor::{DType, Tensor};

/// What [`batch_norm_train`] returns.
#[derive(Debug, Clone)]
pub struct BatchNormTrain<const D: usize> {
    /// The normalized input: shape and type of the input.
    pub output: Tensor<D>,
    /// Mean of the batch, shape `[channels]`, at least f32, not tracked by autodiff.
    pub mean: Tensor<1>,
    /// Biased variance of the batch without epsilon, shape `[channels]`, at least f32, not tracked
    /// by autodiff.
    pub variance: Tensor<1>,
}

/// Normalizes by the statistics of the batch itself:
/// `(x - mean) / sqrt(variance + epsilon) * gamma + beta` per channel, with the biased variance.
///
/// Differentiable in `input`, `gamma` and `beta`; the gradient takes account of the statistics'
/// dependence on the input. Running statistics are the caller's.
///
/// # Shapes
///
/// - `input`, `output`: any rank from 2, `channels` on axis `channel_axis`, counted from the front
/// - `gamma`, `beta`: `[channels]`
///
/// # Panics
///
/// Panics if the axis is out of range or a shape does not match.
///
/// Source: [Ioffe and Szegedy 2015](https://arxiv.org/abs/1502.03167), Algorithm 1.
pub fn batch_norm_train<const D: usize>(
    input: Tensor<D>,
    gamma: Tensor<1>,
    beta: Tensor<1>,
    epsilon: f64,
    channel_axis: usize,
) -> BatchNormTrain<D> {
    let (shape, dtype) = (input.shape(), input.dtype());
    let x = widen(channels_in_the_middle(input, channel_axis));
    let first = x.clone().detach().slice([0..1]).slice_dim(2, 0..1);

    let result = burn::tensor::module::batch_norm_train(
        x - first.clone(),
        widen(gamma),
        widen(beta),
        epsilon,
    );

    let channels = shape[channel_axis];
    BatchNormTrain {
        output: result.output.cast(dtype).reshape(shape),
        mean: (result.mean + first.reshape([channels])).without_autodiff(),
        variance: result.variance.without_autodiff(),
    }
}

/// Normalizes by given statistics: `(x - mean) * scale + shift` per channel.
///
/// Inference is `scale = gamma / sqrt(running_var + epsilon)`, `shift = beta`. Differentiable in
/// every input.
///
/// # Shapes
///
/// - `input`, output: any rank from 2, `channels` on axis `channel_axis`, counted from the front
/// - `mean`, `scale`, `shift`: `[channels]`
///
/// # Panics
///
/// Panics if the axis is out of range or a shape does not match.
pub fn normalize<const D: usize>(
    input: Tensor<D>,
    mean: Tensor<1>,
    scale: Tensor<1>,
    shift: Tensor<1>,
    channel_axis: usize,
) -> Tensor<D> {
    let (shape, dtype) = (input.shape(), input.dtype());
    let x = widen(channels_in_the_middle(input, channel_axis));
    let [_, channels, _] = x.dims();
    let per_channel = |t: Tensor<1>| t.cast(x.dtype()).reshape([1, channels, 1]);
    let (mean, scale, shift) = (per_channel(mean), per_channel(scale), per_channel(shift));

    ((x - mean) * scale + shift).cast(dtype).reshape(shape)
}

/// The type that an input of type `dtype` is computed in: itself, but f32 for the half types.
pub(crate) fn compute_dtype(dtype: DType) -> DType {
    match dtype {
        DType::F16 | DType::BF16 => DType::F32,
        dtype => dtype,
    }
}

fn widen<const D: usize>(tensor: Tensor<D>) -> Tensor<D> {
    let dtype = compute_dtype(tensor.dtype());
    tensor.cast(dtype)
}

fn channels_in_the_middle<const D: usize>(input: Tensor<D>, channel_axis: usize) -> Tensor<3> {
    let dims = input.dims();
    assert!(
        channel_axis < D,
        "batch norm expects a channel axis below the rank {D}, got {channel_axis}"
    );
    let outer = dims[..channel_axis].iter().product();
    let inner = dims[channel_axis + 1..].iter().product();
    input.reshape([outer, dims[channel_axis], inner])
}
