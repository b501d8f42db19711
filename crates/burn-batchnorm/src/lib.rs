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
//! - [`Mask`]: which positions of a batch count
//! - [`hold`], [`Snapshot`], [`recalibrate`], [`health`]: the running statistics of a whole model, held back, put
//!   aside, computed anew, examined
//! - [`DomainBatchNorm`], [`FrozenBatchNorm`]: the layer with several sets of statistics, and with none
//! - [`Activation`]: what may follow, fused
//! - [`BatchNormError`]: what it refuses, and why
//! - [`functional`]: the arithmetic without the state, in two differentiable halves
//! - [`fold`]: batch norm folded into its neighbours, for inference
//! - `store` (feature `store`): weights of PyTorch, Keras and Flax, in and out
//!
//! # The house
//!
//! Who calls whom, from the user down to the arithmetic. An option is one file in `options`, between
//! `moments` and `normalize`, and one line of the layer.
//!
//! ```text
//!  layer.rs        BatchNorm: what it is and what it holds
//!   |  pass.rs     forward: checks, chooses the statistics, runs
//!   |  module.rs   as a Burn module: what records, optimizers and forks see
//!   |  config/     what it can be told           error.rs  what it refuses
//!   |  convert.rs  burn-nn's layer, both ways    fold/     into the layers beside it
//!   |  store/      other frameworks' weights
//!   |
//!   +--> statistics/   one state, one lock
//!   |      update.rs     keep * old + add * batch
//!   |      worker.rs     clones, forks, and what they report
//!   |      fields.rs     running_mean, running_var, num_batches_tracked: views of the state
//!   |
//!   +--> operands.rs <-- functional.rs     every check (checks.rs), then one operation
//!          |  options/       tensor algebra between moments and normalize
//!          v
//!        ops/            train, moments, normalize, backward, affine
//!          |  autodiff.rs    the nodes
//!          |  composed.rs    the same in Burn's operations, on any backend
//!          v
//!        backends/       flex.rs, ndarray.rs -> host.rs -> batchnorm-cpu
//!                        cube.rs, buffers.rs ----------> batchnorm-cube
//! ```

#[cfg_attr(
    not(feature = "autodiff"),
    allow(dead_code, reason = "only autodiff runs a backward pass")
)]
mod backends;
mod checks;
mod config;
mod convert;
mod error;
pub mod fold;
pub mod functional;
mod layer;
mod module;
mod operands;
#[cfg_attr(
    not(all(feature = "autodiff", feature = "cube")),
    allow(dead_code, reason = "a GPU's backward pass uses all of it")
)]
mod ops;
mod options;
mod pass;
mod statistics;
#[cfg(feature = "store")]
pub mod store;
mod view;

pub use config::{
    Activation, Averaging, BatchNormConfig, Bound, Ghost, GhostVariance, Inference, MaskedOutput,
    Memory, NonFinite, Reference, Renorm, SingleValue, Statistics, Variance,
};
pub use convert::ConversionError;
pub use error::BatchNormError;
pub use layer::BatchNorm;
pub use options::domains::{DomainBatchNorm, DomainBatchNormConfig};
pub use options::frozen::FrozenBatchNorm;
pub use options::health::{Health, LayerHealth, health};
pub use options::hold::{Held, hold};
pub use options::mask::Mask;
pub use options::recalibrate::{Recalibration, recalibrate};
pub use options::snapshot::Snapshot;
pub use pass::With;
pub use statistics::fields::{BatchCounter, RunningState};
