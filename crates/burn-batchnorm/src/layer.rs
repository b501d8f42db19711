use burn::module::{Flag, Param};
use burn::tensor::{DType, Device, Tensor};

use crate::config::validate_hyperparameters;
use crate::functional::{Epilogue, Running, Training, cast, compute_dtype, normalize_then, train};
use crate::{
    Averaging, BatchCounter, BatchNormConfig, BatchNormError, RunningState, SingleValue, Variance,
};

/// Applies batch normalization over a tensor.
///
/// Based upon the paper [Batch Normalization](https://arxiv.org/abs/1502.03167).
///
/// `Y = (X - mean) / sqrt(variance + epsilon) * γ + β`, per channel, where:
/// - `X` is the input, `[batch_size, channels, ...]` or any other place of the channel axis
/// - `mean`, `variance` are those of the batch (biased) in training, the running ones in inference
/// - `γ`, `β` are the learnable `gamma` and `beta`, both `[channels]`
///
/// The layer trains, as burn-nn's does, where its input is on an autodiff device and the layer is
/// not frozen; `valid()` and `freeze()` end that. Every training pass blends the statistics of its
/// batch into `running_mean` and `running_var`, on the device, without waiting for it.
///
/// # Copies
///
/// The running statistics change behind `&self`. A clone has its own: nothing done to it reaches the
/// original, so a clone can serve as an averaged model. A fork of a clone, which is what Burn's
/// multi-device training makes for its workers, reports what it observes to the original: the
/// workers of one step are averaged by their number of values and count as one batch.
///
/// # Records
///
/// `gamma`, `beta`, `running_mean`, `running_var` and `batches_tracked` (the counter), without those
/// that the configuration switches off. Records of burn-nn's layer and PyTorch's files lack only the
/// last: load them with `allow_partial(true)` on the record or the store; the count stays as it is.
/// Ours load into burn-nn's layer with `ModuleRecord::allow_unused(true)`.
///
/// Should be created using [`BatchNormConfig`].
#[derive(Debug, Clone)]
pub struct BatchNorm {
    /// The learnable weight gamma, shape `[channels]`; ones where the configuration has no scale.
    pub gamma: Param<Tensor<1>>,
    /// The learnable bias beta, shape `[channels]`; zeros where the configuration has no shift.
    pub beta: Param<Tensor<1>>,
    /// Whether training behaviour is enabled for this layer.
    ///
    /// Disabled on an autodiff device, the layer normalizes by its running statistics and leaves
    /// them alone, while `gamma` and `beta` still get gradients.
    pub training: Param<Flag>,
    /// The running mean, shape `[channels]`.
    pub running_mean: RunningState,
    /// The running variance, shape `[channels]`.
    pub running_var: RunningState,
    /// The number of batches in the running statistics.
    pub num_batches_tracked: BatchCounter,
    /// Weight of the new batch in the running statistics, within `[0, 1]`.
    pub momentum: f64,
    /// Added to the variance for numerical stability; finite and positive.
    pub epsilon: f64,
    /// What else the configuration says. Its `momentum` and `epsilon` are not read: the two fields
    /// above may be changed, as burn-nn's may.
    pub(crate) config: BatchNormConfig,
}

impl BatchNormConfig {
    /// Initializes a new [batch norm](BatchNorm) module: gamma 1, beta 0, mean 0, variance 1.
    ///
    /// # Panics
    ///
    /// Panics where [`try_init`](Self::try_init) fails.
    pub fn init(&self, device: &Device) -> BatchNorm {
        self.try_init(device)
            .unwrap_or_else(|error| panic!("{error}"))
    }

    /// As [`init`](Self::init), with an error instead of a panic.
    ///
    /// # Errors
    ///
    /// If `num_features` is zero, `epsilon` is not finite and positive, `momentum` is not within
    /// `[0, 1]`, or `activation` has a slope that is not finite or bounds out of order.
    pub fn try_init(&self, device: &Device) -> Result<BatchNorm, BatchNormError> {
        self.validate()?;

        let shape = [self.num_features];
        let constant = |value: f64, learnable: bool| {
            Param::from_tensor(Tensor::full(shape, value, device)).set_require_grad(learnable)
        };
        let gamma = constant(1.0, self.scale);
        let beta = constant(0.0, self.shift);
        let statistics = (device, compute_dtype(gamma.dtype()));

        Ok(BatchNorm {
            gamma,
            beta,
            training: Param::from_bool(true),
            running_mean: RunningState::new(Tensor::zeros(shape, statistics)),
            running_var: RunningState::new(Tensor::ones(shape, statistics)),
            num_batches_tracked: BatchCounter::new(device),
            momentum: self.momentum,
            epsilon: self.epsilon,
            config: self.clone(),
        })
    }
}

