//! From burn-nn's layer and back.
//!
//! A whole model needs no conversion of its layers: its record is the same with either, so
//! `ours.load_record(theirs.valid().train().into_record())` takes all of it. `valid()` enters the update of the
//! last step, which burn-nn's layer parks until somebody asks. The other way, a model in a half type needs
//! `.cast_to_module_dtype()`: its record has f32 statistics, and burn-nn's layer wants them in its own type.

use burn::module::{Module, RunningState as BurnState};
use thiserror::Error;

use crate::checks::{cast, output_dtype, under};
use crate::{Activation, BatchNorm, BatchNormConfig, Inference, RunningState};

/// What burn-nn's layer cannot do, and so no conversion to it can.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error(
    "burn-nn's batch norm has no {}: the converted layer would compute something else. Keep this layer \
     there, or change the option.",
    .options.join(", no ")
)]
pub struct ConversionError {
    /// The options that stand in the way, as `name: value`.
    pub options: Vec<String>,
}

/// The layer of the same parameters, statistics and behaviour: [`BatchNormConfig::burn`].
///
/// burn-nn parks an update of the statistics until somebody asks; what is parked is taken along.
impl From<burn::nn::BatchNorm> for BatchNorm {
    fn from(layer: burn::nn::BatchNorm) -> Self {
        let [channels] = layer.gamma.shape().dims();
        let settled = layer.valid();
        let mut converted = BatchNormConfig::burn(channels).init(&layer.gamma.device());
        converted.running_mean.update(settled.running_mean.value());
        converted.running_var.update(settled.running_var.value());
        converted.gamma = layer.gamma;
        converted.beta = layer.beta;
        converted.training = layer.training;
        converted.momentum = layer.momentum;
        converted.epsilon = layer.epsilon;
        converted
    }
}

/// The layer of the same parameters and statistics, for inference with the same results. In training
/// burn-nn's rules hold from then on: the biased running variance, an exponential average.
///
/// # Errors
///
/// If the layer has an activation, channels elsewhere than on axis 1, no running statistics, or an inference
/// by others.
impl TryFrom<BatchNorm> for burn::nn::BatchNorm {
    type Error = ConversionError;

    fn try_from(layer: BatchNorm) -> Result<Self, ConversionError> {
        let config = layer.config();
        let mut options = Vec::new();
        if config.activation != Activation::None {
            options.push(format!("activation: {:?}", config.activation));
        }
        if config.channel_axis != 1 {
            options.push(format!("channel_axis: {}", config.channel_axis));
        }
        if !config.running_stats {
            options.push("running_stats: false".to_string());
        }
        if config.inference != Inference::Running {
            options.push(format!("inference: {:?}", config.inference));
        }
        if !options.is_empty() {
            return Err(ConversionError { options });
        }
        let device = layer.gamma.device();
        // burn-nn's layer adds to them what it computes in the type of its parameters.
        let dtype = output_dtype(layer.gamma.dtype());
        let state =
            |state: &RunningState| BurnState::new(under(cast(state.value(), dtype), &device));
        Ok(Self {
            running_mean: state(&layer.running_mean),
            running_var: state(&layer.running_var),
            gamma: layer.gamma,
            beta: layer.beta,
            training: layer.training,
            momentum: layer.momentum,
            epsilon: layer.epsilon,
        })
    }
}
