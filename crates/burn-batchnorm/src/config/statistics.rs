//! Which statistics a pass normalizes by.

use serde::{Deserialize, Serialize};

use crate::BatchNormError;

/// Which statistics a training pass normalizes by. Those of the batch enter the running ones whichever it
/// is.
///
/// All but [`Batch`](Self::Batch) and [`Ghost`](Self::Ghost) need `running_stats`.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub enum Statistics {
    /// Those of the batch: [batch normalization](https://arxiv.org/abs/1502.03167).
    #[default]
    Batch,
    /// The running ones, which are constants for the gradient (MXNet's and Caffe's `use_global_stats`).
    Running,
    /// `batch * those of the batch + (1 - batch) * the running ones`, mean and variance alike. The
    /// gradient goes through the batch's part.
    Blend {
        /// Weight of the batch, within `[0, 1]`.
        batch: f64,
    },
    /// Those of the batch, corrected towards the running ones: [`Renorm`].
    Renorm(Renorm),
    /// Those of each ghost batch: [`Ghost`].
    Ghost(Ghost),
}

/// Which statistics normalize where the layer does not train.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub enum Inference {
    /// The running ones; without `running_stats`, those of the batch.
    #[default]
    Running,
    /// Those of the batch: [prediction-time batch normalization](https://arxiv.org/abs/2006.10963).
    Batch,
    /// `batch * those of the batch + (1 - batch) * the running ones`: test-time adaptation to data that
    /// has drifted ([alpha-BN](https://arxiv.org/abs/2110.04065)).
    Blend {
        /// Weight of the batch, within `[0, 1]`.
        batch: f64,
    },
}

/// [Batch renormalization](https://arxiv.org/abs/1702.03275): training passes give what inference will give,
/// for small batches, and batches whose samples depend on each other. The gradient stays that of the batch: with
/// two or four values a channel, little of it reaches the layer below, and a [`Blend`](Statistics::Blend) does more.
///
/// `y = (x_hat * r + d) * gamma + beta`, where `x_hat` is the input normalized by its batch and
///
/// ```text
/// r = clip(std_batch / std_reference, r_min, r_max)
/// d = clip((mean_batch - mean_reference) / std_reference, -d_max, d_max)
/// ```
///
/// are constants for the gradient, with `std = sqrt(variance + epsilon)` and the reference as it was before
/// the pass. With `r_max = 1` and `d_max = 0` it is batch normalization.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Renorm {
    /// The smallest `r`, not negative. None: `1 / r_max`, as in the paper.
    #[serde(default)]
    pub r_min: Option<f64>,
    /// The largest `r`.
    pub r_max: Bound,
    /// The largest `d`, by magnitude.
    pub d_max: Bound,
    /// What `r` and `d` correct towards.
    #[serde(default)]
    pub reference: Reference,
}

/// A bound of [`Renorm`], not negative, perhaps by the number of batches that the layer has been trained
/// with.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub enum Bound {
    /// None.
    Unbounded,
    /// The same at all times.
    Constant(f64),
    /// `start` until batch `from`, then in a line to `end` at batch `until`, and `end` from there on. The
    /// number of batches is recorded (`num_batches_tracked`).
    Ramp {
        /// At first.
        start: f64,
        /// At last.
        end: f64,
        /// The batch after which it begins to change.
        from: u64,
        /// The batch from which on it changes no more; not before `from`.
        until: u64,
    },
}

/// What [`Renorm`] corrects towards.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub enum Reference {
    /// The running mean and variance, as in the paper.
    #[default]
    Running,
    /// Averages of the batches' means and standard deviations of their own, and a running variance that is
    /// the square of an average standard deviation, less epsilon: Keras. Recorded under Keras's names,
    /// `renorm_mean`, `renorm_stddev` and `moving_stddev`.
    Separate {
        /// Weight of the new batch in the first two, within `[0, 1]`: 1 less Keras's `renorm_momentum`.
        momentum: f64,
    },
}

impl Renorm {
    /// The paper's: `r_max` from 1 to 3 over batches 5,000 to 40,000, `d_max` from 0 to 5 over batches
    /// 5,000 to 25,000.
    pub fn paper() -> Self {
        let ramp = |start, end, until| Bound::Ramp {
            start,
            end,
            from: 5_000,
            until,
        };
        Self {
            r_min: None,
            r_max: ramp(1.0, 3.0, 40_000),
            d_max: ramp(0.0, 5.0, 25_000),
            reference: Reference::Running,
        }
    }

    /// Keras's with its defaults: no bounds, and a reference of its own with `renorm_momentum=0.99`. For a layer
    /// by [`BatchNormConfig::keras`](crate::BatchNormConfig::keras).
    pub fn keras() -> Self {
        Self {
            r_min: Some(0.0),
            r_max: Bound::Unbounded,
            d_max: Bound::Unbounded,
            reference: Reference::Separate { momentum: 0.01 },
        }
    }
}

