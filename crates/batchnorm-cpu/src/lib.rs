//! Batch normalization on slices: fused kernels for training and inference, forward and backward.
//!
//! The crate knows no tensor library. It takes slices and a [`Layout`], vectorizes with the best instruction set of the processor that it runs on
//! (chosen at run time, nothing to compile for), uses the threads of the current rayon pool where that pays, and allocates nothing of the size
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
//! | [`train_forward`] | statistics of the batch, and `y = act((x - mean) * inv_std * gamma + beta + residual)` |
//! | [`normalize`] | the output with given statistics: inference |
//! | [`backward`] | the gradients of x, gamma, beta and the residual, of either |
//! | [`moments`], [`backward_sums`], [`input_grad`] | with [`normalize`], the parts of the above, for statistics that are masked, merged or blended |
//! | [`RunningUpdate`] | running statistics |
//!
//! Tensors are `f32`, `f64`, `f16` or `bf16` ([`Element`]); the halves compute in `f32`, and vectors of one value per channel are `f32` for them.
//! A [`Stream`] says where a result goes: to other memory, which may be uninitialised, or over the input. An [`Epilogue`] is what follows the
//! normalization in the same sweep; its backward recomputes the sign of the activation's argument, so that no output has to be kept.
//!
//! ```
//! use batchnorm_cpu::*;
//!
//! // Two samples of three channels, two values each.
//! let layout = Layout::from_shape(&[2, 3, 2], 1)?;
//! let x = [1.0f32, 3.0, 0.0, 0.0, -2.0, 2.0, 5.0, 7.0, 0.0, 0.0, -2.0, 2.0];
//! let (gamma, beta) = ([1.0, 1.0, 2.0], [0.0, 5.0, 0.0]);
//! let (mut mean, mut variance, mut inv_std) = ([0.0; 3], [0.0; 3], [0.0; 3]);
//!
//! let mut y = [0.0; 12];
//! let affine = Affine { gamma: &gamma, beta: &beta };
//! let out = BatchStatistics { mean: &mut mean, mean_low: None, variance: &mut variance, inv_std: &mut inv_std };
//! train_forward(layout, Stream::new(&x, &mut y[..]), affine, 1e-5, Epilogue::default(), out)?;
//! assert_eq!((mean, variance), ([4.0, 0.0, 0.0], [5.0, 0.0, 4.0]));
//! assert_eq!(y[2..4], [5.0, 5.0]); // a constant channel gives exactly beta
//!
//! // The gradient is overwritten with that of the input.
//! let mut gradient = [0.5, -1.0, 2.0, 0.0, 0.0, 1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0];
//! let saved = Saved {
//!     gamma: &gamma,
//!     beta: &beta,
//!     mean: &mean,
//!     mean_low: None,
//!     inv_std: &inv_std,
//!     statistics: Statistics::OfBatch,
//! };
//! let mut dbeta = [0.0; 3];
//! let out = Gradients { beta: Some(&mut dbeta), ..Gradients::default() };
//! backward(layout, &x, Stream::in_place(&mut gradient), saved, Epilogue::default(), out)?;
//! assert_eq!(dbeta, [-0.5, 4.0, 1.0]);
//! # Ok::<(), Error>(())
//! ```
//!
//! # Promises
//!
//! - Statistics and sums accumulate in `f32` within a block and in `f64` between blocks. The variance is taken about a value near the mean,
//!   which is checked: with a mean of 1e4 and a standard deviation of 1 it keeps four digits in `f32`. A constant channel gives exactly `beta`. Magnitudes
//!   up to 1e30 give finite, right outputs. NaN and infinity stay within their channel.
//! - Results depend on the shape and the instruction set, not on the number of threads: they are equal bit by bit.
//! - Wrong lengths and senseless numbers are an [`Error`], before anything is written. No call panics for its arguments.
//! - An empty tensor has mean and variance 0; a single value per channel has variance 0.
//!
//! # Where to read on
//!
//! The algorithm is told in the sources: `moments.rs` (variance), `backward.rs` (derivation of the gradient), `plan.rs` (how a tensor is cut),
//! `engine.rs` (order of events), `parallel.rs` (threads), `simd/mod.rs` (vectors; all `unsafe` code is in that folder).

mod activation;
mod backward;
mod chunks;
mod element;
mod engine;
mod error;
mod forward;
mod layout;
mod moments;
mod parallel;
mod plan;
mod primitives;
#[cfg(feature = "reference")]
pub mod reference;
mod running;
mod simd;
mod stream;
mod sweep;

pub use activation::Activation;
pub use backward::{Gradients, Saved, Statistics, backward};
pub use element::{Accum, Element};
pub use error::Error;
pub use forward::{Affine, BatchStatistics, train_forward};
pub use layout::Layout;
pub use primitives::{Coefficients, Normalization, backward_sums, input_grad, moments, normalize};
pub use running::{Averaging, Estimator, RunningUpdate};
pub use simd::Isa;
pub use stream::{Epilogue, Output, Stream};
