//! The one formula by which running statistics change.

use burn::backend::Dispatch;
use burn::tensor::Tensor;

use super::Values;
use crate::checks::{cast, to_device};
use crate::ops::composed;
use crate::{Averaging, Variance};

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

/// What a configuration says of updates, for a batch with a certain number of values per channel.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rule {
    pub(crate) averaging: Averaging,
    /// Weight of the new batch, within `[0, 1]`.
    pub(crate) momentum: f64,
    pub(crate) estimator: Variance,
    /// Values per channel of the batch.
    pub(crate) values: usize,
}

impl Rule {
    /// The update that enters a batch into statistics of `batches` earlier ones.
    pub(crate) fn update(&self, batches: u64) -> Update {
        let add = match self.averaging {
            Averaging::Exponential => self.momentum,
            Averaging::Cumulative => 1.0 / (batches as f64 + 1.0),
        };
        let correction = match (self.estimator, self.values as f64) {
            (Variance::Unbiased, n) if n > 1.0 => n / (n - 1.0),
            _ => 1.0,
        };
        Update {
            keep: 1.0 - add,
            add_mean: add,
            add_variance: add * correction,
        }
    }
}

impl Values {
    /// The values after a batch with the given mean and biased variance.
    pub(crate) fn after(&self, update: Update, mean: Tensor<1>, variance: Tensor<1>) -> Self {
        Self {
            mean: blend(&self.mean, mean, update.keep, update.add_mean),
            variance: blend(&self.variance, variance, update.keep, update.add_variance),
            batches: self.batches.saturating_add(1),
        }
    }
}

/// `keep * old + add * new`, on the device and in the type of `old`.
///
/// The kernels do the same on their own memory; this is for what has no kernel.
pub(crate) fn blend(old: &Tensor<1>, new: Tensor<1>, keep: f64, add: f64) -> Tensor<1> {
    let new = cast(to_device(new, &old.device()), old.dtype());
    let (old, new) = (old.clone().into_dispatch(), new.into_dispatch());
    Tensor::from_dispatch(composed::blend::<Dispatch>(old, new, keep, add))
}
