//! The one formula by which running statistics change.

use burn::backend::Dispatch;
use burn::tensor::{Bool, DType, Tensor};

use super::amount::{Amount, like};
use super::{Renormed, Values, rows};
use crate::checks::cast;
use crate::ops::composed;
use crate::{Averaging, NonFinite, Variance};

/// One update of the running statistics: `new = keep * old + add * batch`.
///
/// Such maps compose, which is how the batches that a worker saw become one report, and every one of
/// them is a convex blend (`keep + add = 1`, up to Bessel's factor in the variance's `add`): no order
/// of updates can take a statistic out of the range of what went in.
///
/// A `keep` of 0 replaces the old value even where it is NaN, an `add` of 0 keeps it whatever the
/// batch holds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Update {
    pub keep: f64,
    pub add_mean: f64,
    /// Times the batch's biased variance.
    pub add_variance: f64,
}

/// What a configuration says of updates.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rule {
    pub(crate) averaging: Averaging,
    /// Weight of the new batch, within `[0, 1]`.
    pub(crate) momentum: f64,
    pub(crate) estimator: Variance,
    pub(crate) non_finite: NonFinite,
    /// Momentum of the separate reference of batch renormalization, if there is one.
    pub(crate) renorm: Option<f64>,
    pub(crate) epsilon: f64,
}

/// What a pass saw of a batch.
#[derive(Debug, Clone)]
pub(crate) struct Observation {
    /// Rows with the mean, what rounding took from it, the biased variance; perhaps more.
    pub(crate) moments: Tensor<2>,
    /// Positions per channel.
    pub(crate) values: usize,
    /// The sum of the positions' weights, shape `[channels]`, where they have some.
    pub(crate) weight: Option<Tensor<1>>,
    /// The number of ghost batches whose variances were averaged: Bessel's factor is that of one of them.
    pub(crate) ghosts: Option<usize>,
}

/// What an update did to the statistics, as far as it tells workers apart.
#[derive(Debug, Clone)]
pub(crate) struct Taken {
    /// What is left of the old mean and variance.
    pub(crate) keep: Amount,
    /// What is left of the old separate reference.
    pub(crate) keep_renorm: Amount,
    /// How much of the batch was taken, in values.
    pub(crate) weight: Amount,
}

impl Rule {
    /// The update that enters a batch of `values` per channel into statistics of `batches` earlier ones.
    pub(crate) fn update(&self, batches: u64, values: f64) -> Update {
        let add = match self.averaging {
            Averaging::Exponential => self.momentum,
            Averaging::Cumulative => 1.0 / (batches as f64 + 1.0),
            // Exactly, for what must replace even a NaN.
            Averaging::Debiased if batches == 0 && self.momentum > 0.0 => 1.0,
            Averaging::Debiased if self.momentum > 0.0 => {
                // 1 less what is left of the initial values.
                // Not `1 - kept`, which is 0 for the smallest momentums.
                let log_kept = (-self.momentum).ln_1p() * (batches as f64 + 1.0);
                self.momentum / -log_kept.exp_m1()
            }
            Averaging::Debiased => 0.0,
        };
        Update {
            keep: 1.0 - add,
            add_mean: add,
            add_variance: add * self.correction(values),
        }
    }

    /// Bessel's.
    fn correction(&self, n: f64) -> f64 {
        match self.estimator {
            Variance::Unbiased if n > 1.0 => n / (n - 1.0),
            Variance::Unbiased | Variance::Biased => 1.0,
        }
    }

    /// The estimate of the variance that enters, and which channels know one where that differs, both of
    /// the biased variance of a batch.
    pub(crate) fn estimated(
        &self,
        variance: &Tensor<1>,
        batch: &Observation,
    ) -> (Tensor<1>, Option<Tensor<1, Bool>>) {
        let ghosts = batch.ghosts.unwrap_or(1) as f64;
        let Some(weight) = &batch.weight else {
            let n = batch.values as f64 / ghosts;
            return (variance.clone() * self.correction(n), None);
        };
        let n = like(weight, variance) / ghosts;
        // One value, or less: its variance says nothing.
        let known = Some(n.clone().greater_elem(1.0));
        match self.estimator {
            Variance::Biased => (variance.clone(), known),
            Variance::Unbiased => {
                // Fractions of a value between one and two would give a factor without bounds: two values' is
                // the most there is.
                let divisor = (n.clone() - 1.0).max_pair(n.clone() / 2.0);
                (variance.clone() * (n / divisor), known)
            }
        }
    }

