//! The article's network: input -> Dense(hidden, ReLU) -> BN -> Dense(10).

use burn::module::{Module, Param};
use burn::nn::{Linear, LinearConfig};
use burn::tensor::{Device, Tensor, TensorData, activation};
use serde::{Deserialize, Serialize};

use crate::data::CLASSES;
use crate::rng::{Rng, Stream};

/// Which layer normalises.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum NormKind {
    /// This project's layer.
    Batch,
    /// The layer of burn-nn, for comparison.
    Burn,
    /// No normalization.
    None,
}

impl std::fmt::Display for NormKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Batch => "batch",
            Self::Burn => "burn",
            Self::None => "none",
        })
    }
}

/// Shape of the network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelConfig {
    /// Number of inputs: 784, or 100 for images reduced to 10x10.
    pub input: usize,
    /// Width of the hidden layer.
    pub hidden: usize,
    /// The normalization.
    pub norm: NormKind,
    /// Dense -> BN -> ReLU in place of the article's Dense -> ReLU -> BN.
    pub bn_before_activation: bool,
}

impl ModelConfig {
    /// A network with weights drawn from `seed`: the same on every device.
    pub fn init(&self, seed: u64, device: &Device) -> Classifier {
        Classifier {
            dense: dense(
                self.input,
                self.hidden,
                Rng::new(seed, Stream::Weights(1)),
                device,
            ),
            norm: Norm::new(self.norm, self.hidden, device),
            output: dense(
                self.hidden,
                CLASSES,
                Rng::new(seed, Stream::Weights(2)),
                device,
            ),
            bn_before_activation: self.bn_before_activation,
        }
    }

    /// The layers in words.
    pub fn describe(&self) -> String {
        let norm = match self.norm {
            NormKind::Batch => "BatchNorm (burn-batchnorm)",
            NormKind::Burn => "BatchNorm (burn-nn)",
            NormKind::None => "",
        };
        let hidden = match (norm.is_empty(), self.bn_before_activation) {
            (true, _) => "ReLU".to_string(),
            (false, false) => format!("ReLU -> {norm}"),
            (false, true) => format!("{norm} -> ReLU"),
        };
        format!(
            "{} -> Dense({}) -> {hidden} -> Dense({CLASSES})",
            self.input, self.hidden
        )
    }
}

/// A dense layer with uniform weights within `1 / sqrt(inputs)`: the default of Burn and PyTorch.
fn dense(inputs: usize, outputs: usize, mut rng: Rng, device: &Device) -> Linear {
    let limit = 1.0 / (inputs as f32).sqrt();
    let mut draw = |count: usize| -> Vec<f32> { (0..count).map(|_| rng.uniform(limit)).collect() };
    let weight = TensorData::new(draw(inputs * outputs), [inputs, outputs]);
    let bias = TensorData::new(draw(outputs), [outputs]);
    let mut layer = LinearConfig::new(inputs, outputs).init(device);
    layer.weight = Param::from_tensor(Tensor::from_data(weight, device));
    layer.bias = Some(Param::from_tensor(Tensor::from_data(bias, device)));
    layer
}

/// The layers that can stand in the place of the normalization.
// There is one in a network, so its size does not matter.
#[allow(clippy::large_enum_variant)]
#[derive(Module, Debug)]
pub enum Norm {
    /// This project's layer.
    Batch(burn_batchnorm::BatchNorm),
    /// The layer of burn-nn.
    Burn(burn::nn::BatchNorm),
}

impl Norm {
    fn new(kind: NormKind, features: usize, device: &Device) -> Option<Self> {
        match kind {
            NormKind::Batch => Some(Self::Batch(
                burn_batchnorm::BatchNormConfig::new(features).init(device),
            )),
            NormKind::Burn => Some(Self::Burn(
                burn::nn::BatchNormConfig::new(features).init(device),
            )),
            NormKind::None => None,
        }
    }

    fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        match self {
            Self::Batch(layer) => layer.forward(x),
            Self::Burn(layer) => layer.forward(x),
        }
    }
}

