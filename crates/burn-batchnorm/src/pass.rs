//! A pass of the layer: validate, choose the statistics, run.

use burn::tensor::Tensor;

use crate::config::{Inference, Memory, Statistics, validate_momentum};
use crate::operands::{Epilogue, Operands, Parameter};
use crate::options::scope::{self, Scope};
use crate::statistics::{Observation, Values};
use crate::{Averaging, BatchNorm, BatchNormError, Mask, Recalibration, SingleValue, options};

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
    /// Differentiable in both. With an [`activation`](crate::BatchNormConfig::activation), this is the
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
    /// [`masked_output`](crate::BatchNormConfig::masked_output). Where running statistics normalize, the mask
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
                Ok(operands.normalize_by(&self.checked(statistics.values())?, None))
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

    pub(crate) fn kept<const D: usize>(&self, operands: Operands<D>) -> Operands<D> {
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
        // Layers behind this one are to see what it will make of the data in inference: the nearest to that
        // are statistics of the whole batch, whatever those are that it trains by.
        if let (true, Scope::Recalibrate(mode)) = (training && tracking, scope::current())
            && (values > 1 || values == 1 && mode == Recalibration::Population)
        {
            return Ok(Source {
                by: Statistics::Batch,
                enter: true,
            });
        }
        match (fewest, config.single_value) {
            _ if !training && tracking && by_running => by(Statistics::Running),
            // Nothing to take statistics of, and nothing that they would change.
            (0, _) => by(Statistics::Running),
            // One value has no statistics that could enter, and none are asked for.
            (1, policy)
                if training
                    && config.statistics == Statistics::Running
                    && (!config.update_statistics || policy != SingleValue::Error) =>
            {
                by(Statistics::Running)
            }
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