    /// The statistics after a batch, and what was taken of it.
    pub(crate) fn after(&self, old: &Values, batch: &Observation) -> (Values, Taken) {
        let here = |tensor| like(&tensor, &old.mean);
        let [mean, variance] = rows(batch.moments.clone()).map(here);
        // Where channels may differ in what they take of the batch.
        let by_channel =
            batch.weight.is_some() || old.skipped.is_some() || self.non_finite == NonFinite::Skip;
        if !by_channel && self.renorm.is_none() {
            let n = batch.values as f64 / batch.ghosts.unwrap_or(1) as f64;
            let update = self.update(old.batches, n);
            let Update {
                keep,
                add_mean,
                add_variance,
            } = update;
            let values = Values {
                mean: blend(&old.mean, mean, keep, add_mean),
                variance: blend(&old.variance, variance, keep, add_variance),
                batches: old.batches.saturating_add(1),
                ..old.clone()
            };
            return (values, update.taken(batch.values));
        }

        let (estimated, known) = self.estimated(&variance, batch);
        let finite = (self.non_finite == NonFinite::Skip).then(|| {
            mean.clone()
                .is_finite()
                .bool_and(variance.clone().is_finite())
        });
        let enters = match (known, finite) {
            (Some(known), Some(finite)) => Some(known.bool_and(finite)),
            (known, finite) => known.or(finite),
        };
        let skipped = old.skipped.clone().unwrap_or_else(|| old.mean.zeros_like());
        let blender = Blender {
            rule: self,
            batches: old.batches,
            skipped: &skipped,
            enters: enters.as_ref(),
        };
        let renorm = old.renorm.as_ref().zip(self.renorm).map(|(old, momentum)| {
            let stddev = |variance: Tensor<1>| (variance + self.epsilon).sqrt();
            let own = |old, new| blender.select(old, blend(old, new, 1.0 - momentum, momentum));
            Box::new(Renormed {
                ids: old.ids,
                renorm_mean: own(&old.renorm_mean, mean.clone()),
                renorm_stddev: own(&old.renorm_stddev, stddev(variance)),
                moving_stddev: blender.blend(&old.moving_stddev, stddev(estimated.clone())),
            })
        });
        let variance = match &renorm {
            // Keras averages standard deviations.
            Some(renorm) => {
                let square = renorm.moving_stddev.clone().powi_scalar(2);
                let variance = (square - self.epsilon).clamp_min(0.0);
                blender.select(&old.variance, like(&variance, &old.variance))
            }
            None => blender.blend(&old.variance, estimated),
        };
        let taken = Taken {
            keep: blender.kept(self.keep(old.batches, &skipped)),
            keep_renorm: blender.kept(Amount::Same(1.0 - self.renorm.unwrap_or(0.0))),
            weight: match (&batch.weight, &enters) {
                (None, None) => Amount::Same(batch.values as f64),
                (weight, enters) => {
                    let weight = match weight {
                        Some(weight) => here(weight.clone()),
                        None => old.mean.full_like(batch.values as f64),
                    };
                    Amount::each(match enters {
                        Some(enters) => weight.mask_fill(enters.clone().bool_not(), 0.0),
                        None => weight,
                    })
                }
            },
        };
        let values = Values {
            mean: blender.blend(&old.mean, mean),
            variance,
            batches: old.batches.saturating_add(1),
            renorm,
            skipped: match &enters {
                Some(enters) => {
                    let left_out = enters.clone().bool_not().float();
                    Some(skipped.clone() + cast(left_out, skipped.dtype()))
                }
                None => old.skipped.clone(),
            },
        };
        (values, taken)
    }