/// The network. Its outputs are logits: softmax is part of the loss.
#[derive(Module, Debug)]
pub struct Classifier {
    /// Input to hidden.
    pub dense: Linear,
    /// After or before the activation, or absent.
    pub norm: Option<Norm>,
    /// Hidden to classes.
    pub output: Linear,
    /// Order of normalization and activation.
    pub bn_before_activation: bool,
}

impl Classifier {
    /// `[batch, inputs]` to `[batch, 10]` logits.
    pub fn forward(&self, inputs: Tensor<2>) -> Tensor<2> {
        let x = self.dense.forward(inputs);
        let x = match (&self.norm, self.bn_before_activation) {
            (None, _) => activation::relu(x),
            (Some(norm), false) => norm.forward(activation::relu(x)),
            (Some(norm), true) => activation::relu(norm.forward(x)),
        };
        self.output.forward(x)
    }
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use super::*;

    fn config(norm: NormKind) -> ModelConfig {
        ModelConfig {
            input: 100,
            hidden: 50,
            norm,
            bn_before_activation: false,
        }
    }

    fn values(tensor: Tensor<2>) -> Vec<f32> {
        tensor.into_data().try_into_vec().expect("floats")
    }

    #[test]
    fn the_articles_network_has_its_size() {
        // (100*50 + 50) + BN: gamma, beta, and the running mean and variance Burn counts + (50*10 + 10).
        let device = Device::flex();
        let plain = config(NormKind::None).init(1, &device).num_params();
        assert_eq!(plain, 100 * 50 + 50 + 50 * 10 + 10);
        let burn = config(NormKind::Burn).init(1, &device).num_params();
        assert_eq!(burn - plain, 4 * 50);
    }

    #[test]
    fn weights_depend_on_the_seed_and_nothing_else() {
        let device = Device::flex();
        let weights = |seed, norm| values(config(norm).init(seed, &device).dense.weight.val());
        assert_eq!(weights(3, NormKind::Batch), weights(3, NormKind::None));
        assert_ne!(weights(3, NormKind::Batch), weights(4, NormKind::Batch));
        assert!(
            weights(3, NormKind::Batch)
                .iter()
                .all(|weight| weight.abs() <= 0.1)
        );
    }

    #[test]
    fn both_layers_compute_the_same_in_training() {
        let device = Device::flex().autodiff();
        let mut rng = Rng::new(9, Stream::Split);
        let inputs: Vec<f32> = (0..32 * 100).map(|_| rng.uniform(1.0)).collect();
        let inputs = Tensor::<2>::from_data(TensorData::new(inputs, [32, 100]), &device);
        let forward = |norm| values(config(norm).init(1, &device).forward(inputs.clone()));
        let (ours, burns) = (forward(NormKind::Batch), forward(NormKind::Burn));
        let difference = ours
            .iter()
            .zip(&burns)
            .map(|(a, b)| (a - b).abs())
            .fold(0.0, f32::max);
        assert!(difference < 1e-5, "difference {difference}");
        assert_ne!(burns, forward(NormKind::None));
    }

    #[test]
    fn the_place_of_the_layer_matters() {
        let device = Device::flex().autodiff();
        let mut rng = Rng::new(9, Stream::Split);
        let inputs: Vec<f32> = (0..8 * 100).map(|_| rng.uniform(1.0)).collect();
        let inputs = Tensor::<2>::from_data(TensorData::new(inputs, [8, 100]), &device);
        let after = config(NormKind::Batch);
        let before = ModelConfig {
            bn_before_activation: true,
            ..after.clone()
        };
        assert_ne!(
            values(after.init(1, &device).forward(inputs.clone())),
            values(before.init(1, &device).forward(inputs))
        );
        assert!(
            before
                .describe()
                .contains("BatchNorm (burn-batchnorm) -> ReLU")
        );
        assert!(
            after
                .describe()
                .contains("ReLU -> BatchNorm (burn-batchnorm)")
        );
    }
}
