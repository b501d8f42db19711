//! Batch normalization on tensors, without the state of a layer.
//!
//! # One view
//!
//! A tensor with a channel axis is `(outer, channels, inner)`: `[N, C, H, W]` with axis 1 is
//! `(N, C, H * W)`, channels last is `(N * H * W, C, 1)`. Every operation works on that view, a
//! reshape, so that every axis costs the same and none is transposed.
//!
//! # Two operations, and both in one
//!
//! [`moments`] gives the statistics of an input, [`normalize`] normalizes by statistics. Both are
//! differentiable, each as one node, and between them the statistics are an ordinary tensor: blend
//! them with others, scale them, put a loss on them. [`train`] is `normalize(x, moments(x))` in one node
//! and fewer passes over memory, with the same values and gradients.
//!
//! ```
//! # use burn::tensor::{Device, Tensor};
//! use burn_batchnorm::functional::{Epilogue, moments, normalize};
//!
//! # fn main() -> Result<(), burn_batchnorm::BatchNormError> {
//! # let device = Device::default();
//! # let (x, mask) = (Tensor::<2>::ones([8, 3], &device), Tensor::<2>::ones([8, 1], &device));
//! # let (gamma, beta) = (Tensor::<1>::ones([3], &device), Tensor::<1>::zeros([3], &device));
//! # let (running, channels) = (Tensor::<2>::ones([3, 3], &device), 3);
//! // Statistics of the positions that a mask admits, blended with running ones.
//! let center = moments(x.clone(), 1, Some(mask))?;
//! let center = center.slice([0..3, 0..channels]) * 0.9 + running * 0.1;
//! let y = normalize(x, center, gamma, beta, 1e-5, 1, Epilogue::default())?;
//! # assert_eq!(y.dims(), [8, 3]);
//! # Ok(())
//! # }
//! ```
//!
//! # Numbers
//!
//! - Computed in the type of the input, but at least in f32: half inputs are widened, and the output
//!   narrowed. Statistics stay wide.
//! - The variance is that of centred values, never `E[x^2] - E[x]^2`, and the output is
//!   `(x - mean) * scale + shift`: a mean that is large against the spread (mean 1e4, std 1) costs no
//!   digits, and a constant channel gives exactly `beta`. To that end the mean comes with what rounding
//!   took from it.
//! - Where [`is_fused`] a kernel of this crate does it; elsewhere, and where a kernel cannot, Burn's
//!   operations are composed, on the same device. The numbers are the same to rounding.

use burn::tensor::Tensor;

use crate::BatchNormError;
use crate::operands::{self, Operands, Parameter};
use crate::statistics::rows;

pub use crate::checks::is_fused;
pub use crate::operands::Epilogue;

/// What [`train`] returns.
#[derive(Debug, Clone)]
pub struct Trained<const D: usize> {
    /// The normalized input: shape and type of the input.
    pub output: Tensor<D>,
    /// Mean of the batch, shape `[channels]`, at least f32, not tracked by autodiff.
    pub mean: Tensor<1>,
    /// Biased variance of the batch without epsilon, shape `[channels]`, at least f32, not tracked
    /// by autodiff.
    pub variance: Tensor<1>,
}

/// Normalizes by the statistics of the input itself, per channel:
/// `activation((x - mean) / sqrt(variance + epsilon) * gamma + beta + residual)`, with the biased
/// variance.
///
/// Differentiable in `input`, `gamma`, `beta` and the residual; the gradient takes account of the
/// statistics' dependence on the input. Running statistics are the caller's.
///
/// # Shapes
///
/// - `input`, output: any rank from 2, `channels` on axis `channel_axis`, counted from the front
/// - `gamma`, `beta`: `[channels]`
///
/// # Errors
///
/// If the rank is below 2, the axis out of range, a shape, type or device does not match, or `epsilon`
/// is not finite and positive in the type that is computed in.
///
/// Source: [Ioffe and Szegedy 2015](https://arxiv.org/abs/1502.03167), Algorithm 1.
pub fn train<const D: usize>(
    input: Tensor<D>,
    gamma: Tensor<1>,
    beta: Tensor<1>,
    epsilon: f64,
    channel_axis: usize,
    epilogue: Epilogue<D>,
) -> Result<Trained<D>, BatchNormError> {
    let parameters = [gamma, beta].map(Parameter::Learned);
    let operands = Operands::new(input, parameters, epilogue, epsilon, channel_axis)?;
    let trained = operands.train(None);
    let [mean, variance] = rows(trained.moments);
    Ok(Trained {
        output: trained.output,
        mean,
        variance,
    })
}

/// The statistics of an input per channel, its *center*, of shape `[3, channels]` and at least f32:
///
/// | row | |
/// |---|---|
/// | 0 | the mean, `sum(x) / n` |
/// | 1 | what rounding took from the mean; a constant for autodiff |
/// | 2 | the biased variance, `sum((x - mean)^2) / n`, without epsilon |
///
/// With `weights` `w`, the mean is `sum(w * x) / sum(w)` and the variance
/// `sum(w * (x - mean)^2) / sum(w)`, and row 3 holds `sum(w)`. A position of weight 0 is left out
/// whatever it holds: a NaN there reaches neither the statistics nor a gradient. A channel without any
/// weight has mean and variance 0. Weights are not differentiated.
///
/// Differentiable in `input`: `d x = d mean / n + d variance * 2 / n * (x - mean)`.
///
/// # Shapes
///
/// - `input`: any rank from 2, `channels` on axis `channel_axis`, counted from the front
/// - `weights`: that of the input, or the same with length 1 on the channel axis; what is negative
///   or not finite counts as 0, and the sum over a channel must be finite
///
/// # Errors
///
/// If the rank is below 2, the axis out of range, a shape or device does not match, or the device
/// cannot compute with the type of the input.
pub fn moments<const D: usize>(
    input: Tensor<D>,
    channel_axis: usize,
    weights: Option<Tensor<D>>,
) -> Result<Tensor<2>, BatchNormError> {
    operands::moments(input, channel_axis, weights)
}

/// Normalizes by given statistics, per channel:
/// `activation((x - mean) / sqrt(variance + epsilon) * gamma + beta + residual)`.
///
/// Differentiable in `input`, `center`, `gamma`, `beta` and the residual.
///
/// # Shapes
///
/// - `input`, output: any rank from 2, `channels` on axis `channel_axis`, counted from the front
/// - `center`: `[3, channels]` as [`moments`] returns it, or `[4, channels]` of which the last row is
///   not read
/// - `gamma`, `beta`: `[channels]`
///
/// # Errors
///
/// As for [`train`], and if `center` has another shape.
pub fn normalize<const D: usize>(
    input: Tensor<D>,
    center: Tensor<2>,
    gamma: Tensor<1>,
    beta: Tensor<1>,
    epsilon: f64,
    channel_axis: usize,
    epilogue: Epilogue<D>,
) -> Result<Tensor<D>, BatchNormError> {
    let parameters = [gamma, beta].map(Parameter::Learned);
    let operands = Operands::new(input, parameters, epilogue, epsilon, channel_axis)?;
    operands.check_center(&center)?;
    Ok(operands.normalize_by_center(center, None))
}
