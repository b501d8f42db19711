//! Batch normalization for [Burn](https://burn.dev): a drop-in for `burn::nn::BatchNorm` with
//! PyTorch's numbers and the options that PyTorch, Keras and Flax have between them.
//!
//! Replace `use burn::nn::{BatchNorm, BatchNormConfig}` by the same names of this crate and change
//! nothing else:
//!
//! ```
//! use burn::module::Module;
//! use burn::nn::{Linear, LinearConfig};
//! use burn::tensor::{Device, Tensor, activation::relu};
//! use burn_batchnorm::{BatchNorm, BatchNormConfig};
//!
//! #[derive(Module, Debug)]
//! struct Model {
//!     hidden: Linear,
//!     norm: BatchNorm,
//!     output: Linear,
//! }
//!
//! impl Model {
//!     fn new(device: &Device) -> Self {
//!         Self {
//!             hidden: LinearConfig::new(100, 50).init(device),
//!             norm: BatchNormConfig::new(50).init(device),
//!             output: LinearConfig::new(50, 10).init(device),
//!         }
//!     }
//!
//!     fn forward(&self, images: Tensor<2>) -> Tensor<2> {
//!         let hidden = relu(self.hidden.forward(images));
//!         self.output.forward(self.norm.forward(hidden))
//!     }
//! }
//! # let device = Device::default().autodiff();
//! # let logits = Model::new(&device).forward(Tensor::ones([32, 100], &device));
//! # assert_eq!(logits.dims(), [32, 10]);
//! ```
//!
//! - [`BatchNorm`]: the layer, for inputs of every rank from 2 and any channel axis
//! - [`BatchNormConfig`]: its options, with presets of the other frameworks' semantics
//! - [`Activation`]: what may follow, fused
//! - [`BatchNormError`]: what it refuses, and why
//! - [`functional`]: the arithmetic without the state

#[cfg_attr(
    not(feature = "autodiff"),
    allow(dead_code, reason = "only autodiff runs a backward pass")
)]
mod backends;
mod config;
mod error;
pub mod functional;
mod layer;
mod module;
mod operands;
#[cfg_attr(
    not(all(feature = "autodiff", any(feature = "host", feature = "cube"))),
    allow(dead_code, reason = "only autodiff runs a backward pass")
)]
mod ops;
mod options;
mod statistics;
mod view;

pub use config::{Activation, Averaging, BatchNormConfig, SingleValue, Variance};
pub use error::BatchNormError;
pub use layer::BatchNorm;
pub use statistics::fields::{BatchCounter, RunningState};
