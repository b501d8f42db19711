//! Running statistics computed anew from data.

use burn::module::Module;
use burn::tensor::Tensor;

use super::scope::{self, Scope, Seen};
use super::snapshot::Snapshot;
use crate::Variance;
use crate::statistics::{Values, rows};

/// How [`recalibrate`] puts batches together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Recalibration {
    /// The statistics of all values as one batch: counts, means and squared deviations merged, so that
    /// neither the sizes of the batches nor how far their means lie apart matters
    /// ([precise BN](https://arxiv.org/abs/2105.07576)).
    #[default]
    Population,
    /// The plain average of the batches' means and variances: PyTorch's `update_bn`.
    Average,
}

/// The model with running statistics computed from `batches`: after weight averaging, after a change of
/// data, or in place of an exponential average that is noisy or stale.
///
/// `forward` gets the model as [`valid()`](Module::valid) makes it and a batch on the plain device: dropout is
/// off and no gradient is kept. Layers that could train normalize by their batch as in training. Frozen layers,
/// those with `update_statistics` off, and layers that no batch reaches stay as they are. Without any batch the
/// model comes back unchanged.
///
/// To undo it, take a [`Snapshot`] before.
///
/// ```
/// # use burn::tensor::{Device, Distribution, Tensor};
/// use burn_batchnorm::{BatchNormConfig, Recalibration, recalibrate};
///
/// # let device = Device::default();
/// let model = BatchNormConfig::new(2).init(&device.clone().autodiff());
/// let batches = (0..10).map(|_| Tensor::<2>::random([64, 2], Distribution::Default, &device));
/// let model = recalibrate(model, Recalibration::Population, batches, |model, batch| {
///     model.forward(batch);
/// });
/// # assert_eq!(model.config().num_features, 2);
/// ```
pub fn recalibrate<M: Module, B>(
    model: M,
    mode: Recalibration,
    batches: impl IntoIterator<Item = B>,
    mut forward: impl FnMut(&M, B),
) -> M {
    let valid = model.valid();
    let ((), seen) = scope::open(Scope::Recalibrate(mode), || {
        batches.into_iter().for_each(|batch| forward(&valid, batch));
    });
    let mut snapshot = Snapshot::default();
    for seen in seen {
        let old = seen.statistics.values();
        let [mean, variance] = result(&seen, &old);
        if let Some(renorm) = &old.renorm {
            let stddev = (variance.clone() + seen.rule.epsilon).sqrt();
            let [mean_id, stddev_id, moving_id] = renorm.ids;
            snapshot.values.extend([
                (mean_id, mean.clone()),
                (stddev_id, stddev.clone()),
                (moving_id, stddev),
            ]);
        }
        let [mean_id, variance_id, counter_id] = seen.ids;
        snapshot
            .values
            .extend([(mean_id, mean), (variance_id, variance)]);
        snapshot.counts.insert(counter_id, seen.batches as i64);
    }
    snapshot.restore(model)
}

/// The new running mean and variance. A channel of which no batch knew anything keeps its old ones.
fn result(seen: &Seen, old: &Values) -> [Tensor<1>; 2] {
    if let Some(average) = &seen.average {
        return [average.mean.clone(), average.variance.clone()];
    }
    let [mean, variance] = rows(seen.pooled.moments.clone());
    let values = seen.pooled.values as f64;
    match (&seen.pooled.weight, seen.rule.estimator) {
        (None, Variance::Unbiased) if values > 1.0 => [mean, variance * (values / (values - 1.0))],
        (None, _) => [mean, variance],
        (Some(weight), estimator) => {
            let (least, variance) = match estimator {
                Variance::Biased => (0.0, variance),
                Variance::Unbiased => {
                    let corrected = variance * (weight.clone() / (weight.clone() - 1.0));
                    (1.0, corrected)
                }
            };
            let known = weight.clone().greater_elem(least);
            let take = |old: &Tensor<1>, new| old.clone().mask_where(known.clone(), new);
            [take(&old.mean, mean), take(&old.variance, variance)]
        }
    }
}
