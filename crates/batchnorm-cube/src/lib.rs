//! Batch normalization in CubeCL: fused forward and backward kernels for every runtime of CubeCL.
//!
//! The crate knows no tensor library: it takes a [`Client`](cubecl::prelude::Client) and buffers ([`Handle`](cubecl::server::Handle)) that
//! the caller has allocated, and launches. Nothing is read back and nothing waits.
//!
//! # One view of memory
//!
//! Any contiguous tensor with a channel axis is `(outer, channels, inner)` ([`Layout`]): `[N, C, H, W]` with axis 1 is `(N, C, H * W)`,
//! channels-last `[N, H, W, C]` is `(N * H * W, C, 1)`. A channel's statistics are those of its column of this picture:
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
//! | [`train`] | statistics of the batch, `y = act((x - mean) * inv_std * gamma + beta + residual)`, running statistics | 1, or 3 |
//! | [`train_backward`] | the gradients of x, gamma, beta and the residual | 1, or 3 |
//! | [`normalize`] | the output with given statistics: inference | 1 |
//! | [`normalize_backward`] | its gradients | 1, or 2 |
//! | [`moments`] | mean and sum of squared deviations | 2 |
//! | [`backward_sums`] | `sum dy` and `sum dy * (x - mean)` | 1, or 2 |
//! | [`input_grad`] | `a * dy + b * (x - mean) + c` | 1 |
//!
//! The first number holds where a channel is reduced by a single cube, the second where channels are few and large and are split over the
//! grid. Every function returns its [`Launches`], with the bytes that they move.
//!
//! ```no_run
//! use batchnorm_cube::*;
//! use cubecl::Device;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let client = Device::default().client();
//! let layout = Layout::from_shape(&[32, 64, 56, 56], 1)?;
//! let problem = Problem::new(layout, Element::F32);
//!
//! let x = client.create_from_slice(&vec![0; 4 * layout.len()]);
//! let gamma = client.create_from_slice(&1f32.to_ne_bytes().repeat(layout.channels));
//! let beta = client.create_from_slice(&0f32.to_ne_bytes().repeat(layout.channels));
//! let y = client.empty(4 * layout.len());
//! let variance = client.empty(4 * layout.channels);
//! let saved = client.empty(3 * 4 * layout.channels);
//!
//! let affine = Affine { scale: &gamma, shift: &beta };
//! let params = TrainParams { epsilon: 1e-5, factor: 0.1, correction: 1.0 };
//! let epilogue = Epilogue { activation: Activation::Relu, residual: None };
//! let out = TrainOutputs { y: Target::To(&y), mean: None, variance: &variance, saved: &saved };
//! let launches = train(&client, problem, &x, affine, None, params, epilogue, out)?;
//! println!("{} launches move {} bytes", launches.count(), launches.bytes());
//! # Ok(())
//! # }
//! ```
//!
//! # Promises
//!
//! - Arithmetic, statistics and parameters are `f32` for `f32`, `f16` and `bf16` tensors and `f64` for `f64` ones. A type that the device
//!   lacks is an [`Error`] that names it.
//! - The variance is centred and merged by Chan's formula; the mean is a sum of two floats. With a mean of 1e4 and a deviation of 1 an `f32`
//!   forward is within 1e-5 of the exact one. A constant channel gives exactly `beta`. Deviations from about 1e-18 to 1e17 can be squared and
//!   summed in `f32`, whatever the mean; beyond, the variance overflows. NaN stays within its channel.
//! - Results are a function of the tensor, the device's properties and the [`Strategy`]: the same call gives the same bits. No atomics.
//! - Wrong lengths, senseless numbers and missing capabilities are an [`Error`] before anything is launched. Of an empty tensor nothing is
//!   launched and nothing written. A launch that fails on the device is reported by CubeCL at the next read or synchronisation.
//!
//! # Buffers
//!
//! Inputs and outputs are contiguous; an output may share memory with an input only as [`Target::InPlace`]. Besides CubeCL's own buffer a
//! training forward in one launch binds 5 storage buffers, 4 more with running statistics and one more each for `y` apart, `mean` and a
//! residual; in three launches at most 8 (7 without `mean`). A backward binds 7 in one launch and one more each for the input gradient
//! apart, a residual and its gradient; in three launches at most 9. A device that cannot bind what one launch needs gets the three.
//!
//! # Where to read on
//!
//! `strategy.rs` cuts a problem into cubes, `blueprint.rs` is what a kernel knows when it is compiled, `launch.rs` binds and launches. The
//! algorithms are told in `kernels/`: `walk.rs` (which unit reads what), `moments.rs` (variance), `merge.rs` (partial results), `backward.rs`
//! (derivation of the gradient).

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
mod problem;
mod strategy;

pub use activation::Activation;
pub use args::{
    Affine, Coefficients, Epilogue, Gradients, Running, Target, TrainOutputs, TrainParams,
};
pub use backward::{backward_sums, input_grad, normalize_backward, train_backward};
pub use cost::{Launch, Launches};
pub use error::Error;
pub use forward::{moments, normalize, train};
pub use problem::{Element, Layout, Problem};
pub use strategy::Strategy;
