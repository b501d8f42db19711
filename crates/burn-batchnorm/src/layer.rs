use burn::module::{Flag, Param, ParamId};
use burn::tensor::{Device, Tensor};

use crate::config::{Inference, Memory, Statistics, validate_epsilon, validate_momentum};
use crate::operands::{Epilogue, Operands, Parameter};
use crate::ops::composed::compute_dtype;
use crate::options::scope::{self, Scope};
use crate::statistics::fields::{Fields, show};
use crate::statistics::{Observation, Renormed, Rule, Shared, Values, stored};
use crate::{
    Averaging, BatchCounter, BatchNormConfig, BatchNormError, Mask, RunningState, SingleValue,
    options,
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
/// original, so a clone can serve as an averaged model. A fork of an unchanged clone, which is what
/// Burn's multi-device training makes for its workers, hands what it observed to the original when it
/// is dropped: the workers of one step are averaged by their number of values and count as one batch.
/// A fork that an optimizer, a record or another mapper has changed is a model of its own.
///
/// # Records
///
/// `gamma`, `beta`, `running_mean` and `running_var`, as burn-nn's layer and PyTorch name them, without
/// those that the configuration switches off; where the number of batches decides something
/// ([`Cumulative`](crate::Averaging::Cumulative), a [`Ramp`](crate::Bound::Ramp)), `num_batches_tracked` too;
/// and what [`Reference::Separate`](crate::Reference::Separate) adds. Statistics are kept in f32 at least,
/// whatever type a record has.
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
    /// Initializes a new [batch norm](BatchNorm) module: mean 0, variance 1, gamma and beta as configured.
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
    /// in, `momentum` is not within `[0, 1]`, `activation` has a slope or bounds that are not finite
    /// in f32 or not in order, another option is out of its range, or one needs the running statistics
    /// that `running_stats` switches off.
    pub fn try_init(&self, device: &Device) -> Result<BatchNorm, BatchNormError> {
        self.validate()?;

        let shape = [self.num_features];
        let constant = |value: f64, learnable: bool| {
            let value = Tensor::full(shape, value, device);
            Param::from_tensor(value).set_require_grad(learnable && self.train_affine)
        };
        let gamma = constant(self.initial_gamma, self.scale);
        validate_epsilon(self.epsilon, compute_dtype(gamma.dtype()))?;
        let mean = stored(Tensor::zeros(shape, device));
        let new_ids = || [(); 3].map(|()| ParamId::new());
        let separate = self.statistics.separate();
        let renorm = separate.map(|_| Renormed::fresh(new_ids(), &mean));
        let variance = stored(Tensor::ones(shape, device));
        let running = Shared::new(Values {
            renorm,
            ..Values::fresh(mean, variance)
        });
        let ids = new_ids();
        let (running_mean, running_var, num_batches_tracked) = show(&running, ids);

        Ok(BatchNorm {
            gamma,
            beta: constant(self.initial_beta, self.shift),
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

/// What a pass may be given besides its input.
#[derive(Debug, Clone, Default)]
pub struct With<const D: usize> {
    /// Shape and type of the input; added before the activation.
    pub residual: Option<Tensor<D>>,
    /// Which positions count.
    pub mask: Option<Mask>,
}

/// Which statistics a call normalizes by.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Source {
    pub(crate) by: Statistics,
    /// Whether those of the batch enter the running ones.
    pub(crate) enter: bool,
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
        self.try_forward_with(input, With::default())
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
        let with = With {
            residual: Some(residual),
            mask: None,
        };
        self.try_forward_with(input, with)
    }

    /// [`forward`](Self::forward) of positions that a mask admits: padded sequences, ragged batches,
    /// weighted samples. See [`Mask`].
    ///
    /// The statistics are those of what is admitted; what the output is elsewhere is up to
    /// [`masked_output`](BatchNormConfig::masked_output). Where running statistics normalize, the mask
    /// decides nothing else.
    ///
    /// # Panics
    ///
    /// Panics where [`try_forward_masked`](Self::try_forward_masked) fails.
    pub fn forward_masked<const D: usize>(&self, input: Tensor<D>, mask: &Mask) -> Tensor<D> {
        self.try_forward_masked(input, mask)
            .unwrap_or_else(|error| panic!("{error}"))
    }

    /// As [`forward_masked`](Self::forward_masked), with an error instead of a panic. A call that fails
    /// leaves the layer as it was.
    ///
    /// # Errors
    ///
    /// As for [`try_forward`](Self::try_forward), and if the mask does not go with the input.
    pub fn try_forward_masked<const D: usize>(
        &self,
        input: Tensor<D>,
        mask: &Mask,
    ) -> Result<Tensor<D>, BatchNormError> {
        let with = With {
            residual: None,
            mask: Some(mask.clone()),
        };
        self.try_forward_with(input, with)
    }

    /// [`forward`](Self::forward) with everything that a pass may be given.
    ///
    /// # Panics
    ///
    /// Panics where [`try_forward_with`](Self::try_forward_with) fails.
    pub fn forward_with<const D: usize>(&self, input: Tensor<D>, with: With<D>) -> Tensor<D> {
        self.try_forward_with(input, with)
            .unwrap_or_else(|error| panic!("{error}"))
    }

    /// As [`forward_with`](Self::forward_with), with an error instead of a panic.
    ///
    /// # Errors
    ///
    /// As for [`try_forward_residual`](Self::try_forward_residual) and
    /// [`try_forward_masked`](Self::try_forward_masked).
    pub fn try_forward_with<const D: usize>(
        &self,
        input: Tensor<D>,
        with: With<D>,
    ) -> Result<Tensor<D>, BatchNormError> {
        self.run(input, self.parameters(), with)
    }

    /// Changes options: which statistics normalize, whether they are updated, whether gamma and beta train,
    /// momentum, policies. Unlike flags, they survive `train()` and `valid()`.
    ///
    /// # Errors
    ///
    /// As for [`BatchNormConfig::try_init`], and if `num_features`, `scale`, `shift`, `running_stats` or what
    /// renormalization keeps would change. The layer is then as it was.
    pub fn reconfigure(&mut self, config: BatchNormConfig) -> Result<(), BatchNormError> {
        config.validate()?;
        validate_epsilon(config.epsilon, compute_dtype(self.gamma.dtype()))?;
        let old = &self.config;
        let separate = |config: &BatchNormConfig| config.statistics.separate().is_some();
        for (option, changes) in [
            ("num_features", old.num_features != config.num_features),
            ("scale", old.scale != config.scale),
            ("shift", old.shift != config.shift),
            ("running_stats", old.running_stats != config.running_stats),
            ("statistics", separate(old) != separate(&config)),
        ] {
            if changes {
                return Err(BatchNormError::Reconfigure { option });
            }
        }
        if old.train_affine != config.train_affine {
            let trains = |param: &Param<Tensor<1>>, learned: bool| {
                param
                    .clone()
                    .set_require_grad(learned && config.train_affine)
            };
            (self.gamma, self.beta) = (
                trains(&self.gamma, config.scale),
                trains(&self.beta, config.shift),
            );
        }
        (self.momentum, self.epsilon) = (config.momentum, config.epsilon);
        self.config = config;
        Ok(())
    }

    /// Forgets the running statistics: mean 0, variance 1, no batch. PyTorch's `reset_running_stats`.
    pub fn reset_statistics(&self) {
        self.statistics().reset();
    }

    /// How many updates each channel has left out, shape `[channels]`: of batches that were not finite
    /// ([`NonFinite::Skip`](crate::NonFinite::Skip)) or of which a mask admitted too little.
    ///
    /// Counted on the device since the layer was initialized or reset; not recorded, and not reset by a record.
    pub fn skipped_updates(&self) -> Tensor<1> {
        let values = self.statistics().values();
        values.skipped.unwrap_or_else(|| values.mean.zeros_like())
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

    /// Gamma and beta.
    pub(crate) fn parameters(&self) -> [Parameter; 2] {
        let parameter =
            |param: &Param<Tensor<1>>, learned: bool| match (learned, self.config.train_affine) {
                (false, _) => Parameter::Constant(param.val()),
                (true, true) => Parameter::Learned(param.val()),
                (true, false) => Parameter::Learned(param.val().detach()),
            };
        [
            parameter(&self.gamma, self.config.scale),
            parameter(&self.beta, self.config.shift),
        ]
    }

    /// How batches enter the running statistics.
    pub(crate) fn rule(&self) -> Rule {
        Rule {
            averaging: self.config.averaging,
            momentum: self.momentum,
            estimator: self.config.variance,
            non_finite: self.config.non_finite,
            renorm: self.config.statistics.separate(),
            epsilon: self.epsilon,
        }
    }

    /// Checks, then chooses the statistics, then runs.
    pub(crate) fn run<const D: usize>(
        &self,
        input: Tensor<D>,
        parameters: [Parameter; 2],
        with: With<D>,
    ) -> Result<Tensor<D>, BatchNormError> {
        let shape = input.shape().to_vec();
        let axis = self.channel_axis(&shape)?;
        let values = shape.iter().product::<usize>() / shape[axis];
        validate_momentum(self.momentum)?;
        let device = input.device();
        // Training behaviour is selected by the device *and* the layer state: partial fine-tuning
        // freezes a layer and leaves it on the training device, where the rest of the graph lives.
        let training = scope::current().trains(self, device.is_autodiff());

        let epilogue = Epilogue {
            activation: self.config.activation,
            residual: with.residual,
        };
        let operands = Operands::new(input, parameters, epilogue, self.epsilon, axis)?;
        let weights = match with.mask {
            None => None,
            Some(mask) => mask.of_input(&shape, operands.view(), &device)?,
        };
        let source = self.source(training, values, axis, shape)?;

        let statistics = self.statistics();
        let simple = weights.is_none() && scope::current() == Scope::Closed;
        match (source.by, source.enter) {
            (Statistics::Running, false) if simple => {
                Ok(operands.normalize_by(&self.checked(statistics.values())?))
            }
            (Statistics::Batch, false) if simple => Ok(self.kept(operands).train(None).output),
            (Statistics::Batch, true) if simple && self.config.is_plain() => {
                let rule = self.rule();
                let mut begun = statistics.begin(&rule, values);
                begun.values = self.checked(begun.values)?;
                // Channels that have left out batches differ in how they count this one.
                let same = begun.values.skipped.is_none()
                    || self.config.averaging == Averaging::Exponential;
                let running = same.then_some((&begun.values, begun.update));
                let trained = self.kept(operands).train(running);
                let batch = Observation::of_batch(trained.moments, values);
                match trained.running {
                    Some(blended) => statistics.finish(begun, blended, &rule, &batch),
                    None => statistics.enter(&rule, &batch),
                }
                Ok(trained.output)
            }
            _ => {
                let running = self.checked(statistics.values())?;
                Ok(options::run(self, operands, weights, source, &running))
            }
        }
    }

    fn kept<const D: usize>(&self, operands: Operands<D>) -> Operands<D> {
        match self.config.memory {
            Memory::Input => operands,
            Memory::Output => operands.keeping_output(),
        }
    }

    /// The channel axis of an input, counted from the front.
    pub(crate) fn channel_axis(&self, shape: &[usize]) -> Result<usize, BatchNormError> {
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
        axis: usize,
        shape: Vec<usize>,
    ) -> Result<Source, BatchNormError> {
        let config = &self.config;
        let tracking = config.running_stats;
        let by = |by| Ok(Source { by, enter: false });
        // What statistics are taken of, and the fewest values of any of them.
        let (batch, fewest) = match config.statistics {
            Statistics::Ghost(ghost) if training => {
                (config.statistics, ghost.fewest_values(&shape, axis))
            }
            _ => (Statistics::Batch, values),
        };
        let by_running =
            config.inference == Inference::Running || scope::current() == Scope::Examine;
        match (fewest, config.single_value) {
            _ if !training && tracking && by_running => by(Statistics::Running),
            // Nothing to take statistics of, and nothing that they would change.
            (0, _) => by(Statistics::Running),
            (1, SingleValue::UseRunning) if tracking => by(Statistics::Running),
            (1, SingleValue::SkipUpdate) => by(batch),
            (1, SingleValue::Error | SingleValue::UseRunning) => Err(BatchNormError::SingleValue {
                shape,
                hint: match tracking {
                    true => "UseRunning, SkipUpdate",
                    false => "SkipUpdate: this layer has no running statistics to use",
                },
            }),
            _ if training => Ok(Source {
                by: config.statistics,
                enter: tracking && config.update_statistics,
            }),
            _ => match config.inference {
                Inference::Blend { batch } => by(Statistics::Blend { batch }),
                Inference::Running | Inference::Batch => by(Statistics::Batch),
            },
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
