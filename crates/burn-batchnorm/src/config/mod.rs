//! What a layer can be told: its configuration, and the options' types.

mod activation;
mod policies;
mod presets;
mod statistics;

use burn::config::{Config, config_to_json};
use burn::tensor::DType;
use serde::{Deserialize, Serialize};

pub use activation::Activation;
pub use policies::{Averaging, MaskedOutput, Memory, NonFinite, SingleValue, Variance};
pub use statistics::{Bound, Ghost, GhostVariance, Inference, Reference, Renorm, Statistics};

use crate::BatchNormError;

/// Configuration of a [`BatchNorm`](crate::BatchNorm) layer.
///
/// Holds everything of `burn::nn::BatchNormConfig`, whose saved configurations it reads: a field
/// that a file lacks takes its default. `Default` semantics are PyTorch's; [`keras`](Self::keras),
/// [`flax`](Self::flax), [`onnx`](Self::onnx) and [`burn`](Self::burn) set those of the others.
///
/// ```
/// use burn_batchnorm::{BatchNormConfig, Variance};
///
/// let config = BatchNormConfig::new(64).with_momentum(0.01).with_variance(Variance::Biased);
/// assert_eq!(config.epsilon, 1e-5);
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BatchNormConfig {
    /// The number of channels. Must be greater than zero.
    pub num_features: usize,
    /// Added to the variance inside the square root. Finite, and at least the smallest normal value
    /// of the type that is computed in: 1.2e-38 for f32 and half inputs. Default: 1e-5
    #[serde(default = "default_epsilon")]
    pub epsilon: f64,
    /// Weight of the new batch in the running statistics, within `[0, 1]`. Default: 0.1
    ///
    /// 0 preserves them, 1 replaces them. Keras and Flax state the weight of the old value: their
    /// 0.99 is 0.01 here.
    #[serde(default = "default_momentum")]
    pub momentum: f64,
    /// How batches are averaged. Default: [`Averaging::Exponential`]
    #[serde(default)]
    pub averaging: Averaging,
    /// Estimator of the running variance. Default: [`Variance::Unbiased`]
    #[serde(default)]
    pub variance: Variance,
    /// Whether `gamma` is a parameter; if not it stays 1 and is not recorded. Default: true
    #[serde(default = "enabled")]
    pub scale: bool,
    /// Whether `beta` is a parameter; if not it stays 0 and is not recorded. Default: true
    #[serde(default = "enabled")]
    pub shift: bool,
    /// What gamma starts at: 0 in the last layer of a residual block makes the block begin as the identity
    /// ([Goyal et al. 2017](https://arxiv.org/abs/1706.02677)). Finite in f32. Default: 1
    #[serde(default = "one")]
    pub initial_gamma: f64,
    /// What beta starts at. Finite in f32. Default: 0
    #[serde(default)]
    pub initial_beta: f64,
    /// Whether running statistics are kept; if not, inference too normalizes by the statistics of
    /// its batch, and none are recorded. Default: true
    #[serde(default = "enabled")]
    pub running_stats: bool,
    /// Axis of the channels; negative counts from the end (-1: channels last). Default: 1
    #[serde(default = "default_channel_axis")]
    pub channel_axis: isize,
    /// What follows the normalization, fused with it: `relu(bn(x))` in one pass over memory, and one
    /// tensor less kept for the backward pass. Default: [`Activation::None`]
    #[serde(default)]
    pub activation: Activation,
    /// Policy for one value per channel. Default: [`SingleValue::Error`]
    #[serde(default)]
    pub single_value: SingleValue,
    /// Which statistics a training pass normalizes by. Default: [`Statistics::Batch`]
    #[serde(default)]
    pub statistics: Statistics,
    /// Which statistics normalize where the layer does not train. Default: [`Inference::Running`]
    #[serde(default)]
    pub inference: Inference,
    /// Whether training passes enter the running statistics. Default: true
    #[serde(default = "enabled")]
    pub update_statistics: bool,
    /// Whether `gamma` and `beta` get gradients. Default: true
    #[serde(default = "enabled")]
    pub train_affine: bool,
    /// What a NaN or an infinity in a batch does. Default: [`NonFinite::Propagate`]
    #[serde(default)]
    pub non_finite: NonFinite,
    /// What a masked pass returns where the mask admits nothing. Default: [`MaskedOutput::Normalize`]
    #[serde(default)]
    pub masked_output: MaskedOutput,
    /// What a training pass keeps for its backward pass. Default: [`Memory::Input`]
    #[serde(default)]
    pub memory: Memory,
}

