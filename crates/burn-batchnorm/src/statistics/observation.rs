//! What passes saw of batches, put together.

use burn::tensor::Tensor;

use super::amount::{Amount, like};
use super::{Observation, Rule, rows};
use crate::NonFinite;

impl Observation {
    /// Of the moments that a training pass returned, of `values` per channel.
    pub(crate) fn of_batch(moments: Tensor<2>, values: usize) -> Self {
        Self {
            moments,
            values,
            weight: None,
            ghosts: None,
        }
    }

    /// The same of weighted positions, whose fifth row is the sum of the weights.
    pub(crate) fn of_weighted_batch(moments: Tensor<2>, values: usize) -> Self {
        let [_, channels] = moments.dims();
        let weight = moments
            .clone()
            .slice([4..5, 0..channels])
            .reshape([channels]);
        Self {
            weight: Some(weight),
            ..Self::of_batch(moments, values)
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
            ghosts: None,
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
            weight: Some(weight),
            ..self
        }
    }

    /// The moments of both batches as one: `n`, mean and `n * variance` merged as by
    /// [Chan et al. 1979](https://doi.org/10.1007/978-3-642-51461-6_3), which stays right where the means
    /// lie far apart.
    pub(crate) fn pooled(self, other: Self) -> Self {
        let amount = |of: &Self| match &of.weight {
            Some(weight) => Amount::each(weight.clone()),
            None => Amount::Same(of.values as f64),
        };
        let total = amount(&self).plus(&amount(&other));
        let share = amount(&other).share_of(&total);
        let rest = share.rest();

        let [mean, variance] = rows(self.moments);
        let [other_mean, other_variance] = rows(other.moments).map(|row| like(&row, &mean));
        let apart = other_mean - mean.clone();
        let between = share.times(&rest).of(&apart.clone().powi_scalar(2));
        let variance = rest.of(&variance) + share.of(&other_variance) + between;
        Self {
            moments: packed(mean + share.of(&apart), variance),
            values: self.values + other.values,
            weight: match total {
                Amount::Same(_) => None,
                Amount::Each(total) => Some(*total),
            },
            ghosts: self
                .ghosts
                .zip(other.ghosts)
                .map(|(ours, others)| ours + others),
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