/// Ghost batches: each sample is normalized by the statistics of a small part of the batch, whose noise
/// [regularizes](https://arxiv.org/abs/1705.08741) large batches.
///
/// Of `G` ghost batches, number `g` holds the samples `i` with `i mod G = g`, as Keras 2's
/// `virtual_batch_size` does. Samples are counted along the first axis that is not the channels'. In
/// inference nothing is split. A ghost batch of one value per channel has no variance: the
/// [`single_value`](crate::BatchNormConfig::single_value) policy says what becomes of such a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ghost {
    /// The samples of a ghost batch. There are `ceil(N / size)` of them, whose sizes differ by at most one
    /// where `size` does not divide the batch; and fewer and larger ones where the smallest would have one
    /// value a channel and `size` is more than 1.
    pub size: usize,
    /// What enters the running statistics.
    #[serde(default)]
    pub variance: GhostVariance,
}

/// What the running variance of [`Ghost`] batches is the average of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[non_exhaustive]
pub enum GhostVariance {
    /// The variance of the whole batch, which is what inference meets.
    #[default]
    Pooled,
    /// The mean of the ghost batches' variances (Keras 2), which lacks how far their means lie apart.
    Mean,
}

impl Ghost {
    /// Ghost batches of `size` samples, with a pooled variance. Where that does not divide the batch, some have a
    /// sample less; or more, where they would have one value a channel.
    pub fn new(size: usize) -> Self {
        Self {
            size,
            variance: GhostVariance::Pooled,
        }
    }
}

impl Bound {
    /// At the batch after `batches` earlier ones.
    pub(crate) fn at(self, batches: u64) -> Option<f64> {
        match self {
            Self::Unbounded => None,
            Self::Constant(bound) => Some(bound),
            Self::Ramp {
                start,
                end,
                from,
                until,
            } => Some(match batches {
                batches if batches <= from => start,
                batches if batches >= until => end,
                batches => {
                    let way = (batches - from) as f64 / (until - from) as f64;
                    start + (end - start) * way
                }
            }),
        }
    }

    fn ends(self) -> [Option<f64>; 2] {
        match self {
            Self::Unbounded => [None, None],
            Self::Constant(bound) => [Some(bound); 2],
            Self::Ramp { start, end, .. } => [Some(start), Some(end)],
        }
    }

    fn valid(self, smallest: f64) -> bool {
        let in_order = match self {
            Self::Ramp { from, until, .. } => from <= until,
            Self::Unbounded | Self::Constant(_) => true,
        };
        let in_range = |bound: f64| bound >= smallest && (bound as f32).is_finite();
        in_order && self.ends().into_iter().flatten().all(in_range)
    }
}

impl Statistics {
    pub(crate) fn validate(self) -> Result<(), BatchNormError> {
        let refuse = |expected, got| Err(invalid("statistics", expected, got));
        match self {
            Self::Batch | Self::Running => Ok(()),
            Self::Blend { batch } => weight("statistics", batch),
            Self::Ghost(Ghost { size: 0, .. }) => {
                refuse("ghost batches of 1 sample or more", "0".into())
            }
            Self::Ghost(_) => Ok(()),
            Self::Renorm(Renorm {
                r_min,
                r_max,
                d_max,
                reference,
            }) => {
                if !d_max.valid(0.0) {
                    let expected = "a d_max that is finite, not negative, and a ramp in order";
                    return refuse(expected, format!("{d_max:?}"));
                }
                let smallest = match r_min {
                    // 1 / r_max is to be the smaller of the two.
                    None => 1.0,
                    Some(r_min) if r_min >= 0.0 && (r_min as f32).is_finite() => r_min,
                    Some(r_min) => {
                        return refuse(
                            "an r_min that is finite and not negative",
                            r_min.to_string(),
                        );
                    }
                };
                if !r_max.valid(smallest) {
                    let expected = "an r_max that is finite, not below r_min (1 where there is none), and a \
                                    ramp in order";
                    return refuse(expected, format!("{r_max:?}"));
                }
                match reference {
                    Reference::Running => Ok(()),
                    Reference::Separate { momentum } => weight("renorm momentum", momentum),
                }
            }
        }
    }

    /// Whether the number of batches decides something.
    pub(crate) fn counts(self) -> bool {
        let ramp = |bound| matches!(bound, Bound::Ramp { .. });
        matches!(self, Self::Renorm(renorm) if ramp(renorm.r_max) || ramp(renorm.d_max))
    }

    /// Momentum of the reference that it keeps for itself, if it does.
    pub(crate) fn separate(self) -> Option<f64> {
        match self {
            Self::Renorm(Renorm {
                reference: Reference::Separate { momentum },
                ..
            }) => Some(momentum),
            _ => None,
        }
    }

    pub(crate) fn needs_running(self) -> bool {
        !matches!(self, Self::Batch | Self::Ghost(_))
    }
}

impl Inference {
    pub(crate) fn validate(self) -> Result<(), BatchNormError> {
        match self {
            Self::Running | Self::Batch => Ok(()),
            Self::Blend { batch } => weight("inference", batch),
        }
    }
}

fn weight(option: &'static str, weight: f64) -> Result<(), BatchNormError> {
    match (0.0..=1.0).contains(&weight) {
        true => Ok(()),
        false => Err(invalid(
            option,
            "a weight within [0, 1]",
            weight.to_string(),
        )),
    }
}

fn invalid(option: &'static str, expected: &'static str, got: String) -> BatchNormError {
    BatchNormError::Invalid {
        option,
        expected,
        got,
    }
}
