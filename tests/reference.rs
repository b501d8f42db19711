//! The layer with every option, in f64 and by the formulas of its documentation, one value at a time: an
//! oracle that shares no code with what it checks. Gradients are finite differences of it.

use burn_batchnorm::{
    Activation, Averaging, BatchNormConfig, Bound, GhostVariance, Inference, MaskedOutput,
    NonFinite, Reference, SingleValue, Statistics, Variance,
};

/// A batch: values in the order of the shape.
#[derive(Debug, Clone)]
pub struct Batch {
    pub shape: Vec<usize>,
    pub x: Vec<f64>,
    pub residual: Option<Vec<f64>>,
    /// One a value.
    pub weights: Option<Vec<f64>>,
}

/// What batch renormalization corrects by, which gradients take for constants.
pub type Constants = Vec<(f64, f64)>;

#[derive(Debug, Clone)]
pub struct Layer {
    pub config: BatchNormConfig,
    pub gamma: Vec<f64>,
    pub beta: Vec<f64>,
    pub mean: Vec<f64>,
    pub variance: Vec<f64>,
    pub skipped: Vec<f64>,
    pub batches: u64,
    renorm_mean: Vec<f64>,
    renorm_stddev: Vec<f64>,
    moving_stddev: Vec<f64>,
}

/// Weighted moments of some values.
#[derive(Debug, Clone, Copy)]
struct Moments {
    mean: f64,
    variance: f64,
    weight: f64,
}

fn moments(values: impl Iterator<Item = (f64, f64)> + Clone) -> Moments {
    let admitted = || values.clone().filter(|(_, w)| *w > 0.0);
    let weight: f64 = admitted().map(|(_, w)| w).sum();
    if weight == 0.0 {
        // As of a new layer.
        return Moments {
            mean: 0.0,
            variance: 1.0,
            weight,
        };
    }
    let mean = admitted().map(|(x, w)| x * w).sum::<f64>() / weight;
    let variance = admitted()
        .map(|(x, w)| w * (x - mean) * (x - mean))
        .sum::<f64>()
        / weight;
    Moments {
        mean,
        variance,
        weight,
    }
}

impl Layer {
    pub fn new(config: BatchNormConfig, gamma: Vec<f64>, beta: Vec<f64>) -> Self {
        let channels = config.num_features;
        let (zeros, ones) = (vec![0.0; channels], vec![1.0; channels]);
        Self {
            gamma: if config.scale { gamma } else { ones.clone() },
            beta: if config.shift { beta } else { zeros.clone() },
            config,
            mean: zeros.clone(),
            variance: ones.clone(),
            skipped: zeros.clone(),
            batches: 0,
            renorm_mean: zeros,
            renorm_stddev: ones.clone(),
            moving_stddev: ones,
        }
    }

    fn axis(&self, batch: &Batch) -> usize {
        let rank = batch.shape.len() as isize;
        (self.config.channel_axis
            + if self.config.channel_axis < 0 {
                rank
            } else {
                0
            }) as usize
    }

    /// Channel and sample of a value.
    fn place(&self, batch: &Batch, index: usize) -> (usize, usize) {
        let axis = self.axis(batch);
        let at = |axis: usize| {
            let inner: usize = batch.shape[axis + 1..].iter().product();
            index / inner % batch.shape[axis]
        };
        (at(axis), at(usize::from(axis == 0)))
    }

    fn bound(bound: Bound, batches: u64) -> f64 {
        match bound {
            Bound::Constant(bound) => bound,
            Bound::Ramp {
                start,
                end,
                from,
                until,
            } => {
                let share = match batches {
                    batches if batches <= from => 0.0,
                    batches if batches >= until => 1.0,
                    batches => (batches - from) as f64 / (until - from) as f64,
                };
                start + share * (end - start)
            }
            _ => f64::INFINITY,
        }
    }

    /// Values per channel of the whole batch, or of its smallest ghost batch.
    fn fewest(&self, batch: &Batch, training: bool) -> usize {
        let values = batch.x.len() / self.config.num_features;
        match self.config.statistics {
            Statistics::Ghost(ghost) if training => {
                let samples = batch.shape[usize::from(self.axis(batch) == 0)];
                let groups = self.groups(batch, ghost.size);
                // The last one begins with sample `groups - 1`.
                let of_last = (groups - 1..samples).step_by(groups).count();
                of_last * (values / samples)
            }
            _ => values,
        }
    }

    /// Ghost batches of so many samples; none of one value a channel where two can be had.
    fn groups(&self, batch: &Batch, size: usize) -> usize {
        let samples = batch.shape[usize::from(self.axis(batch) == 0)];
        let groups = samples.div_ceil(size);
        if samples * self.config.num_features == batch.x.len() && size > 1 && samples > 1 {
            return groups.min(samples / 2);
        }
        groups
    }

