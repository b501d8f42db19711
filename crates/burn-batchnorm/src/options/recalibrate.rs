//! Running statistics computed anew from data.

use burn::module::Module;
use burn::tensor::Tensor;

use super::scope::{self, Scope, Seen};
use super::snapshot::Snapshot;
use crate::statistics::{Renormed, Values, like, rows};

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
/// off and no gradient is kept. Layers that could train normalize by the statistics of their batches, whatever
/// [`Statistics`](crate::Statistics) they train by. Frozen layers, those with
/// `update_statistics` off, layers that no batch reaches, and layers that `forward` runs on another thread stay
/// as they are. Without any batch the model comes back unchanged.
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
/// let model = recalibrate(model, Recalibration::Population, batches, |model, batch| model.forward(batch));
/// # assert_eq!(model.config().num_features, 2);
/// ```
pub fn recalibrate<M: Module, B, R>(
    model: M,
    mode: Recalibration,
    batches: impl IntoIterator<Item = B>,
    mut forward: impl FnMut(&M, B) -> R,
) -> M {
    let valid = model.valid();
    let ((), seen) = scope::open(Scope::Recalibrate(mode), || {
        batches
            .into_iter()
            .for_each(|batch| drop(forward(&valid, batch)));
    });
    let mut snapshot = Snapshot::default();
    for seen in seen {
        let fields = seen.statistics.fields();
        let old = fields.values();
        let [mean, variance] = seen.population(&old);
        let renorm = old.renorm.map(|renorm| {
            let stddev = (variance.clone() + seen.rule.epsilon).sqrt();
            Box::new(Renormed {
                ids: renorm.ids,
                renorm_mean: mean.clone(),
                renorm_stddev: stddev.clone(),
                moving_stddev: stddev,
            })
        });
        let values = Values {
            renorm,
            batches: seen.batches,
            ..Values::fresh(mean, variance)
        };
        snapshot.layers.insert(fields.ids()[0], values);
    }
    snapshot.restore(model)
}

impl Seen {
    /// The running mean and variance by what was seen. A channel of which no batch knew anything keeps its
    /// old ones.
    pub(crate) fn population(&self, old: &Values) -> [Tensor<1>; 2] {
        if let Some(average) = &self.average {
            return [average.mean.clone(), average.variance.clone()];
        }
        let [mean, variance] = rows(self.pooled.moments.clone()).map(|row| like(&row, &old.mean));
        let (variance, known) = self.rule.estimated(&variance, &self.pooled);
        match known {
            None => [mean, variance],
            Some(known) => {
                let take = |old: &Tensor<1>, new| old.clone().mask_where(known.clone(), new);
                [take(&old.mean, mean), take(&old.variance, variance)]
            }
        }
    }
}
