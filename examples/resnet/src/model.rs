//! ResNet-18 as in [Deep Residual Learning](https://arxiv.org/abs/1512.03385), with the names and the
//! details of torchvision's `resnet18`.
//!
//! ```text
//! image [batch, 3, 224, 224]
//!   conv 7x7, 64, stride 2 - batch norm - ReLU - max pool 3x3, stride 2
//!   layer1: 2 blocks of  64 channels, 56x56
//!   layer2: 2 blocks of 128 channels, 28x28
//!   layer3: 2 blocks of 256 channels, 14x14
//!   layer4: 2 blocks of 512 channels,  7x7
//!   average pool - linear, 1000
//!
//! a block:  y = ReLU(F(x) + x),  F = batch norm . conv 3x3 . ReLU . batch norm . conv 3x3
//! ```
//!
//! Every batch norm is followed by a ReLU, with the shortcut added in between where a block ends, so both
//! are part of it: `activation` and `forward_residual` make it one pass over memory. A network without
//! its batch norms is the same network after [`ResNet::fold`].

use burn::module::Module;
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::pool::{MaxPool2d, MaxPool2dConfig};
use burn::nn::{Initializer, Linear, LinearConfig, PaddingConfig2d};
use burn::tensor::activation::{leaky_relu, relu};
use burn::tensor::{Device, Tensor};
use burn_batchnorm::fold::{self, FoldError};
use burn_batchnorm::{Activation, BatchNorm, BatchNormConfig, Memory};

/// The network. Fields are named as torchvision's, so that its files load as they are.
#[derive(Module, Debug)]
pub struct ResNet {
    conv1: Conv2d,
    /// None once it is folded, as every other.
    bn1: Option<BatchNorm>,
    maxpool: MaxPool2d,
    layer1: Vec<Block>,
    layer2: Vec<Block>,
    layer3: Vec<Block>,
    layer4: Vec<Block>,
    fc: Linear,
    slope: f64,
}

/// torchvision's `BasicBlock`.
#[derive(Module, Debug)]
pub struct Block {
    conv1: Conv2d,
    bn1: Option<BatchNorm>,
    conv2: Conv2d,
    bn2: Option<BatchNorm>,
    downsample: Option<Downsample>,
    slope: f64,
}

/// A shortcut of other shape: convolution 1x1, batch norm.
type Downsample = (Conv2d, Option<BatchNorm>);

/// What a network is built from.
#[derive(Debug, Clone, PartialEq)]
pub struct ResNetConfig {
    /// Channels of the first stage; every further one doubles them. torchvision: 64.
    pub width: usize,
    /// Channels of an image. torchvision: 3.
    pub inputs: usize,
    /// Classes. torchvision: 1000.
    pub classes: usize,
    /// Whether the batch norms are in the convolutions, which then have biases.
    pub folded: bool,
    /// Slope of the ReLUs below 0. torchvision: 0.
    pub slope: f64,
    /// What the batch norms keep for the backward pass: with a slope above 0, also their outputs.
    pub memory: Memory,
}

impl Default for ResNetConfig {
    /// torchvision's.
    fn default() -> Self {
        Self {
            width: 64,
            inputs: 3,
            classes: 1000,
            folded: false,
            slope: 0.0,
            memory: Memory::Input,
        }
    }
}

impl ResNetConfig {
    /// A new network: He et al.'s initial weights, gamma 1, beta 0.
    pub fn init(&self, device: &Device) -> ResNet {
        let width = self.width;
        let layer = |inputs, outputs, stride| {
            vec![
                self.block([inputs, outputs], stride, device),
                self.block([outputs, outputs], 1, device),
            ]
        };
        ResNet {
            conv1: self.conv([self.inputs, width], 7, 2, device),
            bn1: self.norm(width, self.activation(), device),
            maxpool: MaxPool2dConfig::new([3, 3])
                .with_strides([2, 2])
                .with_padding(PaddingConfig2d::Explicit(1, 1, 1, 1))
                .init(),
            layer1: layer(width, width, 1),
            layer2: layer(width, 2 * width, 2),
            layer3: layer(2 * width, 4 * width, 2),
            layer4: layer(4 * width, 8 * width, 2),
            fc: LinearConfig::new(8 * width, self.classes).init(device),
            slope: self.slope,
        }
    }

    fn activation(&self) -> Activation {
        match self.slope {
            0.0 => Activation::Relu,
            slope => Activation::LeakyRelu(slope),
        }
    }

