//! What passes saw of batches, put together.

use burn::tensor::Tensor;

use super::{Observation, Rule, rows};
use crate::NonFinite;

impl Observation {
    /// Of the moments that a training pass returned, of `values` per channel.
    pub(crate) fn of_batch(moments: Tensor<2>, values: usize) -> Self {
        Self {
            moments,
            values,
            weight: None,
        }
    }

    /// Of a center, whose fourth row is the sum of the weights where it is `weighted`.
    pub(crate) fn of_center(center: Tensor<2>, values: usize, weighted: bool) -> Self {
        let center = center.without_autodiff();
        let [_, channels] = center.dims();
        let weight = weighted.then(|| {
            let row = center.clone().slice([3..4, 0..channels]);
            row.reshape([channels])
        });
        Self {
            moments: center,
            values,
            weight,
        }
    }

    /// Where a policy leaves out what is not finite: the same without those channels, which then weigh
    /// nothing.
    pub(crate) fn admitted(self, rule: &Rule) -> Self {
        if rule.non_finite == NonFinite::Propagate {
            return self;
        }
        let [mean, variance] = rows(self.moments.clone());
        let excluded = mean
            .clone()
            .is_finite()
            .bool_and(variance.clone().is_finite())
            .bool_not();
        let weight = self.weight_of_each().mask_fill(excluded.clone(), 0.0);
        let mean = mean.mask_fill(excluded.clone(), 0.0);
        let variance = variance.mask_fill(excluded, 0.0);
        Self {
            moments: packed(mean, variance),
            values: self.values,
            weight: Some(weight),
        }
    }

    /// The moments of both batches as one: `n`, mean and `n * variance` merged as by
    /// [Chan et al. 1979](https://doi.org/10.1007/978-3-642-51461-6_3), which stays right where the means
    /// lie far apart.
    pub(crate) fn pooled(self, other: Self) -> Self {
        let values = self.values + other.values;
        let weights = (self.weight.is_some() || other.weight.is_some())
            .then(|| [self.weight_of_each(), other.weight_of_each()]);
        let [mean, variance] = rows(self.moments);
        let [other_mean, other_variance] = rows(other.moments);
        let apart = other_mean - mean.clone();
        let (mean_moves, variance, weight) = match weights {
            None => {
                let share = other.values as f64 / (values as f64).max(1.0);
                let between = apart.clone().powi_scalar(2) * (share * (1.0 - share));
                let variance = variance * (1.0 - share) + other_variance * share + between;
                (apart * share, variance, None)
            }
            Some([ours, others]) => {
                let total = ours + others.clone();
                // 0 where nothing weighs anything.
                let share = others / total.clone().clamp_min(f32::MIN_POSITIVE);
                let rest = share.clone().neg() + 1.0;
                let between = apart.clone().powi_scalar(2) * (share.clone() * rest.clone());
                let variance = variance * rest + other_variance * share.clone() + between;
                (apart * share, variance, Some(total))
            }
        };
        Self {
            moments: packed(mean + mean_moves, variance),
            values,
            weight,
        }
    }

    /// Shape `[channels]`.
    pub(crate) fn weight_of_each(&self) -> Tensor<1> {
        match &self.weight {
            Some(weight) => weight.clone(),
            None => {
                let [_, channels] = self.moments.dims();
                let options = (&self.moments.device(), self.moments.dtype());
                Tensor::full([channels], self.values as f64, options)
            }
        }
    }
}

/// As rows of one tensor, `[3, channels]`, with a mean that rounding took nothing from.
pub(crate) fn packed(mean: Tensor<1>, variance: Tensor<1>) -> Tensor<2> {
    let [channels] = mean.dims();
    let low = mean.zeros_like();
    let row = |tensor: Tensor<1>| tensor.reshape([1, channels]);
    Tensor::cat(vec![row(mean), row(low), row(variance)], 0)
}
