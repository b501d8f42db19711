//! The article's network: input -> Dense(hidden, ReLU) -> BN -> Dense(10).

use anyhow::{Result, bail};
use burn::module::{Module, Param};
use burn::nn::{Linear, LinearConfig};
use burn::tensor::{Device, Tensor, TensorData, activation};
use burn_batchnorm::{BatchNorm, BatchNormConfig, Statistics};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::data::CLASSES;

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
        f.pad(&format!("{self:?}").to_lowercase())
    }
}

/// What random numbers are for. Each use has numbers of its own, so that the same seed means the
/// same weights on every device, and a resumed run sees the order that it would have seen.
#[derive(Clone, Copy)]
pub(crate) enum Stream {
    /// Initial weights of the dense layer with this number.
    Weights(u64),
    /// Which training images are held out for validation.
    Split,
    /// The order of the training images in this epoch.
    Epoch(u64),
}

/// The generator of `stream` under `seed`.
pub(crate) fn rng(seed: u64, stream: Stream) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(match stream {
        Stream::Split => 0,
        Stream::Weights(layer) => 2 * layer + 1,
        Stream::Epoch(epoch) => 2 * epoch + 2,
    });
    rng
}

/// Shape of the network.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelConfig {
    /// Number of inputs: 784, or 100 for images reduced to 10x10.
    pub input: usize,
    /// Width of the hidden layer.
    pub hidden: usize,
    /// The normalization.
    pub norm: NormKind,
    /// Dense -> BN -> ReLU in place of the article's Dense -> ReLU -> BN.
    pub bn_before_activation: bool,
    /// What this project's layer normalizes by in training. Only `compare` varies it, and saves no model.
    #[serde(skip)]
    pub statistics: Statistics,
}

impl ModelConfig {
    /// A network with weights drawn from `seed`: the same on every device.
    pub fn init(&self, seed: u64, device: &Device) -> Classifier {
        let weights = |layer| rng(seed, Stream::Weights(layer));
        Classifier {
            dense: dense(self.input, self.hidden, weights(1), device),
            norm: self.norm(device),
            output: dense(self.hidden, CLASSES, weights(2), device),
            bn_before_activation: self.bn_before_activation,
        }
    }

    fn norm(&self, device: &Device) -> Option<Norm> {
        match self.norm {
            NormKind::Batch => {
                let config = BatchNormConfig::new(self.hidden).with_statistics(self.statistics);
                Some(Norm::Batch(config.init(device)))
            }
            NormKind::Burn => {
                let config = burn::nn::BatchNormConfig::new(self.hidden);
                Some(Norm::Burn(config.init(device)))
            }
            NormKind::None => None,
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
fn dense(inputs: usize, outputs: usize, mut rng: ChaCha8Rng, device: &Device) -> Linear {
    let limit = 1.0 / (inputs as f32).sqrt();
    let mut draw = |shape: &[usize]| {
        let count = shape.iter().product();
        let values: Vec<f32> = (0..count)
            .map(|_| rng.random_range(-limit..limit))
            .collect();
        TensorData::new(values, shape)
    };
    let mut layer = LinearConfig::new(inputs, outputs).init(device);
    layer.weight = Param::from_tensor(Tensor::from_data(draw(&[inputs, outputs]), device));
    layer.bias = Some(Param::from_tensor(Tensor::from_data(
        draw(&[outputs]),
        device,
    )));
    layer
}

/// The layers that can stand in the place of the normalization.
// There is one in a network, so its size does not matter.
#[allow(clippy::large_enum_variant)]
#[derive(Module, Debug)]
pub enum Norm {
    /// This project's layer.
    Batch(BatchNorm),
    /// The layer of burn-nn.
    Burn(burn::nn::BatchNorm),
}

impl Norm {
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

    /// The layer of this project, which not every network has.
    pub fn batch_norm(&self) -> Result<&BatchNorm> {
        match &self.norm {
            Some(Norm::Batch(layer)) => Ok(layer),
            _ => bail!("the network has no layer of burn-batchnorm: train one with --norm batch"),
        }
    }
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use super::*;
    use rand::seq::SliceRandom;

    fn config(norm: NormKind) -> ModelConfig {
        ModelConfig {
            input: 100,
            hidden: 50,
            norm,
            bn_before_activation: false,
            statistics: Statistics::Batch,
        }
    }

    fn values(tensor: Tensor<2>) -> Vec<f32> {
        tensor.into_data().try_into_vec().expect("floats")
    }

    fn inputs(device: &Device) -> Tensor<2> {
        let mut rng = rng(9, Stream::Split);
        let values: Vec<f32> = (0..32 * 100).map(|_| rng.random_range(-1.0..1.0)).collect();
        Tensor::from_data(TensorData::new(values, [32, 100]), device)
    }

    #[test]
    fn the_articles_network_has_its_size() {
        let device = Device::flex();
        let plain = config(NormKind::None).init(1, &device).num_params();
        assert_eq!(plain, 100 * 50 + 50 + 50 * 10 + 10);
        // Gamma, beta, and the running mean and variance, which Burn counts.
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
        // The generator is one that will not change: these are numbers for all time.
        let mut order: Vec<u32> = (0..10).collect();
        order.shuffle(&mut rng(42, Stream::Epoch(1)));
        assert_eq!(order, [4, 9, 1, 6, 2, 3, 8, 0, 7, 5]);
    }

    #[test]
    fn both_layers_compute_the_same_in_training_and_their_place_matters() {
        let device = Device::flex().autodiff();
        let forward =
            |config: ModelConfig| values(config.init(1, &device).forward(inputs(&device)));
        let (ours, burns) = (
            forward(config(NormKind::Batch)),
            forward(config(NormKind::Burn)),
        );
        let differences = ours.iter().zip(&burns).map(|(a, b)| (a - b).abs());
        assert!(differences.fold(0.0, f32::max) < 1e-5);
        assert_ne!(burns, forward(config(NormKind::None)));
        let before = ModelConfig {
            bn_before_activation: true,
            ..config(NormKind::Batch)
        };
        assert!(
            before
                .describe()
                .contains("BatchNorm (burn-batchnorm) -> ReLU")
        );
        assert_ne!(ours, forward(before));
    }
}