impl BatchNorm {
    /// Applies the forward pass on the input tensor.
    ///
    /// See [`BatchNorm`] for more information.
    ///
    /// # Shapes
    ///
    /// - `input`: ``[batch_size, channels, ...]``, rank 2 or more, or with the channels on the
    ///   configured `channel_axis`
    /// - `output`: shape and type of the input
    ///
    /// An input without elements comes back as it is, and changes no state.
    ///
    /// # Panics
    ///
    /// Panics where [`try_forward`](Self::try_forward) fails.
    pub fn forward<const D: usize>(&self, input: Tensor<D>) -> Tensor<D> {
        self.try_forward(input)
            .unwrap_or_else(|error| panic!("{error}"))
    }

    /// As [`forward`](Self::forward), with an error instead of a panic. A call that fails leaves the
    /// layer as it was.
    ///
    /// # Errors
    ///
    /// If the input has rank < 2, another number of channels than the layer or a type that does not
    /// go with the parameters; if it has one value per channel, batch statistics are asked for and
    /// the [`SingleValue`] policy refuses it; if `epsilon` or `momentum` were set out of range.
    pub fn try_forward<const D: usize>(
        &self,
        input: Tensor<D>,
    ) -> Result<Tensor<D>, BatchNormError> {
        self.run(input, None)
    }

    /// [`forward`](Self::forward) of the end of a residual block, in one pass over memory:
    /// `activation(batch_norm(input) + residual)`.
    ///
    /// Differentiable in both. With an [`activation`](BatchNormConfig::activation), this is the
    /// `relu(bn(x) + skip)` of a ResNet.
    ///
    /// # Shapes
    ///
    /// - `input`, `output`: as for [`forward`](Self::forward)
    /// - `residual`: shape and type of the input
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

    /// As [`forward_residual`](Self::forward_residual), with an error instead of a panic. A call that
    /// fails leaves the layer as it was.
    ///
    /// # Errors
    ///
    /// As for [`try_forward`](Self::try_forward), and if the residual has not the shape and type of
    /// the input.
    pub fn try_forward_residual<const D: usize>(
        &self,
        input: Tensor<D>,
        residual: Tensor<D>,
    ) -> Result<Tensor<D>, BatchNormError> {
        self.run(input, Some(residual))
    }

    /// The configuration that makes a layer like this one.
    pub fn config(&self) -> BatchNormConfig {
        self.config
            .clone()
            .with_momentum(self.momentum)
            .with_epsilon(self.epsilon)
    }

    fn run<const D: usize>(
        &self,
        input: Tensor<D>,
        residual: Option<Tensor<D>>,
    ) -> Result<Tensor<D>, BatchNormError> {
        let axis = self.validate(&input, residual.as_ref())?;
        let shape = input.shape();
        if shape.num_elements() == 0 {
            return Ok(input);
        }
        let values_per_channel = shape.num_elements() / shape[axis];

        let epilogue = Epilogue {
            activation: self.config.activation,
            residual,
        };
        // Training behaviour is selected by the device *and* the layer state: partial fine-tuning
        // freezes a layer and leaves it on the training device, where the rest of the graph lives.
        let training = input.device().is_autodiff() && self.training.is_enabled();
        let tracking = self.config.running_stats;
        if !training && tracking {
            return Ok(self.forward_inference(input, axis, epilogue));
        }
        match (values_per_channel, self.config.single_value) {
            (1, SingleValue::UseRunning) if tracking => {
                Ok(self.forward_inference(input, axis, epilogue))
            }
            (1, SingleValue::Error | SingleValue::UseRunning) => Err(BatchNormError::SingleValue {
                shape: shape.to_vec(),
                hint: match tracking {
                    true => "UseRunning, SkipUpdate",
                    false => "SkipUpdate: this layer has no running statistics to use",
                },
            }),
            (1, SingleValue::SkipUpdate) => Ok(self.forward_batch(input, axis, epilogue, None)),
            (n, _) => {
                let update = (training && tracking).then_some(n);
                Ok(self.forward_batch(input, axis, epilogue, update))
            }
        }
    }