    fn block(&self, [inputs, outputs]: [usize; 2], stride: usize, device: &Device) -> Block {
        let downsample = (stride != 1).then(|| {
            let conv = self.conv([inputs, outputs], 1, stride, device);
            (conv, self.norm(outputs, Activation::None, device))
        });
        Block {
            conv1: self.conv([inputs, outputs], 3, stride, device),
            bn1: self.norm(outputs, self.activation(), device),
            conv2: self.conv([outputs, outputs], 3, 1, device),
            bn2: self.norm(outputs, self.activation(), device),
            downsample,
            slope: self.slope,
        }
    }

    fn norm(&self, channels: usize, activation: Activation, device: &Device) -> Option<BatchNorm> {
        let config = BatchNormConfig::pytorch(channels)
            .with_activation(activation)
            .with_memory(self.memory);
        (!self.folded).then(|| config.init(device))
    }

    fn conv(&self, channels: [usize; 2], size: usize, stride: usize, device: &Device) -> Conv2d {
        let padding = size / 2;
        Conv2dConfig::new(channels, [size, size])
            .with_stride([stride, stride])
            .with_padding(PaddingConfig2d::Explicit(
                padding, padding, padding, padding,
            ))
            .with_bias(self.folded)
            .with_initializer(Initializer::KaimingNormal {
                gain: 2f64.sqrt(),
                fan_out_only: true,
            })
            .init(device)
    }
}

impl ResNet {
    /// The logits.
    ///
    /// # Shapes
    ///
    /// - `images`: `[batch, channels, height, width]`, of 32 pixels a side and more
    /// - output: `[batch, classes]`
    pub fn forward(&self, images: Tensor<4>) -> Tensor<2> {
        let x = norm_relu(&self.bn1, self.conv1.forward(images), self.slope);
        let mut x = self.maxpool.forward(x);
        for block in self.blocks() {
            x = block.forward(x);
        }
        let [batch, channels, ..] = x.dims();
        let pooled = x.flatten::<3>(2, 3).mean_dim(2);
        self.fc.forward(pooled.reshape([batch, channels]))
    }

    fn blocks(&self) -> impl Iterator<Item = &Block> {
        [&self.layer1, &self.layer2, &self.layer3, &self.layer4]
            .into_iter()
            .flatten()
    }

    /// The network for inference, with every batch norm folded into the convolution before it.
    ///
    /// # Errors
    ///
    /// If the network trains: fold that of `valid()`.
    pub fn fold(self) -> Result<Self, FoldError> {
        let layer = |layer: Vec<Block>| -> Result<Vec<Block>, FoldError> {
            layer.into_iter().map(Block::fold).collect()
        };
        Ok(Self {
            conv1: folded(&self.conv1, &self.bn1)?,
            bn1: None,
            layer1: layer(self.layer1)?,
            layer2: layer(self.layer2)?,
            layer3: layer(self.layer3)?,
            layer4: layer(self.layer4)?,
            ..self
        })
    }
}

impl Block {
    fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let y = norm_relu(&self.bn1, self.conv1.forward(x.clone()), self.slope);
        let y = self.conv2.forward(y);
        let shortcut = match &self.downsample {
            Some((conv, Some(norm))) => norm.forward(conv.forward(x)),
            Some((conv, None)) => conv.forward(x),
            None => x,
        };
        match &self.bn2 {
            Some(norm) => norm.forward_residual(y, shortcut),
            None => activate(y + shortcut, self.slope),
        }
    }

    fn fold(self) -> Result<Self, FoldError> {
        let downsample = match self.downsample {
            Some((conv, norm)) => Some((folded(&conv, &norm)?, None)),
            None => None,
        };
        Ok(Self {
            conv1: folded(&self.conv1, &self.bn1)?,
            bn1: None,
            conv2: folded(&self.conv2, &self.bn2)?,
            bn2: None,
            downsample,
            ..self
        })
    }
}

/// The ReLU is part of the batch norm, or what is left of it.
fn norm_relu(norm: &Option<BatchNorm>, x: Tensor<4>, slope: f64) -> Tensor<4> {
    match norm {
        Some(norm) => norm.forward(x),
        None => activate(x, slope),
    }
}

fn activate(x: Tensor<4>, slope: f64) -> Tensor<4> {
    match slope {
        0.0 => relu(x),
        slope => leaky_relu(x, slope),
    }
}

fn folded(conv: &Conv2d, norm: &Option<BatchNorm>) -> Result<Conv2d, FoldError> {
    match norm {
        Some(norm) => fold::into_previous(conv, norm, None).map(|folded| folded.layer),
        None => Ok(conv.clone()),
    }
}
