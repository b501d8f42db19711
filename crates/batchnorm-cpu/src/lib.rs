//! Batch normalization on slices: fused kernels for training and inference, forward and backward.
//!
//! In training, every channel of a batch is normalized by the mean and the variance of its own values and then scaled and shifted:
//! `y = (x - mean) / sqrt(variance + epsilon) * gamma + beta` ([paper](https://arxiv.org/abs/1502.03167)). In inference the statistics are given. This
//! crate computes both and their gradients, on the CPU, for whoever holds tensors as slices. Users of Burn want the layer on top of it,
//! `burn-batchnorm`.
//!
//! The crate knows no tensor library. It takes slices and a [`Layout`], vectorizes with the best instruction set of the processor that it runs on
//! (chosen at run time: one binary serves them all), uses the threads of the current rayon pool where that pays, and allocates nothing of the size
//! of a tensor.
//!
//! # One view of memory
//!
//! Any contiguous tensor with a channel axis is `(outer, channels, inner)`: `[N, C, H, W]` with axis 1 is `(N, C, H * W)`, channels-last
//! `[N, H, W, C]` is `(N * H * W, C, 1)`.
//!
//! ```text
//!              channel 0        channel 1        channel 2
//! outer 0    | inner values   | inner values   | inner values   |
//! outer 1    | inner values   | inner values   | inner values   |
//! ```
//!
//! A channel's mean and variance are those of its column of this picture. Every axis works without a permuted copy.
//!
//! # What is here
//!
//! | function | computes |
//! |---|---|
//! | [`train`] | statistics of the batch, and `y = act((x - mean) * inv_std * gamma + beta + residual)` |
//! | [`normalize`] | the output with given statistics: inference |
//! | [`backward`] | the gradients of x, gamma, beta and the residual, of either |
//! | [`train_weighted`], [`normalize_weighted`], [`backward_weighted`] | the same where positions have weights, or are left out |
//! | [`moments`], [`affine`] | with [`normalize`], the parts of [`train`], for statistics that are masked, merged or blended, and their gradient |
//! | [`blend`] | running statistics |
//! | [`reserve`] | fresh memory for results |
//!
//! Tensors are `f32`, `f64`, `f16` or `bf16` ([`Element`]); the halves compute in `f32`, and vectors of one value per channel are `f32` for them.
//! An [`InOut`] says where a result goes: to other memory, which may be uninitialised, or over the input. An [`Epilogue`] is what follows the
//! normalization in the same pass; its backward recomputes the argument of the activation, so that no output has to be kept.
//!
//! # A step of training
//!
//! ```
//! use batchnorm_cpu::*;
//!
//! // Two samples of three channels, two values each.
//! let layout = Layout::from_shape(&[2, 3, 2], 1)?;
//! let x = [1.0f32, 3.0, 0.0, 0.0, -2.0, 2.0, 5.0, 7.0, 0.0, 0.0, -2.0, 2.0];
//! let affine = Affine { gamma: &[1.0, 1.0, 2.0], beta: &[0.0, 5.0, 0.0] };
//!
//! // The output, and what the backward pass needs: four vectors of one value per channel.
//! let (mut y, mut saved) = ([0.0; 12], [0.0; 4 * 3]);
//! let out = Statistics::split_mut(&mut saved, 3)?;
//! train(layout, InOut::new(&x, &mut y[..]), affine, 1e-5, Epilogue::default(), out)?;
//! let statistics = Statistics::split(&saved, 3)?;
//! assert_eq!((statistics.mean, statistics.variance), (&[4.0, 0.0, 0.0][..], &[5.0, 0.0, 4.0][..]));
//! assert_eq!(y[2..4], [5.0, 5.0]); // a constant channel gives exactly beta
//!
//! // The gradient of y is overwritten with that of x.
//! let mut gradient = [0.5, -1.0, 2.0, 0.0, 0.0, 1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0];
//! let mut beta_grad = [0.0; 3];
//! let out = Gradients { beta: Some(&mut beta_grad), ..Gradients::default() };
//! let (dy, saved) = (InOut::in_place(&mut gradient), Saved::Batch(statistics));
//! backward(layout, &x, dy, saved, affine, Epilogue::default(), out)?;
//! assert_eq!(beta_grad, [-0.5, 4.0, 1.0]);
//! # Ok::<(), Error>(())
//! ```
//!
//! The running statistics are the caller's; [`blend`] moves them. [`normalize`] with them is inference.
//!
//! # Promises
//!
//! - Statistics and sums accumulate in `f32` within a block and in `f64` between blocks. The variance is taken about a value near the mean,
//!   which is checked: with a mean of 1e4 and a standard deviation of 1 it keeps four digits in `f32`. A constant channel gives exactly `beta`.
//!   Magnitudes up to 1e38 (`f64`: 1e153) give right outputs. NaN and infinity stay within their channel.
//! - Results depend on the shape and the instruction set, not on the number of threads: they are equal bit by bit.
//! - Masks and the derivatives of activations select, they do not multiply: a gradient that is infinite where ReLU is off becomes 0.
//! - Wrong lengths and senseless numbers are an [`Error`], before anything is written. No call panics for its arguments.
//! - A call may wait for the jobs of the rayon pool that it runs in: hold no lock over it that they take.
//! - An empty tensor has mean and variance 0; a single value per channel has variance 0.
//!
//! # Where to read on
//!
//! The algorithm is told in the sources: `simd/moments.rs` (variance), `backward.rs` (derivation of the gradient), `tiling.rs` (how a tensor is cut),
//! `driver.rs` (order of events), `parallel.rs` (threads), `simd/mod.rs` (vectors; nearly all `unsafe` code is in that folder).

mod activation;
mod backward;
mod blend;
mod cache;
mod compiled;
mod cut;
mod driver;
mod element;
mod error;
mod forward;
mod layout;
mod memory;
mod normalize;
mod parallel;
#[cfg(feature = "reference")]
pub mod reference;
mod simd;
mod statistics;
mod tiling;
mod weighted;

pub use activation::{Activation, Epilogue};
pub use backward::{Gradients, Saved, backward};
pub use blend::blend;
pub use element::{Accum, Element};
pub use error::Error;
pub use forward::{moments, train};
pub use layout::Layout;
pub use memory::{InOut, Output, reserve};
pub use normalize::{affine, normalize};
pub use simd::Isa;
pub use statistics::{Affine, Given, Statistics};
pub use weighted::{Weights, backward_weighted, normalize_weighted, train_weighted};
