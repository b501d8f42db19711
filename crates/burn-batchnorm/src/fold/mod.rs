//! Batch norm folded into its neighbours, so that inference pays nothing for it.
//!
//! In inference batch norm is `y = x * k + d` per channel, with `k = gamma / sqrt(running_var + epsilon)`
//! and `d = beta - running_mean * k`. A linear layer next to it takes that into its own weights:
//!
//! | function | layers | becomes |
//! |---|---|---|
//! | [`into_previous`] | `norm(layer(x))` | `W' = k * W` per output channel, `b' = k * b + d` |
//! | [`into_next`] | `layer(norm(x))` | `W' = W * k` per input channel, `b' = b + W d` |
//! | [`into_norm`] | `norm2(norm1(x))` | one batch norm |
//! | [`identity`] | `norm(x)` | a convolution of one tap |
//! | [`sum`] | `conv1(x) + conv2(x) + ..` | one convolution: the branches of RepVGG |
//!
//! ```
//! # use burn::nn::conv::Conv2dConfig;
//! # use burn::tensor::{Device, Tensor};
//! use burn_batchnorm::{BatchNormConfig, fold};
//! # fn main() -> Result<(), fold::FoldError> {
//! # let device = Device::default();
//! # let conv = Conv2dConfig::new([3, 8], [3, 3]).with_bias(false).init(&device);
//! # let norm = BatchNormConfig::new(8).init(&device);
//! # let images = Tensor::<4>::ones([1, 3, 9, 9], &device);
//!
//! let folded = fold::into_previous(&conv, &norm, Some(images.clone()))?;
//! assert!(folded.difference.expect("an input was given") < 1e-5);
//! let y = folded.layer.forward(images);
//! # Ok(())
//! # }
//! ```
//!
//! The folded weights are rounded once more than the unfolded ones, so results differ by rounding:
//! about 1e-6 of their size. Where `running_mean` is large against the spread, `d` cancels what the
//! layer before adds, and digits are lost that the unfolded layer keeps; the difference on an input of
//! one's own tells.
//!
//! A folded parameter trains, and is recorded, as the one in whose place it is; a new bias trains where the weight
//! does. Each has an id of its own: to an optimizer it is another.
//!
//! Sources: [Jacob et al. 2018](https://arxiv.org/abs/1712.05877), section 3.2;
//! [RepVGG](https://arxiv.org/abs/2101.03697), section 3.3.

mod affine;
mod branches;
mod convolution;
mod error;
mod linear;
mod norm;
mod transposed;

use burn::tensor::{DType, Device, Tensor};

use crate::{Activation, BatchNorm};
use affine::Affine;
pub use branches::{identity, sum};
pub use error::FoldError;
pub use norm::into_norm;

/// A layer of tensors of rank `D` that can take in the batch norm after it: `Linear` (of any rank),
/// `Conv1d` to `Conv3d`, `ConvTranspose1d` to `ConvTranspose3d`.
pub trait Previous<const D: usize>: Layer<D> {
    /// The layer whose output is this one's, times a scale and plus a shift per channel.
    #[doc(hidden)]
    fn scaled(&self, affine: Affine) -> Self;
    /// Channels of the output.
    #[doc(hidden)]
    fn channels_out(&self) -> usize;
}

/// A layer of tensors of rank `D` that can take in the batch norm before it: `Linear` (of any rank),
/// `Conv1d` to `Conv3d`.
pub trait Next<const D: usize>: Layer<D> {
    /// The layer of an input that is scaled and shifted per channel first.
    #[doc(hidden)]
    fn of_scaled(&self, affine: Affine) -> Result<Self, FoldError>;
    /// Channels of the input.
    #[doc(hidden)]
    fn channels_in(&self) -> usize;
}

/// What both have. Implemented by this crate alone.
pub trait Layer<const D: usize>: Sized {
    /// The axis of the channels, counted from the front.
    #[doc(hidden)]
    const AXIS: usize;
    #[doc(hidden)]
    fn run(&self, input: Tensor<D>) -> Tensor<D>;
    /// Where the parameters are, and their type.
    #[doc(hidden)]
    fn place(&self) -> (Device, DType);
}

/// A layer that a batch norm was folded into.
#[derive(Debug, Clone)]
pub struct Folded<L> {
    /// The layer that does what both did.
    pub layer: L,
    /// What is left to apply to its output: the activation of the batch norm, with a residual added
    /// before it where [`forward_residual`](BatchNorm::forward_residual) was used.
    pub activation: Activation,
    /// The largest difference on the given input of what the folded layer and the two layers compute,
    /// before the activation; NaN if one of them is. None if no input was given.
    pub difference: Option<f64>,
}

/// Folds a batch norm into the layer before it: `norm(layer(x))`.
///
/// Exact whatever the padding, stride and groups. The result has a bias even where `layer` had none.
///
/// # Shapes
///
/// - `input`: an input of `layer`, whose rank also says which axis of a `Linear`'s output is which
///
/// # Errors
///
/// If `norm` trains or has no running statistics, has its channels on another axis than `layer` (for a
/// `Linear`: the last), or another number of channels or another device.
pub fn into_previous<const D: usize, L: Previous<D>>(
    layer: &L,
    norm: &BatchNorm,
    input: Option<Tensor<D>>,
) -> Result<Folded<L>, FoldError> {
    let (device, dtype) = layer.place();
    let place = (&device, dtype);
    let affine = Affine::new(norm, layer.channels_out(), L::AXIS, D, place)?;
    let folded = layer.scaled(affine);
    let difference = input.map(|input| {
        let expected = without_activation(norm).forward(layer.run(input.clone()));
        largest_difference(folded.run(input), expected)
    });
    Ok(Folded {
        layer: folded,
        activation: norm.config().activation,
        difference,
    })
}

/// Folds a batch norm into the layer after it: `layer(norm(x))`.
///
/// A convolution must not pad: its zeros would stand for other values. The result has a bias even where
/// `layer` had none.
///
/// # Shapes
///
/// - `input`: an input of `norm`
///
/// # Errors
///
/// As [`into_previous`], and if `norm` has an activation or `layer` pads.
pub fn into_next<const D: usize, L: Next<D>>(
    norm: &BatchNorm,
    layer: &L,
    input: Option<Tensor<D>>,
) -> Result<Folded<L>, FoldError> {
    let activation = norm.config().activation;
    if activation != Activation::None {
        return Err(FoldError::Activation(activation));
    }
    let (device, dtype) = layer.place();
    let place = (&device, dtype);
    let affine = Affine::new(norm, layer.channels_in(), L::AXIS, D, place)?;
    let folded = layer.of_scaled(affine)?;
    let difference = input.map(|input| {
        let expected = layer.run(norm.forward(input.clone()));
        largest_difference(folded.run(input), expected)
    });
    Ok(Folded {
        layer: folded,
        activation,
        difference,
    })
}

fn without_activation(norm: &BatchNorm) -> BatchNorm {
    let mut norm = norm.clone();
    norm.config.activation = Activation::None;
    norm
}

fn largest_difference<const D: usize>(got: Tensor<D>, expected: Tensor<D>) -> f64 {
    let difference = (got - expected).abs().into_data();
    // Not `f64::max`, which passes over a NaN.
    difference.iter::<f64>().fold(0.0, |largest, value| {
        match largest.is_nan() || value <= largest {
            true => largest,
            false => value,
        }
    })
}