    /// The batches that some channel took.
    pub fn entered(&self) -> u64 {
        self.batches - self.skipped.iter().copied().fold(f64::INFINITY, f64::min) as u64
    }

    /// `r` and `d` of a pass.
    fn correction(&self, statistics: Statistics, batch: &[Moments]) -> Constants {
        let Statistics::Renorm(renorm) = statistics else {
            return vec![(1.0, 0.0); batch.len()];
        };
        let epsilon = self.config.epsilon;
        let r_max = Self::bound(renorm.r_max, self.batches);
        let d_max = Self::bound(renorm.d_max, self.batches);
        let r_min = renorm.r_min.unwrap_or(1.0 / r_max);
        let of = |(channel, batch): (usize, &Moments)| {
            let (mean, stddev) = match renorm.reference {
                Reference::Separate { .. } => {
                    let stddev = self.renorm_stddev[channel].max(epsilon.sqrt());
                    (self.renorm_mean[channel], stddev)
                }
                _ => (
                    self.mean[channel],
                    (self.variance[channel] + epsilon).sqrt(),
                ),
            };
            let r = ((batch.variance + epsilon).sqrt() / stddev)
                .max(r_min)
                .min(r_max);
            let d = ((batch.mean - mean) / stddev).clamp(-d_max, d_max);
            (r, d)
        };
        batch.iter().enumerate().map(of).collect()
    }

    /// One pass: the output, what it took for constants, and whether it trained.
    ///
    /// # Errors
    ///
    /// The name of the error that the layer must return.
    pub fn forward(
        &mut self,
        batch: &Batch,
        training: bool,
        constants: Option<&Constants>,
    ) -> Result<(Vec<f64>, Constants), &'static str> {
        let config = self.config.clone();
        let channels = config.num_features;
        let tracking = config.running_stats;
        let values = batch.x.len() / channels;
        let running = (Statistics::Running, false);
        let (by, enter) =
            if !training && tracking && config.inference == Inference::Running || values == 0 {
                running
            } else if self.fewest(batch, training) == 1 {
                let by_running = training && config.statistics == Statistics::Running;
                match config.single_value {
                    policy
                        if by_running
                            && (!config.update_statistics || policy != SingleValue::Error) =>
                    {
                        running
                    }
                    SingleValue::UseRunning if tracking => running,
                    SingleValue::SkipUpdate => match config.statistics {
                        Statistics::Ghost(_) if training => (config.statistics, false),
                        _ => (Statistics::Batch, false),
                    },
                    _ => return Err("SingleValue"),
                }
            } else if training {
                (config.statistics, tracking && config.update_statistics)
            } else {
                match config.inference {
                    Inference::Blend { batch } => (Statistics::Blend { batch }, false),
                    _ => (Statistics::Batch, false),
                }
            };

        let weight = |index: usize| batch.weights.as_ref().map_or(1.0, |weights| weights[index]);
        let of = |wanted: &dyn Fn(usize) -> bool| {
            let values: Vec<_> = (0..batch.x.len())
                .filter(|index| wanted(*index))
                .map(|index| (batch.x[index], weight(index)))
                .collect();
            moments(values.into_iter())
        };
        let whole: Vec<Moments> = (0..channels)
            .map(|c| of(&|i| self.place(batch, i).0 == c))
            .collect();
        let groups = match by {
            Statistics::Ghost(ghost) => self.groups(batch, ghost.size),
            _ => 1,
        };
        let by_group: Vec<Vec<Moments>> = (0..groups)
            .map(|group| {
                let of_channel = |c: usize| {
                    of(&|i| {
                        let (channel, sample) = self.place(batch, i);
                        channel == c && sample % groups == group
                    })
                };
                (0..channels).map(of_channel).collect()
            })
            .collect();
        let corrections = match constants {
            Some(constants) => constants.clone(),
            None => self.correction(by, &whole),
        };

