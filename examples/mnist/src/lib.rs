//! The article's dense network with batch normalization, trained on MNIST-style images.
//!
//! The example of [`burn_batchnorm`]: `input -> Dense(50, ReLU) -> BN -> Dense(10)`, Adam, ten
//! epochs of 32 images a step, with Burn's own `SupervisedTraining` around it. The binary is a
//! shell around this library, so that tests and benchmarks can use the parts:
//!
//! | module | what it holds |
//! |--------|---------------|
//! | [`data`] | IDX files, the embedded images, scaling, split, batches from memory |
//! | [`model`] | the network, with this project's layer, burn-nn's or none |
//! | [`training`] | training with the Learner, and [`training::bare_loop`] to measure it against |
//! | [`metrics`], [`history`], [`checkpoint`], [`progress`] | what the Learner is given |
//! | [`evaluation`], [`predict`], [`compare`] | the other commands |
//! | [`artifacts`], [`report`], [`plots`] | files, tables and pictures |
//!
//! ```
//! # #[cfg(feature = "flex")] {
//! use mnist::config::{FORMAT, RunConfig, TrainingConfig};
//! use mnist::data::Source;
//! use mnist::model::{ModelConfig, NormKind};
//! use mnist::training::{Session, TrainingData, train};
//!
//! let data = Source::Embedded.load()?;
//! let config = RunConfig {
//!     format: FORMAT,
//!     data: "embedded".to_string(),
//!     device: "flex".to_string(),
//!     model: ModelConfig { input: 100, hidden: 50, norm: NormKind::Batch, bn_before_activation: false },
//!     training: TrainingConfig { epochs: 1, ..TrainingConfig::default() },
//!     class_names: data.class_names.clone(),
//! };
//! let images = TrainingData::new(&config, &data.train)?;
//! let device = mnist::device::resolve("flex")?.device();
//! let trained = train(&config, &images, &device, Session::silent())?;
//! assert!(trained.history.rows[0].train_accuracy > 0.5);
//! # }
//! # Ok::<(), mnist::error::Error>(())
//! ```

pub mod artifacts;
pub mod checkpoint;
pub mod cli;
pub mod commands;
pub mod compare;
pub mod config;
pub mod data;
pub mod device;
pub mod error;
pub mod evaluation;
pub mod history;
pub mod metrics;
pub mod model;
pub mod plots;
pub mod predict;
pub mod progress;
pub mod quiet;
pub mod report;
pub mod rng;
pub mod run;
pub mod training;
