//! The configurations that other frameworks' layers stand for.

use super::{BatchNormConfig, SingleValue, Variance};

impl BatchNormConfig {
    /// `torch.nn.BatchNorm1d/2d/3d`: epsilon 1e-5, weight of the new batch 0.1, unbiased running
    /// variance, channels on axis 1, one value per channel refused.
    pub fn pytorch(num_features: usize) -> Self {
        Self::new(num_features)
    }

    /// `keras.layers.BatchNormalization` (Keras 3): epsilon 1e-3, momentum 0.99 (0.01 here), biased
    /// running variance, channels last. One value per channel is accepted; the running statistics
    /// then stay, where Keras moves the variance towards 0.
    pub fn keras(num_features: usize) -> Self {
        Self::new(num_features)
            .with_epsilon(1e-3)
            .with_momentum(0.01)
            .with_variance(Variance::Biased)
            .with_channel_axis(-1)
            .with_single_value(SingleValue::SkipUpdate)
    }

    /// `flax.nnx.BatchNorm`: epsilon 1e-5, momentum 0.99 (0.01 here), biased running variance,
    /// channels last. One value per channel as with [`keras`](Self::keras).
    pub fn flax(num_features: usize) -> Self {
        Self::keras(num_features).with_epsilon(1e-5)
    }

    /// ONNX `BatchNormalization` (opset 15): epsilon 1e-5, momentum 0.9 (0.1 here), biased running
    /// variance, channels on axis 1. One value per channel as with [`keras`](Self::keras).
    pub fn onnx(num_features: usize) -> Self {
        Self::burn(num_features)
    }

    /// `burn::nn::BatchNorm` 0.22: epsilon 1e-5, weight of the new batch 0.1, biased running
    /// variance, channels on axis 1. One value per channel as with [`keras`](Self::keras).
    pub fn burn(num_features: usize) -> Self {
        Self::new(num_features)
            .with_variance(Variance::Biased)
            .with_single_value(SingleValue::SkipUpdate)
    }
}
