use burn::module::{Flag, Param, ParamId};
use burn::tensor::{Device, Tensor};

use crate::config::{validate_epsilon, validate_momentum};
use crate::operands::{Epilogue, Operands, Parameter};
use crate::ops::composed::compute_dtype;
use crate::statistics::fields::{Fields, show};
use crate::statistics::{Finished, Rule, Shared, Values, stored};
use crate::{BatchCounter, BatchNormConfig, BatchNormError, RunningState, SingleValue};

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
/// original, so a clone can serve as an averaged model. A fork of an unchanged clone, which is what
/// Burn's multi-device training makes for its workers, hands what it observed to the original when it
/// is dropped: the workers of one step are averaged by their number of values and count as one batch.
/// A fork that an optimizer, a record or another mapper has changed is a model of its own.
///
/// # Records
///
/// `gamma`, `beta`, `running_mean` and `running_var`, as burn-nn's layer and PyTorch name them, without
/// those that the configuration switches off; where the running statistics are
/// [`Cumulative`](crate::Averaging::Cumulative), `num_batches_tracked` too. Statistics are kept in f32
/// at least, whatever type a record has.
///
/// Should be created using [`BatchNormConfig`].
#[derive(Debug)]
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
    /// If `num_features` is zero, `epsilon` is not finite and positive in the type that is computed
    /// in, `momentum` is not within `[0, 1]`, or `activation` has a slope or bounds that are not finite
    /// in f32 or not in order.
    pub fn try_init(&self, device: &Device) -> Result<BatchNorm, BatchNormError> {
        self.validate()?;

        let shape = [self.num_features];
        let constant = |value: f64, learnable: bool| {
            Param::from_tensor(Tensor::full(shape, value, device)).set_require_grad(learnable)
        };
        let gamma = constant(1.0, self.scale);
        validate_epsilon(self.epsilon, compute_dtype(gamma.dtype()))?;
        let running = Shared::new(Values {
            mean: stored(Tensor::zeros(shape, device)),
            variance: stored(Tensor::ones(shape, device)),
            batches: 0,
        });
        let ids = [(); 3].map(|()| ParamId::new());
        let (running_mean, running_var, num_batches_tracked) = show(&running, ids);

        Ok(BatchNorm {
            gamma,
            beta: constant(0.0, self.shift),
            training: Param::from_bool(true),
            running_mean,
            running_var,
            num_batches_tracked,
            momentum: self.momentum,
            epsilon: self.epsilon,
            config: self.clone(),
        })
    }
}

/// Which statistics a call normalizes by.
enum Source {
    Running,
    Batch {
        /// Whether they enter the running ones.
        enter: bool,
    },
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
    /// An input without elements gives an output without elements, gradients of 0, and changes no
    /// state.
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
    /// If the input has rank < 2, another number of channels than the layer, another device, or a type
    /// that does not go with the parameters or that the device cannot compute with; if it has one value
    /// per channel, batch statistics are asked for and the [`SingleValue`] policy refuses it; if
    /// `epsilon` or `momentum` were set out of range.
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
    /// As for [`try_forward`](Self::try_forward), and if the residual has not the shape, type and
    /// device of the input.
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

    pub(crate) fn statistics(&self) -> Fields<'_> {
        Fields {
            mean: &self.running_mean,
            variance: &self.running_var,
            counter: &self.num_batches_tracked,
        }
    }

    /// Checks, then chooses the statistics, then runs.
    fn run<const D: usize>(
        &self,
        input: Tensor<D>,
        residual: Option<Tensor<D>>,
    ) -> Result<Tensor<D>, BatchNormError> {
        let shape = input.shape().to_vec();
        let axis = self.channel_axis(&shape)?;
        let values = shape.iter().product::<usize>() / shape[axis];
        validate_momentum(self.momentum)?;
        // Training behaviour is selected by the device *and* the layer state: partial fine-tuning
        // freezes a layer and leaves it on the training device, where the rest of the graph lives.
        let training = input.device().is_autodiff() && self.training.is_enabled();

        let parameters = [
            (&self.gamma, self.config.scale),
            (&self.beta, self.config.shift),
        ]
        .map(|(parameter, learned)| match learned {
            true => Parameter::Learned(parameter.val()),
            false => Parameter::Constant(parameter.val()),
        });
        let epilogue = Epilogue {
            activation: self.config.activation,
            residual,
        };
        let operands = Operands::new(input, parameters, epilogue, self.epsilon, axis)?;
        let source = self.source(training, values, shape)?;

        let statistics = self.statistics();
        match source {
            Source::Running => {
                let Values { mean, variance, .. } = self.checked(statistics.values())?;
                Ok(operands.normalize_by([mean, variance]))
            }
            Source::Batch { enter: false } => Ok(operands.train(None).output),
            Source::Batch { enter: true } => {
                let rule = Rule {
                    averaging: self.config.averaging,
                    momentum: self.momentum,
                    estimator: self.config.variance,
                    values,
                };
                let mut begun = statistics.begin(&rule);
                begun.values = self.checked(begun.values)?;
                let trained = operands.train(Some((&begun.values, begun.update)));
                if let Some(blended) = trained.running {
                    let moments = trained.moments;
                    statistics.finish(begun, &rule, Finished { blended, moments });
                }
                Ok(trained.output)
            }
        }
    }

    /// The channel axis of an input, counted from the front.
    fn channel_axis(&self, shape: &[usize]) -> Result<usize, BatchNormError> {
        let rank = shape.len();
        if rank < 2 {
            return Err(BatchNormError::Rank { rank });
        }
        let axis = self.config.channel_axis;
        let from_front = match axis < 0 {
            true => axis + rank as isize,
            false => axis,
        };
        let from_front = usize::try_from(from_front)
            .ok()
            .filter(|axis| *axis < rank)
            .ok_or(BatchNormError::ChannelAxis { axis, rank })?;
        match (self.config.num_features, shape[from_front]) {
            (expected, got) if expected == got => Ok(from_front),
            (expected, got) => Err(BatchNormError::Channels {
                expected,
                got,
                axis: from_front,
                shape: shape.to_vec(),
            }),
        }
    }

    fn source(
        &self,
        training: bool,
        values: usize,
        shape: Vec<usize>,
    ) -> Result<Source, BatchNormError> {
        let tracking = self.config.running_stats;
        match (values, self.config.single_value) {
            _ if !training && tracking => Ok(Source::Running),
            // Nothing to take statistics of, and nothing that they would change.
            (0, _) => Ok(Source::Running),
            (1, SingleValue::UseRunning) if tracking => Ok(Source::Running),
            (1, SingleValue::SkipUpdate) => Ok(Source::Batch { enter: false }),
            (1, SingleValue::Error | SingleValue::UseRunning) => Err(BatchNormError::SingleValue {
                shape,
                hint: match tracking {
                    true => "UseRunning, SkipUpdate",
                    false => "SkipUpdate: this layer has no running statistics to use",
                },
            }),
            _ => Ok(Source::Batch {
                enter: training && tracking,
            }),
        }
    }

    /// The running statistics, which somebody may have replaced by others.
    fn checked(&self, values: Values) -> Result<Values, BatchNormError> {
        let expected = self.config.num_features;
        for (name, tensor) in [
            ("running_mean", &values.mean),
            ("running_var", &values.variance),
        ] {
            let [got] = tensor.dims();
            if got != expected {
                return Err(BatchNormError::Parameter {
                    name,
                    expected,
                    got,
                });
            }
        }
        Ok(values)
    }
}