fn default_epsilon() -> f64 {
    1e-5
}

fn default_momentum() -> f64 {
    0.1
}

fn default_channel_axis() -> isize {
    1
}

fn one() -> f64 {
    1.0
}

fn enabled() -> bool {
    true
}

impl BatchNormConfig {
    /// The defaults, for `num_features` channels: [`pytorch`](Self::pytorch).
    pub fn new(num_features: usize) -> Self {
        Self {
            num_features,
            epsilon: default_epsilon(),
            momentum: default_momentum(),
            averaging: Averaging::Exponential,
            variance: Variance::Unbiased,
            scale: true,
            shift: true,
            initial_gamma: 1.0,
            initial_beta: 0.0,
            running_stats: true,
            channel_axis: default_channel_axis(),
            activation: Activation::None,
            single_value: SingleValue::Error,
            statistics: Statistics::Batch,
            inference: Inference::Running,
            update_statistics: true,
            train_affine: true,
            non_finite: NonFinite::Propagate,
            masked_output: MaskedOutput::Normalize,
            memory: Memory::Input,
        }
    }

    /// Sets [`epsilon`](Self::epsilon).
    pub fn with_epsilon(mut self, epsilon: f64) -> Self {
        self.epsilon = epsilon;
        self
    }

    /// Sets [`momentum`](Self::momentum), the weight of the new batch.
    pub fn with_momentum(mut self, momentum: f64) -> Self {
        self.momentum = momentum;
        self
    }

    /// Sets [`averaging`](Self::averaging).
    pub fn with_averaging(mut self, averaging: Averaging) -> Self {
        self.averaging = averaging;
        self
    }

    /// Sets the estimator of the running [`variance`](Self::variance).
    pub fn with_variance(mut self, variance: Variance) -> Self {
        self.variance = variance;
        self
    }

    /// Sets whether there is a [`scale`](Self::scale) (`gamma`).
    pub fn with_scale(mut self, scale: bool) -> Self {
        self.scale = scale;
        self
    }

    /// Sets whether there is a [`shift`](Self::shift) (`beta`).
    pub fn with_shift(mut self, shift: bool) -> Self {
        self.shift = shift;
        self
    }

    /// Sets what gamma starts at: [`initial_gamma`](Self::initial_gamma).
    pub fn with_initial_gamma(mut self, initial_gamma: f64) -> Self {
        self.initial_gamma = initial_gamma;
        self
    }

    /// Sets what beta starts at: [`initial_beta`](Self::initial_beta).
    pub fn with_initial_beta(mut self, initial_beta: f64) -> Self {
        self.initial_beta = initial_beta;
        self
    }

    /// Sets whether [`running_stats`](Self::running_stats) are kept.
    pub fn with_running_stats(mut self, running_stats: bool) -> Self {
        self.running_stats = running_stats;
        self
    }

    /// Sets [`channel_axis`](Self::channel_axis).
    pub fn with_channel_axis(mut self, channel_axis: isize) -> Self {
        self.channel_axis = channel_axis;
        self
    }

    /// Sets the [`activation`](Self::activation) that follows.
    pub fn with_activation(mut self, activation: Activation) -> Self {
        self.activation = activation;
        self
    }

    /// Sets the [`single_value`](Self::single_value) policy.
    pub fn with_single_value(mut self, single_value: SingleValue) -> Self {
        self.single_value = single_value;
        self
    }

    /// Sets the [`statistics`](Self::statistics) that a training pass normalizes by.
    pub fn with_statistics(mut self, statistics: Statistics) -> Self {
        self.statistics = statistics;
        self
    }

    /// Sets the statistics that normalize in [`inference`](Self::inference).
    pub fn with_inference(mut self, inference: Inference) -> Self {
        self.inference = inference;
        self
    }

    /// Sets whether training passes [enter](Self::update_statistics) the running statistics.
    pub fn with_update_statistics(mut self, update_statistics: bool) -> Self {
        self.update_statistics = update_statistics;
        self
    }

