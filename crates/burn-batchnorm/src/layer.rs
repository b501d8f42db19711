use burn::module::{Flag, Param, ParamId};
use burn::tensor::{Device, Tensor};

use crate::config::validate_epsilon;
use crate::operands::Parameter;
use crate::ops::composed::compute_dtype;
use crate::statistics::fields::{Fields, show};
use crate::statistics::{Renormed, Rule, Shared, Values, stored};
use crate::{BatchCounter, BatchNormConfig, BatchNormError, RunningState};

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
/// ([`Cumulative`](crate::Averaging::Cumulative), [`Debiased`](crate::Averaging::Debiased), a
/// [`Ramp`](crate::Bound::Ramp)), `num_batches_tracked` too;
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
        let renorm = separate.map(|_| Box::new(Renormed::fresh(new_ids(), &mean)));
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

impl BatchNorm {
    /// The configuration that makes a layer like this one.
    pub fn config(&self) -> BatchNormConfig {
        self.config
            .clone()
            .with_momentum(self.momentum)
            .with_epsilon(self.epsilon)
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
    /// Counted on the device since the layer was initialized or reset; not recorded. A record that
    /// holds the number of batches resets it: what was left out is not in that.
    pub fn skipped_updates(&self) -> Tensor<1> {
        let values = self.statistics().values();
        values.skipped.unwrap_or_else(|| values.mean.zeros_like())
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
}
