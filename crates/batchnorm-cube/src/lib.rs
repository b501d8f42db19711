//! Batch normalization in CubeCL: fused forward and backward kernels for every runtime of CubeCL.
//!
//! In training, every channel of a batch is normalized by the mean and the variance of its own values and then scaled and shifted:
//! `y = (x - mean) / sqrt(variance + epsilon) * gamma + beta` ([paper](https://arxiv.org/abs/1502.03167)). In inference the statistics are given. This
//! crate computes both and their gradients on whatever device [CubeCL](cubecl) runs on. Users of Burn want the layer on top of it,
//! `burn-batchnorm`.
//!
//! The crate knows no tensor library: it takes a [`Client`](cubecl::prelude::Client) and buffers ([`Handle`](cubecl::server::Handle)) that
//! the caller has allocated, and launches. Nothing is read back and nothing waits.
//!
//! # One view of memory
//!
//! A tensor with a channel axis is `(outer, channels, inner)` ([`Layout`]): `[N, C, H, W]` with axis 1 is `(N, C, H * W)`, channels-last
//! `[N, H, W, C]` is `(N * H * W, C, 1)`, also where it is only the memory of a permuted view. There may be gaps between rows. A channel's
//! statistics are those of its column of this picture:
//!
//! ```text
//!              channel 0        channel 1        channel 2
//! outer 0    | inner values   | inner values   | inner values   |
//! outer 1    | inner values   | inner values   | inner values   |
//! ```
//!
//! # What is here
//!
//! | function | computes | launches |
//! |---|---|---|
//! | [`train`] | statistics of the batch, `y = act((x - mean) * inv_std * gamma + beta + residual)`, running statistics | 1, 2 or 3 |
//! | [`train_backward`] | the gradients of x, gamma, beta and the residual | 1, 2 or 3 |
//! | [`moments`] | mean and variance | 1 or 2 |
//! | [`normalize`] | the output with given statistics: inference | 1 |
//! | [`normalize_backward`] | its gradients | 1 or 2 |
//! | [`affine`] | `(x - mean) * scale + shift` | 1 |
//! | [`supports`] | whether a device can do one of these | 0 |
//!
//! The first number holds where a channel is reduced by a single cube, the others where channels are few and large and are split over the
//! grid, among few or many cubes. Every function returns its [`Launches`], with the bytes that they move.
//!
//! # A forward pass of training
//!
//! ```no_run
//! use batchnorm_cube::*;
//! use cubecl::Device;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let client = Device::default().client();
//! let layout = Layout::from_shape(&[32, 64, 56, 56], 1)?;
//! let problem = Problem::new(layout, Element::F32);
//! supports(client.properties(), &problem, Operation::Train { residual: false, weights: false })?;
//!
//! // Tensors are as large as the layout spans; vectors have one value per channel; the statistics are four of them.
//! let x = client.create_from_slice(&vec![0; 4 * layout.span()]);
//! let gamma = client.create_from_slice(&1f32.to_ne_bytes().repeat(layout.channels));
//! let beta = client.create_from_slice(&0f32.to_ne_bytes().repeat(layout.channels));
//! let y = client.empty(4 * layout.span());
//! let statistics = client.empty(4 * 4 * layout.channels);
//!
//! let affine = Affine { gamma: &gamma, beta: &beta };
//! let epilogue = Epilogue { activation: Activation::Relu, residual: None };
//! let out = TrainOutputs { y: Target::To(&y), statistics: &statistics };
//! let launches = train(&client, problem, &x, None, affine, None, 1e-5, epilogue, out)?;
//! println!("{} launches move {} bytes", launches.count(), launches.bytes());
//! # Ok(())
//! # }
//! ```
//!
//! # Promises
//!
//! - Arithmetic, statistics and parameters are `f32` for `f32`, `f16` and `bf16` tensors and `f64` for `f64` ones. A type that the device
//!   lacks is an [`Error`] that names it.
//! - Moments are merged by Chan's formula; the mean is a sum of two floats. With a mean of 1e4 and a deviation of 1 an `f32` forward is
//!   within 1e-5 of the exact one, and an outlier costs the other values no digit. A constant channel gives exactly `beta`, whatever epsilon
//!   is. Outputs are right for deviations from about 1e-18 to 1e37, whatever the mean; a variance beyond `f32` is reported as infinite.
//! - Masks select: where an activation is flat, an infinite gradient gives 0. NaN stays within its channel. A position of weight
//!   0 reaches no statistic, whatever it holds.
//! - Results are a function of the tensor, the device's properties and the [`Strategy`]: the same call gives the same bits. No atomics.
//! - No unit walks more than some thousand vectors, however few channels there are: some drivers end longer loops without a word.
//! - Wrong lengths, senseless numbers and missing capabilities are an [`Error`] before anything is launched; what [`supports`] accepts has no
//!   missing capability. Of an empty tensor nothing is launched and nothing written. A launch that fails on the device is reported by CubeCL
//!   at the next read or synchronisation.
//!
//! # Buffers
//!
//! All tensors of a call have one layout; an output may share memory with an input only as [`Target::InPlace`]. A device that cannot bind
//! what one launch needs gets more launches: training and its backward make do with 7 storage buffers besides CubeCL's own, as many as WebGPU
//! promises.
//!
//! # Where to read on
//!
//! `strategy.rs` cuts a problem into cubes, by the numbers in `tuning.rs`, `support.rs` tells what a device can do, `blueprint.rs` is what a
//! kernel knows when it is compiled, `launch.rs` binds and launches. The algorithms are told in `kernels/`: `walk.rs` (which unit reads what), `moments.rs`
//! (variance), `merge.rs` (partial results), `backward.rs` (derivation of the gradient), `weighted.rs` (weights).

mod activation;
mod args;
mod backward;
mod blueprint;
mod cost;
mod device;
mod error;
mod forward;
mod gradients;
mod kernels;
mod launch;
mod layout;
mod normalize;
mod problem;
mod strategy;
mod support;
mod tuning;

pub use activation::Activation;
pub use args::{Affine, Center, Epilogue, Gradients, Running, Target, TrainOutputs, Weights};
pub use backward::{normalize_backward, train_backward};
pub use cost::{Launch, Launches};
pub use error::Error;
pub use forward::{moments, train};
pub use layout::Layout;
pub use normalize::{affine, normalize};
pub use problem::{Element, Problem};
pub use strategy::Strategy;
pub use support::{Operation, supports};
#[cfg(feature = "tuning")]
#[doc(hidden)]
pub use tuning::Tuning;
