//! Batch norm as the affine map that it is in inference.

use burn::module::{Module, Param};
use burn::tensor::Tensor;

use crate::operands::{Epilogue, Operands, Parameter};
use crate::statistics::{Values, stored};
use crate::{BatchNorm, BatchNormError};

/// Batch norm in its frozen form: `activation(x * scale + shift)`, two vectors that do not train.
///
/// For fine-tuning and export, as detectron2's and torchvision's `FrozenBatchNorm2d`:
///
/// ```text
/// scale = gamma / sqrt(running_var + epsilon)        shift = beta - running_mean * scale
/// ```
///
/// Gradients of the input flow. Records hold `scale` and `shift` alone. Since the mean is no longer taken off
/// first, an input whose mean is large against its spread loses digits that the layer itself keeps.
///
/// Made by [`BatchNorm::frozen`].
#[derive(Module, Debug)]
pub struct FrozenBatchNorm {
    /// Shape `[channels]`.
    pub scale: Param<Tensor<1>>,
    /// Shape `[channels]`.
    pub shift: Param<Tensor<1>>,
    /// The layer that it was made of.
    #[module(skip)]
    source: BatchNorm,
}

impl BatchNorm {
    /// The layer in its frozen form, by its running statistics (mean 0 and variance 1 where it keeps
    /// none). [`FrozenBatchNorm::thawed`] gives the layer back.
    pub fn frozen(self) -> FrozenBatchNorm {
        let Values { mean, variance, .. } = self.statistics().values();
        let here = |param: &Param<Tensor<1>>| stored(param.val());
        let scale = here(&self.gamma) / (variance + self.epsilon).sqrt();
        let shift = here(&self.beta) - mean * scale.clone();
        let constant = |value| Param::from_tensor(value).set_require_grad(false);
        FrozenBatchNorm {
            scale: constant(scale),
            shift: constant(shift),
            source: self,
        }
    }
}

impl FrozenBatchNorm {
    /// Applies `activation(x * scale + shift)`.
    ///
    /// # Shapes
    ///
    /// As for [`BatchNorm::forward`].
    ///
    /// # Panics
    ///
    /// Panics where [`try_forward`](Self::try_forward) fails.
    pub fn forward<const D: usize>(&self, input: Tensor<D>) -> Tensor<D> {
        self.try_forward(input, None)
            .unwrap_or_else(|error| panic!("{error}"))
    }

    /// As [`forward`](Self::forward), with a residual that is added before the activation, if there is one,
    /// and an error instead of a panic.
    ///
    /// # Errors
    ///
    /// As for [`BatchNorm::try_forward_residual`].
    pub fn try_forward<const D: usize>(
        &self,
        input: Tensor<D>,
        residual: Option<Tensor<D>>,
    ) -> Result<Tensor<D>, BatchNormError> {
        let shape = input.shape().to_vec();
        let axis = self.source.channel_axis(&shape)?;
        let epilogue = Epilogue {
            activation: self.source.config.activation,
            residual,
        };
        let constant = |param: &Param<Tensor<1>>| Parameter::Constant(param.val());
        let parameters = [&self.scale, &self.shift].map(constant);
        let zeros = self.scale.val().zeros_like();
        // 1 / sqrt(0 + 1) is exactly 1.
        let operands = Operands::new(input, parameters, epilogue, 1.0, axis)?;
        Ok(operands.normalize_by(&Values::fresh(zeros.clone(), zeros)))
    }

    /// The layer that it was made of, with everything that it had: parameters, statistics, count, types and
    /// momentum. If `scale` or `shift` have changed since, its `gamma` and `beta` change as much.
    pub fn thawed(self) -> BatchNorm {
        let mut layer = self.source.to_device(&self.scale.device());
        let Values { mean, variance, .. } = layer.statistics().values();
        let made = layer.clone().frozen();
        let [scale, shift] = [&self.scale, &self.shift].map(|param| stored(param.val()));
        let equal = |ours: &Tensor<1>, made: &Param<Tensor<1>>| {
            ours.clone().into_data() == stored(made.val()).into_data()
        };
        if equal(&scale, &made.scale) && equal(&shift, &made.shift) {
            return layer;
        }
        let stddev = (variance + layer.epsilon).sqrt();
        let put = |param: Param<Tensor<1>>, value: Tensor<1>| {
            param.map(|old| {
                let device = old.device();
                let value = value.cast(old.dtype());
                match device.is_autodiff() {
                    true => Tensor::from_inner(value),
                    false => value,
                }
            })
        };
        layer.gamma = put(layer.gamma, scale.clone() * stddev);
        layer.beta = put(layer.beta, shift + mean * scale);
        layer.config.scale = true;
        layer.config.shift = true;
        layer
    }
}