    fn forward_inference<const D: usize>(
        &self,
        input: Tensor<D>,
        axis: usize,
        epilogue: Epilogue<D>,
    ) -> Tensor<D> {
        let device = input.device();
        let dtype = compute_dtype(input.dtype());
        let mean = self.running_mean.value().to_device(&device);
        let variance = cast(self.running_var.value().to_device(&device), dtype);

        let inv_std = (variance + self.epsilon).sqrt().recip();
        let scale = cast(self.gamma.val(), dtype) * inv_std;
        normalize_then(input, mean, scale, self.beta.val(), axis, epilogue)
    }

    /// Normalizes by the statistics of the batch. With `Some` number of values per channel, more than
    /// one, they enter the running ones.
    fn forward_batch<const D: usize>(
        &self,
        input: Tensor<D>,
        axis: usize,
        epilogue: Epilogue<D>,
        update: Option<usize>,
    ) -> Tensor<D> {
        let update = update.map(|n| {
            let count = self.num_batches_tracked.snapshot();
            let (mean, var) = (self.running_mean.snapshot(), self.running_var.snapshot());
            let device = input.device();
            let running = Running {
                mean: mean.value.clone().to_device(&device),
                var: var.value.clone().to_device(&device),
                factor: match self.config.averaging {
                    Averaging::Exponential => self.momentum,
                    Averaging::Cumulative => 1.0 / (count.value as f64 + 1.0),
                },
                correction: match self.config.variance {
                    Variance::Unbiased => n as f64 / (n as f64 - 1.0),
                    Variance::Biased => 1.0,
                },
            };
            (running, (count, mean, var, n as f64))
        });
        let (running, before) = update.unzip();
        let training = Training {
            gamma: self.gamma.val(),
            beta: self.beta.val(),
            epsilon: self.epsilon,
            channel_axis: axis,
            epilogue,
            running,
        };
        let (result, running) = train(input, training);
        if let (Some((count, mean, var, weight)), Some((new_mean, new_var))) = (before, running) {
            self.running_mean.observe(mean, new_mean, weight);
            self.running_var.observe(var, new_var, weight);
            self.num_batches_tracked.observe(count, weight);
        }
        result.output
    }

    /// Every check of a call, before anything is computed. Returns the channel axis, counted from
    /// the front.
    fn validate<const D: usize>(
        &self,
        input: &Tensor<D>,
        residual: Option<&Tensor<D>>,
    ) -> Result<usize, BatchNormError> {
        if D < 2 {
            return Err(BatchNormError::Rank { rank: D });
        }
        validate_hyperparameters(self.epsilon, self.momentum)?;

        let axis = self.config.channel_axis;
        let from_front = match axis < 0 {
            true => axis + D as isize,
            false => axis,
        };
        let axis = usize::try_from(from_front)
            .ok()
            .filter(|axis| *axis < D)
            .ok_or(BatchNormError::ChannelAxis { axis, rank: D })?;

        let expected = self.config.num_features;
        let shape = input.shape();
        if shape[axis] != expected {
            return Err(BatchNormError::Channels {
                expected,
                got: shape[axis],
                axis,
                shape: shape.to_vec(),
            });
        }

        let dtype = input.dtype();
        if let Some(residual) = residual
            && (residual.shape() != shape || residual.dtype() != dtype)
        {
            return Err(BatchNormError::Residual {
                expected: shape.to_vec(),
                dtype,
                got: residual.shape().to_vec(),
                got_dtype: residual.dtype(),
            });
        }
        for (name, tensor) in [("gamma", &self.gamma), ("beta", &self.beta)] {
            let [got] = tensor.dims();
            if got != expected {
                return Err(BatchNormError::Parameter {
                    name,
                    expected,
                    got,
                });
            }
            let parameter = tensor.dtype();
            let half_input = matches!(dtype, DType::F16 | DType::BF16) && parameter == DType::F32;
            if !dtype.is_float() || (parameter != dtype && !half_input) {
                return Err(BatchNormError::DType {
                    input: dtype,
                    name,
                    parameter,
                });
            }
        }
        for (name, state) in [
            ("running_mean", &self.running_mean),
            ("running_var", &self.running_var),
        ] {
            let [got] = state.value().dims();
            if got != expected {
                return Err(BatchNormError::Parameter {
                    name,
                    expected,
                    got,
                });
            }
        }
        Ok(axis)
    }
}
