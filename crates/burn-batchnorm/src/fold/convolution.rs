use burn::nn::conv::{Conv1d, Conv2d, Conv3d};
use burn::nn::{PaddingConfig1d, PaddingConfig2d, PaddingConfig3d};
use burn::tensor::{DType, Device, Tensor};

use super::affine::{Affine, bias, bias_parameter, parameter, plain};
use super::{FoldError, Layer, Next, Previous};

/// The weight is `[out, in / groups, taps..]`; the outputs of one group are neighbours.
macro_rules! convolution {
    ($convolution:ident, $rank:literal, $taps:expr, $padding:expr) => {
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
                let weight = weight.flatten::<2>(1, $rank - 1);
                let weight = weight * affine.scale.clone().unsqueeze_dim(1);
                let bias = bias(self.bias.as_ref(), &affine.scale) * affine.scale + affine.shift;
                Self {
                    weight: parameter(weight.reshape(shape), &self.weight),
                    bias: Some(bias_parameter(bias, self.bias.as_ref(), &self.weight)),
                    ..self.clone()
                }
            }

            fn channels_out(&self) -> usize {
                self.weight.dims()[0]
            }
        }

        impl Next<$rank> for $convolution {
            fn of_scaled(&self, affine: Affine) -> Result<Self, FoldError> {
                if !$padding(&self.padding, $taps(self)) {
                    let padding = format!("{:?}", self.padding);
                    return Err(FoldError::Padding { padding });
                }
                let weight = plain(self.weight.val(), affine.scale.dtype());
                let shape = weight.shape();
                let (outputs, inputs) = (shape[0], shape[1]);
                let groups = self.groups;
                let weight: Tensor<4> =
                    weight.reshape([groups as i32, (outputs / groups) as i32, inputs as i32, -1]);
                let per_input = |values: Tensor<1>| values.reshape([groups, 1, inputs, 1]);
                let shift = (weight.clone() * per_input(affine.shift))
                    .sum_dim(3)
                    .sum_dim(2);
                let shift = shift.reshape([outputs]);
                let bias = bias(self.bias.as_ref(), &shift) + shift;
                let weight = weight * per_input(affine.scale);
                Ok(Self {
                    weight: parameter(weight.reshape(shape), &self.weight),
                    bias: Some(bias_parameter(bias, self.bias.as_ref(), &self.weight)),
                    ..self.clone()
                })
            }

            fn channels_in(&self) -> usize {
                self.weight.dims()[1] * self.groups
            }
        }
    };
}

convolution!(
    Conv1d,
    3,
    |conv: &Conv1d| conv.kernel_size == 1,
    |padding: &PaddingConfig1d, pointwise| match padding {
        PaddingConfig1d::Valid | PaddingConfig1d::Explicit(0, 0) => true,
        PaddingConfig1d::Same => pointwise,
        PaddingConfig1d::Explicit(..) => false,
    }
);
convolution!(
    Conv2d,
    4,
    |conv: &Conv2d| conv.kernel_size == [1; 2],
    |padding: &PaddingConfig2d, pointwise| match padding {
        PaddingConfig2d::Valid | PaddingConfig2d::Explicit(0, 0, 0, 0) => true,
        PaddingConfig2d::Same => pointwise,
        PaddingConfig2d::Explicit(..) => false,
    }
);
convolution!(
    Conv3d,
    5,
    |conv: &Conv3d| conv.kernel_size == [1; 3],
    |padding: &PaddingConfig3d, pointwise| match padding {
        PaddingConfig3d::Valid | PaddingConfig3d::Explicit(0, 0, 0) => true,
        PaddingConfig3d::Same => pointwise,
        PaddingConfig3d::Explicit(..) => false,
    }
);