    /// What an update leaves of the old mean and variance.
    fn keep(&self, batches: u64, skipped: &Tensor<1>) -> Amount {
        match self.averaging {
            Averaging::Exponential => Amount::Same(1.0 - self.momentum),
            Averaging::Debiased if self.momentum == 0.0 || self.momentum == 1.0 => {
                Amount::Same(1.0 - self.momentum)
            }
            averaging => {
                // Of the batches that each channel has taken.
                let count = skipped.clone().neg() + (batches as f64 + 1.0);
                let add = match averaging {
                    Averaging::Debiased => {
                        // 1 - exp(e), in f32: Vulkan has no exponential function of f64. By its series where
                        // the difference would cancel.
                        let e = cast(count.clone(), DType::F32) * (-self.momentum).ln_1p();
                        let series = e.clone() / 4.0 + 1.0;
                        let series = e.clone() / 3.0 * series + 1.0;
                        let series = e.clone() / 2.0 * series + 1.0;
                        let series = e.clone().neg() * series;
                        let small = e.clone().greater_elem(-0.1);
                        let replaced = (e.exp().neg() + 1.0).mask_where(small, series);
                        let add = cast(replaced, count.dtype()).recip() * self.momentum;
                        // Exactly, for what must replace even a NaN.
                        add.mask_fill(count.equal_elem(1.0), 1.0)
                    }
                    _ => count.recip(),
                };
                Amount::each(add.neg() + 1.0)
            }
        }
    }
}

impl Update {
    /// Of a batch with `values` per channel.
    pub(crate) fn taken(&self, values: usize) -> Taken {
        Taken {
            keep: Amount::Same(self.keep),
            keep_renorm: Amount::Same(1.0),
            weight: Amount::Same(values as f64),
        }
    }
}

/// Blends channel by channel.
struct Blender<'a> {
    rule: &'a Rule,
    batches: u64,
    skipped: &'a Tensor<1>,
    enters: Option<&'a Tensor<1, Bool>>,
}

impl Blender<'_> {
    fn blend(&self, old: &Tensor<1>, new: Tensor<1>) -> Tensor<1> {
        let blended = match self.rule.keep(self.batches, self.skipped) {
            Amount::Same(keep) => blend(old, new, keep, 1.0 - keep),
            Amount::Each(keep) => {
                let (keep, new) = (like(&keep, old), cast(new, old.dtype()));
                let first = keep.clone().equal_elem(0.0);
                let blended = old.clone() * keep.clone() + new.clone() * (keep.neg() + 1.0);
                // Not `0 * old`, which would keep a NaN.
                blended.mask_where(first, new)
            }
        };
        self.select(old, blended)
    }

    /// All, where nothing enters.
    fn kept(&self, keep: Amount) -> Amount {
        match (self.enters, keep) {
            (None, keep) => keep,
            (Some(enters), Amount::Same(keep)) => {
                let all = self.skipped.ones_like();
                Amount::each(all.mask_fill(enters.clone(), keep))
            }
            (Some(enters), Amount::Each(keep)) => {
                Amount::each(keep.mask_fill(enters.clone().bool_not(), 1.0))
            }
        }
    }

    fn select(&self, old: &Tensor<1>, new: Tensor<1>) -> Tensor<1> {
        match self.enters {
            Some(enters) => old.clone().mask_where(enters.clone(), like(&new, old)),
            None => new,
        }
    }
}

/// `keep * old + add * new`, on the device and in the type of `old`.
///
/// The kernels do the same on their own memory; this is for what has no kernel.
pub(crate) fn blend(old: &Tensor<1>, new: Tensor<1>, keep: f64, add: f64) -> Tensor<1> {
    let new = like(&new, old);
    let (old, new) = (old.clone().into_dispatch(), new.into_dispatch());
    Tensor::from_dispatch(composed::blend::<Dispatch>(old, new, keep, add))
}
