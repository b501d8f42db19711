//! The settings of a run, saved beside the model as `config.json`.

use serde::{Deserialize, Serialize};

use crate::data::Source;
use crate::model::ModelConfig;

/// Version of the files in an output folder; another one is refused instead of misread.
pub const FORMAT: u32 = 1;

/// All that is needed to repeat a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunConfig {
    /// [`FORMAT`] at the time of writing.
    pub format: u32,
    /// Where the images come from, as given to `--data`; folders as absolute paths.
    pub data: String,
    /// The device that was trained on, as given to `--device` after `auto` is resolved.
    pub device: String,
    /// The network.
    pub model: ModelConfig,
    /// How it is trained.
    pub training: TrainingConfig,
    /// Name of each class, in the order of the labels.
    pub class_names: Vec<String>,
}

impl RunConfig {
    /// Where the images come from.
    pub fn source(&self) -> Source {
        Source::from(self.data.as_str())
    }
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
