use burn::nn::Linear;
use burn::tensor::{DType, Device, Tensor};

use super::affine::{Affine, bias, bias_parameter, parameter, plain};
use super::{FoldError, Layer, Next, Previous};

impl<const D: usize> Layer<D> for Linear {
    const AXIS: usize = D - 1;

    fn run(&self, input: Tensor<D>) -> Tensor<D> {
        self.forward(input)
    }

    fn place(&self) -> (Device, DType) {
        (self.weight.device(), self.weight.dtype())
    }
}

/// The weight is `[in, out]`.
impl<const D: usize> Previous<D> for Linear {
    fn scaled(&self, affine: Affine) -> Self {
        let weight = plain(self.weight.val(), affine.scale.dtype());
        let weight = weight * affine.scale.clone().unsqueeze_dim(0);
        let bias = bias(self.bias.as_ref(), &affine.scale) * affine.scale + affine.shift;
        Self {
            weight: parameter(weight, &self.weight),
            bias: Some(bias_parameter(bias, self.bias.as_ref(), &self.weight)),
        }
    }

    fn channels_out(&self) -> usize {
        self.weight.dims()[1]
    }
}

impl<const D: usize> Next<D> for Linear {
    fn of_scaled(&self, affine: Affine) -> Result<Self, FoldError> {
        let weight = plain(self.weight.val(), affine.scale.dtype());
        let [_, outputs] = weight.dims();
        let shift = affine.shift.unsqueeze_dim::<2>(0).matmul(weight.clone());
        let shift = shift.reshape([outputs]);
        let bias = bias(self.bias.as_ref(), &shift) + shift;
        let weight = weight * affine.scale.unsqueeze_dim(1);
        Ok(Self {
            weight: parameter(weight, &self.weight),
            bias: Some(bias_parameter(bias, self.bias.as_ref(), &self.weight)),
        })
    }

    fn channels_in(&self) -> usize {
        self.weight.dims()[0]
    }
}
