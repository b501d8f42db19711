use burn::nn::conv::{ConvTranspose1d, ConvTranspose2d, ConvTranspose3d};
use burn::tensor::{DType, Device, Tensor};

use super::affine::{Affine, bias, bias_parameter, parameter, plain};
use super::{Layer, Previous};

/// The weight is `[in, out / groups, taps..]`: the rows of one group are neighbours, and the same column
/// is another output in each group.
macro_rules! transposed {
    ($convolution:ident, $rank:literal) => {
        impl Layer<$rank> for $convolution {
            const AXIS: usize = 1;

            fn run(&self, input: Tensor<$rank>) -> Tensor<$rank> {
                self.forward(input)
            }

            fn place(&self) -> (Device, DType) {
                (self.weight.device(), self.weight.dtype())
            }
        }

        impl Previous<$rank> for $convolution {
            fn scaled(&self, affine: Affine) -> Self {
                let weight = plain(self.weight.val(), affine.scale.dtype());
                let shape = weight.shape();
                let (groups, inputs, outputs) = (self.groups, shape[0], shape[1]);
                let weight: Tensor<4> =
                    weight.reshape([groups as i32, (inputs / groups) as i32, outputs as i32, -1]);
                let weight = weight * affine.scale.clone().reshape([groups, 1, outputs, 1]);
                let bias = bias(self.bias.as_ref(), &affine.scale) * affine.scale + affine.shift;
                Self {
                    weight: parameter(weight.reshape(shape), &self.weight),
                    bias: Some(bias_parameter(bias, self.bias.as_ref(), &self.weight)),
                    ..self.clone()
                }
            }

            fn channels_out(&self) -> usize {
                self.weight.dims()[1] * self.groups
            }
        }
    };
}

transposed!(ConvTranspose1d, 3);
transposed!(ConvTranspose2d, 4);
transposed!(ConvTranspose3d, 5);