        let epsilon = config.epsilon;
        let mut y = Vec::with_capacity(batch.x.len());
        for (index, x) in batch.x.iter().copied().enumerate() {
            let (c, sample) = self.place(batch, index);
            let seen = by_group[sample % groups][c];
            let (mean, variance) = match by {
                Statistics::Running => (self.mean[c], self.variance[c]),
                // A weight of 0 takes nothing, not even a NaN.
                Statistics::Blend { batch: 0.0 } => (self.mean[c], self.variance[c]),
                Statistics::Blend { batch: 1.0 } => (seen.mean, seen.variance),
                Statistics::Blend { batch } => (
                    batch * seen.mean + (1.0 - batch) * self.mean[c],
                    batch * seen.variance + (1.0 - batch) * self.variance[c],
                ),
                _ => (seen.mean, seen.variance),
            };
            let absent = weight(index) <= 0.0;
            let x_sane = if absent && !x.is_finite() { mean } else { x };
            let (r, d) = corrections[c];
            let x_hat = (x_sane - mean) / (variance + epsilon).sqrt() * r + d;
            let z = self.gamma[c] * x_hat
                + self.beta[c]
                + batch
                    .residual
                    .as_ref()
                    .map_or(0.0, |residual| residual[index]);
            y.push(match config.masked_output {
                MaskedOutput::Zero if absent => 0.0,
                MaskedOutput::PassThrough if absent => x,
                _ => activate(config.activation, z),
            });
        }
        if enter {
            self.enter(
                by,
                &whole,
                &by_group,
                values,
                batch.weights.is_some(),
                groups,
                batch,
            );
        }
        Ok((y, corrections))
    }

    #[allow(clippy::too_many_arguments)]
    fn enter(
        &mut self,
        by: Statistics,
        whole: &[Moments],
        by_group: &[Vec<Moments>],
        values: usize,
        masked: bool,
        groups: usize,
        batch: &Batch,
    ) {
        let config = self.config.clone();
        let samples = batch.shape[usize::from(self.axis(batch) == 0)];
        let uneven = !samples.is_multiple_of(groups);
        let unbiased = config.variance == Variance::Unbiased;
        for c in 0..config.num_features {
            let mut seen = whole[c];
            let mut count = if masked { seen.weight } else { values as f64 };
            if let Statistics::Ghost(ghost) = by
                && ghost.variance == GhostVariance::Mean
            {
                let total: f64 = by_group.iter().map(|group| group[c].weight).sum();
                let share = |group: &Vec<Moments>| group[c].variance * group[c].weight;
                seen.variance = match total > 0.0 {
                    true => by_group.iter().map(share).sum::<f64>() / total,
                    false => 0.0,
                };
                count = match masked || uneven {
                    true => count / groups as f64,
                    false => (values / groups) as f64,
                };
            }
            let weighted = masked || matches!(by, Statistics::Ghost(_)) && uneven;
            let known = !weighted || count > 1.0;
            let finite = seen.mean.is_finite() && seen.variance.is_finite();
            if !known || config.non_finite == NonFinite::Skip && !finite {
                self.skipped[c] += 1.0;
                continue;
            }
            let correction = if unbiased && count > 1.0 {
                count / (count - 1.0).max(count / 2.0)
            } else {
                1.0
            };
            let estimated = seen.variance * correction;
            let add = match config.averaging {
                Averaging::Exponential => config.momentum,
                Averaging::Cumulative => 1.0 / (self.batches as f64 + 1.0 - self.skipped[c]),
                Averaging::Debiased if config.momentum == 0.0 => 0.0,
                Averaging::Debiased => {
                    // The weights of all batches so far, by age, sum up to 1.
                    let taken = self.batches - self.skipped[c] as u64;
                    let older: f64 = (0..=taken)
                        .map(|age| (1.0 - config.momentum).powi(age as i32))
                        .sum();
                    1.0 / older
                }
            };
            let blend = |old: &mut f64, new: f64, add: f64| {
                *old = match add {
                    0.0 => *old,
                    1.0 => new,
                    add => (1.0 - add) * *old + add * new,
                }
            };
            blend(&mut self.mean[c], seen.mean, add);
            let separate = match config.statistics {
                Statistics::Renorm(renorm) => match renorm.reference {
                    Reference::Separate { momentum } => Some(momentum),
                    _ => None,
                },
                _ => None,
            };
            match separate {
                None => blend(&mut self.variance[c], estimated, add),
                Some(momentum) => {
                    blend(&mut self.renorm_mean[c], seen.mean, momentum);
                    let stddev = (seen.variance + config.epsilon).sqrt();
                    blend(&mut self.renorm_stddev[c], stddev, momentum);
                    blend(
                        &mut self.moving_stddev[c],
                        (estimated + config.epsilon).sqrt(),
                        add,
                    );
                    self.variance[c] = (self.moving_stddev[c].powi(2) - config.epsilon).max(0.0);
                }
            }
        }
        self.batches += 1;
    }
}

fn activate(activation: Activation, z: f64) -> f64 {
    if z.is_nan() {
        return z;
    }
    match activation {
        Activation::Relu => z.max(0.0),
        Activation::LeakyRelu(slope) => {
            if z > 0.0 {
                z
            } else {
                slope * z
            }
        }
        Activation::Silu => z / (1.0 + (-z).exp()),
        Activation::Gelu => z * (1.0 + libm::erf(z / std::f64::consts::SQRT_2)) / 2.0,
        Activation::HardSwish => z * (z + 3.0).clamp(0.0, 6.0) / 6.0,
        Activation::Sigmoid => 1.0 / (1.0 + (-z).exp()),
        Activation::Tanh => z.tanh(),
        Activation::GeluTanh => {
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (z + 0.044715 * z.powi(3));
            z * (1.0 + inner.tanh()) / 2.0
        }
        Activation::Relu6 => z.clamp(0.0, 6.0),
        Activation::Clamp { min, max } => z.clamp(min, max),
        _ => z,
    }
}