    /// Sets whether `gamma` and `beta` [train](Self::train_affine).
    pub fn with_train_affine(mut self, train_affine: bool) -> Self {
        self.train_affine = train_affine;
        self
    }

    /// Sets the [`non_finite`](Self::non_finite) policy.
    pub fn with_non_finite(mut self, non_finite: NonFinite) -> Self {
        self.non_finite = non_finite;
        self
    }

    /// Sets the [`masked_output`](Self::masked_output) policy.
    pub fn with_masked_output(mut self, masked_output: MaskedOutput) -> Self {
        self.masked_output = masked_output;
        self
    }

    /// Sets what a training pass keeps in [`memory`](Self::memory).
    pub fn with_memory(mut self, memory: Memory) -> Self {
        self.memory = memory;
        self
    }

    /// Refuses what no input could make valid.
    pub(crate) fn validate(&self) -> Result<(), BatchNormError> {
        if self.num_features == 0 {
            return Err(BatchNormError::NumFeatures);
        }
        self.activation.validate()?;
        validate_epsilon(self.epsilon, DType::F64)?;
        validate_momentum(self.momentum)?;
        for (option, initial, learned) in [
            ("initial_gamma", self.initial_gamma, self.scale),
            ("initial_beta", self.initial_beta, self.shift),
        ] {
            let neutral = initial == f64::from(u8::from(option == "initial_gamma"));
            if !(initial as f32).is_finite() || !learned && !neutral {
                return Err(BatchNormError::Invalid {
                    option,
                    expected: "a value that is finite in f32, and a parameter to start at it (scale, shift)",
                    got: initial.to_string(),
                });
            }
        }
        self.statistics.validate()?;
        self.inference.validate()?;
        for (option, needs_running) in [
            ("statistics", self.statistics.needs_running()),
            (
                "inference",
                matches!(self.inference, Inference::Blend { .. }),
            ),
        ] {
            if needs_running && !self.running_stats {
                return Err(BatchNormError::Conflict { option });
            }
        }
        let undone = match self.activation {
            Activation::None => true,
            // Whose inverse is finite too.
            Activation::LeakyRelu(slope) => slope >= 1e-30,
            _ => false,
        };
        if self.memory == Memory::Output && !undone {
            return Err(BatchNormError::Invalid {
                option: "memory",
                expected: "an activation that can be undone (None, LeakyRelu of a positive slope) to keep the \
                           output alone",
                got: format!("{:?}", self.activation),
            });
        }
        Ok(())
    }

    /// Whether a training pass is what Burn and PyTorch have, with nothing between the statistics and the
    /// normalization: what the fused kernels do in one.
    pub(crate) fn is_plain(&self) -> bool {
        self.statistics == Statistics::Batch && self.non_finite == NonFinite::Propagate
    }

    /// Whether the number of batches decides something.
    pub(crate) fn counts(&self) -> bool {
        self.averaging != Averaging::Exponential || self.statistics.counts()
    }
}

/// `epsilon` must keep `1 / sqrt(0 + epsilon)` finite in the type that is computed in: devices take
/// what is below its smallest normal value for 0.
pub(crate) fn validate_epsilon(epsilon: f64, dtype: DType) -> Result<(), BatchNormError> {
    let (smallest, largest) = match dtype {
        DType::F64 => (f64::MIN_POSITIVE, f64::MAX),
        _ => (f32::MIN_POSITIVE.into(), f32::MAX.into()),
    };
    match (smallest..=largest).contains(&epsilon) {
        true => Ok(()),
        false => Err(BatchNormError::Epsilon { epsilon, smallest }),
    }
}

pub(crate) fn validate_momentum(momentum: f64) -> Result<(), BatchNormError> {
    match (0.0..=1.0).contains(&momentum) {
        true => Ok(()),
        false => Err(BatchNormError::Momentum { momentum }),
    }
}

// What `#[derive(Config)]` would add. The derive itself is not used because its `Deserialize` refuses
// a file that lacks a field with a default, such as every configuration that burn-nn's layer saved.
impl Config for BatchNormConfig {}

impl core::fmt::Display for BatchNormConfig {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(&config_to_json(self))
    }
}
