//! Batch norm as the affine map that it is in inference.

use burn::module::{Content, Module, ModuleDisplay, Param};
use burn::tensor::{DType, Tensor};

use crate::checks::{cast, float, output_dtype, under};
use crate::operands::{Epilogue, Operands, Parameter};
use crate::statistics::{Values, like, stored};
use crate::{BatchNorm, BatchNormError, Inference};

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
#[module(custom_display)]
pub struct FrozenBatchNorm {
    /// Shape `[channels]`.
    pub scale: Param<Tensor<1>>,
    /// Shape `[channels]`.
    pub shift: Param<Tensor<1>>,
    /// The layer that it was made of.
    #[module(skip)]
    source: BatchNorm,
}

impl ModuleDisplay for FrozenBatchNorm {
    fn custom_content(&self, content: Content) -> Option<Content> {
        content
            .set_top_level_type("FrozenBatchNorm")
            .add("num_features", &self.source.config.num_features)
            .optional()
    }
}

impl BatchNorm {
    /// The layer in its frozen form, by its running statistics. [`FrozenBatchNorm::thawed`] gives the layer
    /// back.
    ///
    /// # Panics
    ///
    /// Panics where [`try_frozen`](Self::try_frozen) fails.
    pub fn frozen(self) -> FrozenBatchNorm {
        self.try_frozen().unwrap_or_else(|error| panic!("{error}"))
    }

    /// As [`frozen`](Self::frozen), with an error instead of a panic.
    ///
    /// # Errors
    ///
    /// If inference is not by running statistics: [`inference`](crate::BatchNormConfig::inference) is
    /// another, or `running_stats` is off. Two constant vectors would be another function.
    pub fn try_frozen(self) -> Result<FrozenBatchNorm, BatchNormError> {
        if self.config.inference != Inference::Running || !self.config.running_stats {
            return Err(BatchNormError::Invalid {
                option: "inference",
                expected: "Running, and running_stats on, in a layer to freeze",
                got: format!(
                    "{:?}, running_stats {}",
                    self.config.inference, self.config.running_stats
                ),
            });
        }
        let [scale, shift] = self.affine();
        let constant = |value| {
            let value = under(value, &self.gamma.device());
            Param::from_tensor(value).set_require_grad(false)
        };
        Ok(FrozenBatchNorm {
            scale: constant(scale),
            shift: constant(shift),
            source: self,
        })
    }

    /// Scale and shift of inference, in the wider of the types of parameters and statistics and without
    /// autodiff.
    fn affine(&self) -> [Tensor<1>; 2] {
        let Values { mean, variance, .. } = self.statistics().values();
        let mean = match stored(self.gamma.val()).dtype() {
            DType::F64 => cast(mean, DType::F64),
            _ => mean,
        };
        let here = |param: &Param<Tensor<1>>| like(&stored(param.val()), &mean);
        let variance = like(&variance, &mean);
        let scale = here(&self.gamma) / (variance + self.epsilon).sqrt();
        let shift = here(&self.beta) - mean.clone() * scale.clone();
        [scale, shift]
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
        self.try_forward(input)
            .unwrap_or_else(|error| panic!("{error}"))
    }

    /// As [`forward`](Self::forward), with an error instead of a panic.
    ///
    /// # Errors
    ///
    /// As for [`BatchNorm::try_forward`].
    pub fn try_forward<const D: usize>(
        &self,
        input: Tensor<D>,
    ) -> Result<Tensor<D>, BatchNormError> {
        self.run(input, None)
    }

    /// Applies `activation(x * scale + shift + residual)`.
    ///
    /// # Panics
    ///
    /// Panics where [`try_forward_residual`](Self::try_forward_residual) fails.
    pub fn forward_residual<const D: usize>(
        &self,
        input: Tensor<D>,
        residual: Tensor<D>,
    ) -> Tensor<D> {
        self.try_forward_residual(input, residual)
            .unwrap_or_else(|error| panic!("{error}"))
    }

    /// As [`forward_residual`](Self::forward_residual), with an error instead of a panic.
    ///
    /// # Errors
    ///
    /// As for [`BatchNorm::try_forward_residual`].
    pub fn try_forward_residual<const D: usize>(
        &self,
        input: Tensor<D>,
        residual: Tensor<D>,
    ) -> Result<Tensor<D>, BatchNormError> {
        self.run(input, Some(residual))
    }

    fn run<const D: usize>(
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
        // `unfreeze()` of a model must not make them train.
        let constant = |param: &Param<Tensor<1>>| Parameter::Constant(param.val().detach());
        let parameters = [&self.scale, &self.shift].map(constant);
        // 1 / sqrt(0 + 1) is exactly 1.
        let operands = Operands::new(input, parameters, epilogue, 1.0, axis)?;
        let zeros = stored(self.scale.val().zeros_like());
        Ok(operands.normalize_by(&Values::fresh(zeros.clone(), zeros), None))
    }

    /// The layer that it was made of, with everything that it had: parameters, statistics, count, types and
    /// momentum. It trains if this form is on an autodiff device. If `scale` or `shift` have changed since,
    /// its `gamma` and `beta` change as much.
    pub fn thawed(self) -> BatchNorm {
        let device = self.scale.device();
        let on_autodiff = self.source.gamma.device().is_autodiff();
        let layer = match (device.is_autodiff(), on_autodiff) {
            (true, false) => self.source.train(),
            (false, true) => self.source.valid(),
            _ => self.source,
        };
        // Leaves of their own, also where that is another device.
        let parameters = [&layer.gamma, &layer.beta];
        let [gamma, beta] = parameters.map(|param| param.clone().fork(&device));
        let mut layer = layer.to_device(&device);
        (layer.gamma, layer.beta) = (gamma, beta);
        let made = layer.affine();
        let [scale, shift] =
            [&self.scale, &self.shift].map(|param| like(&stored(param.val()), &made[0]));
        let Values { mean, variance, .. } = layer.statistics().values();
        let stddev = like(&(variance + layer.epsilon).sqrt(), &made[0]);
        let mean = like(&mean, &made[0]);
        // Channel by channel, where it is not what the layer makes of it. Another device may round otherwise.
        let changed = |now: &Tensor<1>, made: &Tensor<1>| {
            let close = now.clone().is_close(made.clone(), Some(1e-6), Some(1e-12));
            let both = now.clone().is_nan().bool_and(made.clone().is_nan());
            close.bool_or(both).bool_not()
        };
        let changed = changed(&scale, &made[0]).bool_or(changed(&shift, &made[1]));
        if !changed.clone().any().into_scalar::<bool>() {
            return layer;
        }
        let put = |param: Param<Tensor<1>>, value: Tensor<1>| {
            param.map(|old| {
                let learned = old.is_require_grad();
                let plain = cast(float(old.clone().without_autodiff()), value.dtype());
                let new = cast(
                    plain.mask_where(changed.clone(), value),
                    output_dtype(old.dtype()),
                );
                under(new, &old.device()).set_require_grad(learned)
            })
        };
        layer.gamma = put(layer.gamma, scale.clone() * stddev);
        layer.beta = put(layer.beta, shift + mean * scale);
        layer.config.scale = true;
        layer.config.shift = true;
        layer
    }
}
