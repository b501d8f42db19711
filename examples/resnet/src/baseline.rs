//! The same network with burn-nn's batch norm, a ReLU and an addition of their own, to be timed against.

use burn::module::Module;
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::pool::{MaxPool2d, MaxPool2dConfig};
use burn::nn::{BatchNorm, BatchNormConfig, Linear, LinearConfig, PaddingConfig2d};
use burn::tensor::{Device, Tensor, activation::relu};

use crate::model::ResNetConfig;

/// [`ResNet`](crate::model::ResNet) with `burn::nn::BatchNorm`.
#[derive(Module, Debug)]
pub struct Baseline {
    conv1: Conv2d,
    bn1: BatchNorm,
    maxpool: MaxPool2d,
    layer1: Vec<Block>,
    layer2: Vec<Block>,
    layer3: Vec<Block>,
    layer4: Vec<Block>,
    fc: Linear,
}

#[derive(Module, Debug)]
struct Block {
    conv1: Conv2d,
    bn1: BatchNorm,
    conv2: Conv2d,
    bn2: BatchNorm,
    downsample: Option<(Conv2d, BatchNorm)>,
}

impl Baseline {
    /// A new network of that size; `folded` means nothing here.
    pub fn new(config: &ResNetConfig, device: &Device) -> Self {
        let width = config.width;
        let layer = |inputs, outputs, stride| {
            vec![
                Block::new([inputs, outputs], stride, device),
                Block::new([outputs, outputs], 1, device),
            ]
        };
        Self {
            conv1: conv([config.inputs, width], 7, 2, device),
            bn1: BatchNormConfig::new(width).init(device),
            maxpool: MaxPool2dConfig::new([3, 3])
                .with_strides([2, 2])
                .with_padding(PaddingConfig2d::Explicit(1, 1, 1, 1))
                .init(),
            layer1: layer(width, width, 1),
            layer2: layer(width, 2 * width, 2),
            layer3: layer(2 * width, 4 * width, 2),
            layer4: layer(4 * width, 8 * width, 2),
            fc: LinearConfig::new(8 * width, config.classes).init(device),
        }
    }

    /// The logits, as [`ResNet::forward`](crate::model::ResNet::forward).
    pub fn forward(&self, images: Tensor<4>) -> Tensor<2> {
        let x = relu(self.bn1.forward(self.conv1.forward(images)));
        let mut x = self.maxpool.forward(x);
        let layers = [&self.layer1, &self.layer2, &self.layer3, &self.layer4];
        for block in layers.into_iter().flatten() {
            x = block.forward(x);
        }
        let [batch, channels, ..] = x.dims();
        let pooled = x.flatten::<3>(2, 3).mean_dim(2);
        self.fc.forward(pooled.reshape([batch, channels]))
    }
}

impl Block {
    fn new([inputs, outputs]: [usize; 2], stride: usize, device: &Device) -> Self {
        let norm = || BatchNormConfig::new(outputs).init(device);
        Self {
            conv1: conv([inputs, outputs], 3, stride, device),
            bn1: norm(),
            conv2: conv([outputs, outputs], 3, 1, device),
            bn2: norm(),
            downsample: (stride != 1).then(|| (conv([inputs, outputs], 1, stride, device), norm())),
        }
    }

    fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let y = relu(self.bn1.forward(self.conv1.forward(x.clone())));
        let y = self.bn2.forward(self.conv2.forward(y));
        let shortcut = match &self.downsample {
            Some((conv, norm)) => norm.forward(conv.forward(x)),
            None => x,
        };
        relu(y + shortcut)
    }
}

fn conv(channels: [usize; 2], size: usize, stride: usize, device: &Device) -> Conv2d {
    let padding = size / 2;
    Conv2dConfig::new(channels, [size, size])
        .with_stride([stride, stride])
        .with_padding(PaddingConfig2d::Explicit(
            padding, padding, padding, padding,
        ))
        .with_bias(false)
        .init(device)
}
