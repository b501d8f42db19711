//! The settings of a run, saved as `config.json`.

use std::fmt::{Debug, Display};
use std::ops::{RangeBounds, RangeInclusive};

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

use crate::cli::NetworkArgs;
use crate::data::{CLASSES, Dataset, Scale};
use crate::device::NamedDevice;
use crate::model::{ModelConfig, NormKind};

/// Version of the files in an output folder; another one is refused instead of misread.
pub const FORMAT: u32 = 2;

/// What tells a `config.json` of this program from those of others.
pub const PROGRAM: &str = "burn-batchnorm/examples/mnist";

/// Valid widths of the hidden layer.
pub const HIDDEN: RangeInclusive<u64> = 1..=65_536;
/// Valid batch sizes: one image has no variance.
pub const BATCH_SIZE: RangeInclusive<u64> = 2..=1_000_000;
/// Valid numbers of epochs.
pub const EPOCHS: RangeInclusive<u64> = 1..=1_000_000;
/// Valid learning rates.
pub const LEARNING_RATE: RangeInclusive<f64> = f64::MIN_POSITIVE..=10.0;
/// Valid shares of validation images.
pub const VALIDATION: RangeInclusive<f64> = 0.0..=0.5;

/// All that is needed to repeat a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunConfig {
    /// [`PROGRAM`].
    pub program: String,
    /// [`FORMAT`] at the time of writing.
    pub format: u32,
    /// Where the images come from, as given to `--data`; folders as absolute paths.
    pub data: String,
    /// The device that was trained on, as given to `--device` after `auto` is resolved.
    pub device: String,
    /// How pixels become inputs.
    pub scale: Scale,
    /// The network.
    pub model: ModelConfig,
    /// How it is trained.
    pub training: TrainingConfig,
    /// Name of each class, in the order of the labels.
    pub class_names: Vec<String>,
}

/// The training part of [`RunConfig`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrainingConfig {
    /// Passes over the training images.
    pub epochs: usize,
    /// Images in a step. A last batch of one image is joined to the batch before it.
    pub batch_size: usize,
    /// Learning rate of Adam (beta 0.9 and 0.999, epsilon 1e-8 as in PyTorch).
    pub learning_rate: f64,
    /// Of weights, split and order.
    pub seed: u64,
    /// Share of the training images held out for validation; 0 trains on all of them.
    pub validation: f64,
    /// Stop when the validation loss has not improved for this many epochs.
    pub early_stopping: Option<usize>,
}

/// Those of the article, besides the validation share and the seed.
impl Default for TrainingConfig {
    fn default() -> Self {
        Self {
            epochs: 10,
            batch_size: 32,
            learning_rate: 1e-3,
            seed: 42,
            validation: 0.1,
            early_stopping: None,
        }
    }
}

impl RunConfig {
    /// The settings of a new run, from flags where they are given.
    pub fn new(args: &NetworkArgs, norm: NormKind, device: &NamedDevice, data: &Dataset) -> Self {
        let default = TrainingConfig::default();
        Self {
            program: PROGRAM.to_string(),
            format: FORMAT,
            data: data.name.clone(),
            device: device.name.clone(),
            scale: Scale::of(&data.train),
            model: ModelConfig {
                input: args.input.unwrap_or(784),
                hidden: args.hidden.unwrap_or(50),
                norm,
                bn_before_activation: args.bn_before_activation,
                statistics: Default::default(),
            },
            training: TrainingConfig {
                epochs: args.epochs.unwrap_or(default.epochs),
                batch_size: args.batch_size.unwrap_or(default.batch_size),
                seed: args.seed.unwrap_or(default.seed),
                validation: args.validation.unwrap_or(default.validation),
                ..default
            },
            class_names: data.class_names.clone(),
        }
    }

    /// Refuses what the command line would have refused: the file may have been edited.
    pub fn check(&self) -> Result<()> {
        fn within<T: Display + PartialOrd>(
            name: &str,
            value: T,
            range: impl RangeBounds<T> + Debug,
        ) -> Result<()> {
            ensure!(
                range.contains(&value),
                "{name} is {value}, expected {range:?}"
            );
            Ok(())
        }
        let (training, input) = (&self.training, self.model.input);
        ensure!(
            [100, 784].contains(&input),
            "input is {input}, expected 784 or 100"
        );
        within("hidden", self.model.hidden as u64, HIDDEN)?;
        within("epochs", training.epochs as u64, EPOCHS)?;
        within("batch_size", training.batch_size as u64, BATCH_SIZE)?;
        within("learning_rate", training.learning_rate, LEARNING_RATE)?;
        within("validation", training.validation, VALIDATION)?;
        within(
            "early_stopping",
            training.early_stopping.unwrap_or(1) as u64,
            EPOCHS,
        )?;
        within("mean", self.scale.mean, 0.0..=1.0)?;
        within("deviation", self.scale.deviation, 1e-3..=1.0)?;
        let names = self.class_names.len();
        ensure!(
            names == CLASSES,
            "class_names holds {names} names, expected {CLASSES}"
        );
        ensure!(
            training.early_stopping.is_none() || training.validation > 0.0,
            "--early-stopping watches the validation loss: --validation must be above 0"
        );
        Ok(())
    }
}
